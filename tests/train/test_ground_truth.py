"""Masks that stand as truth: FLAB on spheres of known size, thresholds by hand, the consensus of masks."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from petseg_runtime.errors import InputError, UsageError
from petseg_runtime.io.images import read_mask, write_image
from petseg_runtime.volume import Geometry, Unit, Volume
from petseg_train.ground_truth.consensus import staple
from petseg_train.ground_truth.files import make_mask
from petseg_train.ground_truth.flab import flab
from petseg_train.ground_truth.thresholds import fixed_suv, share_of_maximum, t40

SPACING_MM = 2.0


def sphere(diameter_mm: float, contrast: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A hot sphere on a background of 1 as a PET shows it (blur of 6 mm), with noise; and a VOI 10 mm wider."""
    rng = np.random.default_rng(seed)
    fine = (np.arange(160) + 0.5) * 0.4 - 32.0
    z, y, x = np.meshgrid(*(fine - shift for shift in rng.uniform(-1, 1, 3)), indexing="ij", sparse=True)
    inside = (z**2 + y**2 + x**2 <= (diameter_mm / 2) ** 2).astype(np.float32)
    coarse = inside.reshape(32, 5, 32, 5, 32, 5).mean(axis=(1, 3, 5))
    image = 1 + (contrast - 1) * gaussian_filter(coarse, 6 / 2.355 / SPACING_MM)
    noise = gaussian_filter(rng.standard_normal(image.shape), 1.0)
    image = image + 0.1 * np.sqrt(image) * noise / noise.std()
    axis = (np.arange(32) + 0.5) * SPACING_MM - 32.0
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij", sparse=True)
    return image.astype(np.float32), z**2 + y**2 + x**2 < (diameter_mm / 2 + 10) ** 2


@pytest.mark.parametrize("contrast", [4.0, 8.0])
@pytest.mark.parametrize("diameter_mm", [13, 22, 37])
def test_flab_meets_the_published_error_on_spheres(diameter_mm: float, contrast: float) -> None:
    """Hatt et al. 2009: a volume error of 5-15 % for diameters of 13-37 mm at contrasts of 4:1 and 8:1."""
    image, voi = sphere(diameter_mm, contrast)
    found_mm3 = flab(image, voi, np.random.default_rng(1)).sum() * SPACING_MM**3
    assert found_mm3 == pytest.approx(np.pi * diameter_mm**3 / 6, rel=0.15)


def test_flab_draws_from_the_generator_it_is_given() -> None:
    image, voi = sphere(22, 4.0)
    masks = [flab(image, voi, np.random.default_rng(seed)) for seed in (1, 1)]
    np.testing.assert_array_equal(*masks)


def test_flab_does_not_depend_on_the_unit() -> None:
    image, voi = sphere(22, 4.0)
    kilobecquerel = flab(image * np.float32(4000), voi, np.random.default_rng(1))
    np.testing.assert_array_equal(flab(image, voi, np.random.default_rng(1)), kilobecquerel)


def test_flab_stays_inside_the_voi() -> None:
    image, voi = sphere(37, 8.0)
    half = voi & (np.arange(32) < 16)
    assert not (flab(image, half, np.random.default_rng(1)) > 0)[~half].any()


def test_three_classes_hold_the_cooler_half_of_a_tumour_that_two_lose() -> None:
    """A tumour half at 12 and half at 4 on a background of 1: two classes split it, three take both halves."""
    z, y, x = np.meshgrid(*(np.arange(32) - 15.5,) * 3, indexing="ij")
    tumour = z**2 + y**2 + x**2 < 9**2
    plain = np.where(tumour, np.where(x < 0, 12.0, 4.0), 1.0)
    rng = np.random.default_rng(0)
    image = (gaussian_filter(plain, 1.2) + 0.15 * rng.standard_normal(plain.shape)).astype(np.float32)
    voi = z**2 + y**2 + x**2 < 13**2
    two, three = (flab(image, voi, np.random.default_rng(1), classes) > 0 for classes in (2, 3))
    assert (two & tumour).sum() < 0.75 * tumour.sum()
    assert (three & tumour).sum() > 0.85 * tumour.sum()
    assert (three & ~tumour).sum() < 0.2 * tumour.sum()


