"""The example scan is what the README says: small, on one grid, and hard in the way cervical tumours are."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk

EXAMPLES = Path(__file__).parents[2] / "examples"
SCAN, MASK, BLADDER = (EXAMPLES / f"pelvis{part}.nii.gz" for part in ("", "_mask", "_bladder"))
LARGEST_FILE_BYTES = 2_000_000


@pytest.fixture(scope="module")
def scan() -> sitk.Image:
    return sitk.ReadImage(str(SCAN))


@pytest.fixture(scope="module")
def mask() -> sitk.Image:
    return sitk.ReadImage(str(MASK))


def grow(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Add every voxel within one voxel of the mask `(z, y, x)`, corners included."""
    for axis in range(mask.ndim):
        before, after = np.roll(mask, 1, axis), np.roll(mask, -1, axis)
        mask = mask | before | after
    return mask


@pytest.mark.parametrize("path", [SCAN, MASK, BLADDER], ids=lambda path: path.name)
def test_file_is_small_enough_to_ship(path: Path) -> None:
    assert 0 < path.stat().st_size < LARGEST_FILE_BYTES


def test_scan_and_mask_share_their_geometry(scan: sitk.Image, mask: sitk.Image) -> None:
    assert scan.GetSize() == mask.GetSize()
    assert scan.GetSpacing() == mask.GetSpacing()
    assert scan.GetOrigin() == mask.GetOrigin()
    assert scan.GetDirection() == mask.GetDirection()


def test_scan_holds_finite_non_negative_floats(scan: sitk.Image) -> None:
    suv = sitk.GetArrayViewFromImage(scan)
    assert suv.dtype == np.float32
    assert np.isfinite(suv).all()
    assert suv.min() >= 0


def test_mask_is_binary(mask: sitk.Image) -> None:
    labels = sitk.GetArrayViewFromImage(mask)
    assert labels.dtype == np.uint8
    assert set(np.unique(labels)) == {0, 1}


def test_mask_is_one_tumour_of_a_usual_size(mask: sitk.Image) -> None:
    volume_ml = sitk.GetArrayViewFromImage(mask).sum() * np.prod(mask.GetSpacing()) / 1000
    assert 20 < volume_ml < 80
    components = sitk.ConnectedComponent(mask, True)
    assert sitk.GetArrayViewFromImage(components).max() == 1


def test_tumour_touches_the_bladder_which_is_hot_too(scan: sitk.Image, mask: sitk.Image) -> None:
    suv, tumour = sitk.GetArrayViewFromImage(scan), sitk.GetArrayViewFromImage(mask) == 1
    bladder = sitk.GetArrayFromImage(sitk.ReadImage(str(BLADDER))) == 1
    assert not (bladder & tumour).any()
    assert (grow(tumour) & bladder).any()
    assert suv[bladder].max() > np.median(suv[tumour])