def test_flab_takes_starting_means() -> None:
    image, voi = sphere(22, 4.0)
    assert flab(image, voi, np.random.default_rng(1), start=(1.0, 4.0)).any()
    with pytest.raises(InputError, match=r"starting means are \[4.0, 1.0\], expected 2 rising"):
        flab(image, voi, np.random.default_rng(1), start=(4.0, 1.0))
    for beyond in ((100.0, 200.0), (1.0, np.nan)):
        with pytest.raises(InputError, match="expected 2 rising values as the VOI has, from "):
            flab(image, voi, np.random.default_rng(1), start=beyond)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e20])
def test_flab_refuses_what_it_cannot_compute_with(value: float) -> None:
    image, voi = sphere(22, 4.0)
    image[16, 16, 16] = value
    with pytest.raises(InputError, match="values that are not numbers below 1e"):
        flab(image, voi, np.random.default_rng(1))


@pytest.mark.parametrize(
    ("voi", "classes", "message"),
    [
        (np.zeros((32, 32, 32), bool), 2, "too few different values"),
        (np.ones((32, 32, 30), bool), 2, "expected the image's"),
        (np.ones((32, 32, 32), bool), 4, "expected 2 or 3"),
    ],
)
def test_what_flab_cannot_use_is_refused(voi: np.ndarray, classes: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        flab(sphere(13, 4.0)[0], voi, np.random.default_rng(1), classes)


def small_volume(unit: Unit = Unit.SUVBW) -> Volume:
    array = np.array([[[1.0, 3.9], [4.0, 10.0]]], dtype=np.float32)
    return Volume(array, Geometry(array.shape, (2.0, 2.0, 2.0)), unit)


def test_thresholds_by_hand() -> None:
    np.testing.assert_array_equal(t40(small_volume()), [[[0, 0], [1, 1]]])
    np.testing.assert_array_equal(fixed_suv(small_volume(), 3.9), [[[0, 1], [1, 1]]])
    voi = np.array([[[True, True], [True, False]]])
    np.testing.assert_array_equal(share_of_maximum(small_volume(), 0.5, voi), [[[0, 1], [1, 0]]])


def test_thresholds_refuse_what_they_cannot_mean() -> None:
    with pytest.raises(InputError, match="needs a scan in SUVbw"):
        fixed_suv(small_volume(Unit.UNKNOWN), 2.5)
    with pytest.raises(InputError, match="expected more than 0"):
        share_of_maximum(small_volume(), 1.5)
    with pytest.raises(InputError, match="VOI is empty"):
        fixed_suv(small_volume(), 2.5, np.zeros((1, 2, 2), bool))
    with pytest.raises(InputError, match="VOI is empty"):
        share_of_maximum(small_volume(), 0.4, np.zeros((1, 2, 2), bool))
    with pytest.raises(InputError, match="The largest value is 0"):
        share_of_maximum(replace(small_volume(), array=np.zeros((1, 2, 2), np.float32)), 0.4)


def cube(low: int, high: int) -> np.ndarray:
    mask = np.zeros((60, 60, 60), np.uint8)
    mask[low:high, low:high, low:high] = 1
    return mask


def test_a_consensus_outvotes_the_mask_that_is_far_off() -> None:
    consensus = staple([cube(20, 30), cube(20, 30), cube(20, 38)])
    np.testing.assert_array_equal(consensus.mask, cube(20, 30))
    assert consensus.specificity[2] < consensus.specificity[0]


def test_a_consensus_of_nothing_is_nothing_and_of_one_is_refused() -> None:
    empty = np.zeros((4, 4, 4), np.uint8)
    assert not staple([empty, empty]).mask.any()
    with pytest.raises(InputError, match="two masks or more"):
        staple([empty])
    with pytest.raises(InputError, match="of one shape"):
        staple([empty, np.zeros((4, 4, 5), np.uint8)])


def test_a_consensus_of_masks_that_agree_is_each_of_them() -> None:
    full = np.ones((20, 20, 20), np.uint8)
    for masks in ([full, full], [cube(20, 30), cube(20, 30)]):
        np.testing.assert_array_equal(staple(masks).mask, masks[0])


@pytest.fixture
def files(tmp_path: Path) -> Path:
    image, voi = sphere(22, 4.0)
    geometry = Geometry(image.shape, (SPACING_MM,) * 3, (-10.0, 5.0, 100.0))
    write_image(image, geometry, tmp_path / "pet.nii.gz")
    write_image(voi.astype(np.uint8), geometry, tmp_path / "voi.nii.gz")
    write_image(voi.astype(np.uint8), Geometry(image.shape, (3.0,) * 3), tmp_path / "elsewhere.nii.gz")
    return tmp_path


def test_the_command_writes_the_mask_on_the_scans_grid(files: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "petseg_train.cli", "ground-truth", files / "pet.nii.gz", "-o", files / "mask.nii.gz",
         "--voi", files / "voi.nii.gz"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    mask, geometry = read_mask(files / "mask.nii.gz")
    assert geometry.origin_lps_mm == (-10.0, 5.0, 100.0)
    volume_ml = mask.sum() * SPACING_MM**3 / 1000
    assert volume_ml == pytest.approx(np.pi * 2.2**3 / 6, rel=0.15)
    assert f"{volume_ml:.1f} ml" in done.stdout


def test_a_threshold_in_suv_takes_the_users_word_for_the_unit(files: Path) -> None:
    assert make_mask(files / "pet.nii.gz", files / "m.nii.gz", "suv2.5", None, [], 1, "suvbw") > 0


def test_flab_is_run_again_with_other_starting_values(files: Path) -> None:
    scan, voi, mask = files / "pet.nii.gz", files / "voi.nii.gz", files / "mask.nii.gz"
    first = make_mask(scan, mask, "flab", voi, [], 1)
    again = make_mask(scan, mask, "flab", voi, [], 1, start=(1.0, 4.0), overwrite=True)
    assert again == pytest.approx(first, rel=0.1)
    with pytest.raises(UsageError, match="--start is for --method flab or flab3"):
        make_mask(scan, mask, "t40", voi, [], 1, start=(1.0, 4.0), overwrite=True)


def test_a_mask_that_an_expert_may_have_edited_is_not_written_over(files: Path) -> None:
    (files / "mask.nii.gz").write_bytes(b"edited")
    with pytest.raises(UsageError, match=r"is there and would be lost\. Pass --overwrite"):
        make_mask(files / "pet.nii.gz", files / "mask.nii.gz", "t40", None, [], 1)
    assert (files / "mask.nii.gz").read_bytes() == b"edited"


def test_a_mask_of_nothing_is_not_written(files: Path) -> None:
    image, geometry = read_mask(files / "voi.nii.gz")
    for name, at in (("a.nii.gz", slice(0, 4)), ("b.nii.gz", slice(20, 24))):
        apart = np.zeros_like(image)
        apart[at, at, at] = 1
        write_image(apart, geometry, files / name)
    with pytest.raises(InputError, match="staple finds nothing here"):
        make_mask(files / "pet.nii.gz", files / "m.nii.gz", "staple", None, [files / "a.nii.gz", files / "b.nii.gz"], 1)
    assert not (files / "m.nii.gz").exists()


@pytest.mark.parametrize("taken", ["pet.nii.gz", "voi.nii.gz"])
def test_a_mask_is_not_written_over_what_it_is_made_of(taken: str, files: Path) -> None:
    before = (files / taken).read_bytes()
    with pytest.raises(UsageError, match="is an input"):
        make_mask(files / "pet.nii.gz", files / taken, "t40", files / "voi.nii.gz", [], 1)
    assert (files / taken).read_bytes() == before


def test_a_mask_needs_an_images_suffix(files: Path) -> None:
    with pytest.raises(UsageError, match=r"m.txt is no image file. End its name in .nii"):
        make_mask(files / "pet.nii.gz", files / "m.txt", "t40", None, [], 1)


@pytest.mark.parametrize(
    ("method", "voi", "masks", "error", "message"),
    [
        ("flab", None, [], UsageError, "Pass --voi"),
        ("t40", None, ["voi.nii.gz"], UsageError, "--mask is for --method staple"),
        ("flab", "elsewhere.nii.gz", [], InputError, "The VOI has a grid .* does not lie on"),
        ("staple", None, ["voi.nii.gz"], InputError, "two masks or more"),
        ("suv2.5", None, [], InputError, "needs a scan in SUVbw"),
        ("staple", "voi.nii.gz", ["voi.nii.gz", "voi.nii.gz"], UsageError, "takes no --voi"),
    ],
)
def test_what_a_method_lacks_is_said(
    files: Path, method: str, voi: str | None, masks: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make_mask(files / "pet.nii.gz", files / "m.nii.gz", method, voi and files / voi, [files / m for m in masks], 1)
    assert not (files / "m.nii.gz").exists()
