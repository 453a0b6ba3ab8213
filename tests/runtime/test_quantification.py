"""Quantities by hand arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from petseg_runtime.io.images import read_image, read_mask
from petseg_runtime.postprocessing import label_lesions, threshold_mask
from petseg_runtime.quantification import quantify
from petseg_runtime.volume import Geometry, Unit, Volume

STS = Path(__file__).parents[2].parent / "shared/data/sts"

# 2 x 5 x 5 mm: 0.05 ml a voxel
GEOMETRY = Geometry((4, 6, 8), (2.0, 5.0, 5.0), origin_lps_mm=(100.0, -50.0, 7.0))


def two_lesions(unit: Unit) -> tuple[Volume, np.ndarray]:
    array = np.full(GEOMETRY.shape, 0.5, np.float32)
    labels = np.zeros(GEOMETRY.shape, np.uint32)
    array[0, 0, 0:3] = (4.0, 6.0, 8.0)
    labels[0, 0, 0:3] = 1
    array[3, 5, 7] = 10.0
    labels[3, 5, 7] = 2
    array[2, 2, 2] = 30.0  # a hot organ outside the tumour
    return Volume(array, GEOMETRY, unit), labels


def test_volumes_and_uptake() -> None:
    statistics = quantify(*two_lesions(Unit.SUVBW))
    assert statistics.lesion_count == 2
    assert statistics.scan_max == 30.0
    large, small = statistics.lesions
    assert large.mtv_ml == pytest.approx(0.15)
    assert (large.suv_max, large.suv_mean) == (8.0, 6.0)
    assert large.tlg_g == pytest.approx(0.9)  # 6 g/ml in 0.15 ml
    assert (small.mtv_ml, small.suv_max, small.tlg_g) == pytest.approx((0.05, 10.0, 0.5))
    assert statistics.tumour.mtv_ml == pytest.approx(0.2)
    assert statistics.tumour.suv_mean == pytest.approx(28 / 4)
    assert statistics.tumour.tlg_g == pytest.approx(1.4)
    # Middle voxel of three along x, which is L: 100 + 5 mm
    assert large.centroid_lps_mm == pytest.approx((105.0, -50.0, 7.0))


@pytest.mark.parametrize("unit", [Unit.BQML, Unit.UNKNOWN])
def test_no_suv_without_the_unit(unit: Unit) -> None:
    tumour = quantify(*two_lesions(unit)).tumour
    assert (tumour.suv_max, tumour.suv_mean, tumour.tlg_g) == (None, None, None)
    assert (tumour.intensity_max, tumour.intensity_mean) == (10.0, 7.0)
    assert tumour.mtv_ml == pytest.approx(0.2)


def test_no_tumour_is_a_result() -> None:
    volume, labels = two_lesions(Unit.SUVBW)
    statistics = quantify(volume, np.zeros_like(labels))
    assert statistics.lesion_count == 0
    assert statistics.lesions == ()
    assert (statistics.tumour.mtv_ml, statistics.tumour.tlg_g) == (0.0, 0.0)
    assert statistics.tumour.suv_max is None


def ball_of(value: float, radius_mm: float, spacing_mm: tuple[float, float, float]) -> tuple[Volume, np.ndarray]:
    """A ball of one uptake in the middle of a cold scan, 60 mm a side."""
    geometry = Geometry(tuple(round(60 / step) for step in spacing_mm), spacing_mm)  # type: ignore[arg-type]
    place_mm = np.indices(geometry.shape) * np.reshape(spacing_mm, (3, 1, 1, 1)) - 30.0
    inside = (place_mm**2).sum(axis=0) <= radius_mm**2
    return Volume(np.where(inside, value, 0).astype(np.float32), geometry, Unit.SUVBW), inside.astype(np.uint32)


def test_suv_peak_averages_a_cubic_centimetre() -> None:
    # 4 mm voxels: of the offsets within 6.2 mm, 1 is 0 mm away, 6 are 4 mm and 12 are 5.7 mm (a corner's are 6.9 mm).
    geometry = Geometry((9, 9, 9), (4.0, 4.0, 4.0))
    array = np.zeros(geometry.shape, np.float32)
    labels = np.zeros(geometry.shape, np.uint32)
    array[4, 4, 4], array[3, 3, 3], labels[4, 4, 4] = 19.0, 1000.0, 1
    assert quantify(Volume(array, geometry, Unit.SUVBW), labels).lesions[0].suv_peak == pytest.approx(1.0)
    # In the scan's corner 1 + 3 + 3 voxels of the sphere are left.
    labels[...] = 0
    array[0, 0, 0], labels[0, 0, 0] = 14.0, 1
    assert quantify(Volume(array, geometry, Unit.SUVBW), labels).lesions[0].suv_peak == pytest.approx(2.0)


def test_there_is_no_suv_peak_where_a_cubic_centimetre_holds_the_centre_of_one_voxel_only() -> None:
    """Its radius is 6.2 mm. What would be said of it is the largest value."""
    labels = np.zeros((5, 5, 5), np.uint32)
    labels[2, 2, 1:4] = 1
    array = np.where(labels > 0, 7.0, 1.0).astype(np.float32)
    array[2, 2, 2] = 9.0
    for side_mm, peak in ((6.1, (9 + 2 * 7 + 4 * 1) / 7), (6.3, None)):
        statistics = quantify(Volume(array, Geometry((5, 5, 5), (side_mm,) * 3), Unit.SUVBW), labels)
        assert statistics.tumour.suv_peak == statistics.lesions[0].suv_peak == pytest.approx(peak)
        assert statistics.tumour.intensity_peak == pytest.approx(peak)
        assert statistics.lesions[0].suv_max == 9.0


def test_suv_peak_of_a_large_even_ball_is_its_uptake() -> None:
    lesion = quantify(*ball_of(7.0, 15.0, (2.0, 3.0, 3.0))).lesions[0]
    assert lesion.suv_peak == pytest.approx(7.0)
    assert lesion.diameter_mm == pytest.approx(30.0, abs=3.0)


def test_the_diameter_runs_from_surface_to_surface() -> None:
    volume, labels = two_lesions(Unit.SUVBW)
    large, small = quantify(volume, labels).lesions
    assert large.diameter_mm == pytest.approx(15.0)  # three voxels of 5 mm
    assert small.diameter_mm == pytest.approx(5.0)


def test_distances_between_lesions_and_to_the_edge() -> None:
    volume, labels = two_lesions(Unit.SUVBW)
    statistics = quantify(volume, labels)
    # From voxel (0, 0, 1) to (3, 5, 7) of 2 x 5 x 5 mm.
    assert statistics.dmax_mm == pytest.approx((6**2 + 25**2 + 30**2) ** 0.5)
    assert statistics.tumour.edge_mm == 0.0
    labels[labels == 2] = 0
    labels[labels == 1] = 0
    labels[1, 2, 3] = 1
    alone = quantify(volume, labels)
    assert alone.dmax_mm is None
    assert alone.tumour.edge_mm == pytest.approx(2.0)


def test_volumes_at_the_thresholds_of_practice() -> None:
    statistics = quantify(*two_lesions(Unit.SUVBW))
    assert statistics.lesions[0].mtv_41_ml == pytest.approx(0.15)  # 4, 6 and 8 are above 3.28
    assert statistics.tumour.mtv_41_ml == pytest.approx(0.2)  # and the other lesion's only voxel
    assert statistics.tumour.mtv_suv25_ml == pytest.approx(0.2)


def test_the_mean_probability_is_of_the_lesion_only() -> None:
    volume, labels = two_lesions(Unit.UNKNOWN)
    probabilities = np.full(labels.shape, 0.1, np.float32)
    probabilities[0, 0, 0:3] = (0.6, 0.7, 0.8)
    assert quantify(volume, labels, probabilities).lesions[0].mean_probability == pytest.approx(0.7)
    with pytest.raises(ValueError, match="probabilities are"):
        quantify(volume, labels, probabilities[1:])


@given(st.integers(0, 2**31), st.floats(0.05, 0.6))
def test_the_diameter_is_the_farthest_pair_of_surface_points(seed: int, share: float) -> None:
    """Against every pair of the points halfway between a voxel inside and a neighbour outside."""
    rng = np.random.default_rng(seed)
    inside = np.zeros((6, 8, 10), bool)
    inside[1:-1, 1:-1, 1:-1] = rng.random((4, 6, 8)) < share
    inside[3, 3, 3] = True
    points = []
    for axis in range(3):
        crossing = np.argwhere(np.diff(inside.astype(int), axis=axis) != 0).astype(float)
        crossing[:, axis] += 0.5
        points.append(crossing)
    surface = np.concatenate(points) * (2.0, 5.0, 5.0)
    farthest = np.linalg.norm(surface[:, None] - surface, axis=-1).max()
    geometry = Geometry(inside.shape, (2.0, 5.0, 5.0))
    statistics = quantify(Volume(np.ones(inside.shape, np.float32), geometry), inside.astype(np.uint32))
    assert statistics.lesions[0].diameter_mm == pytest.approx(farthest)


@pytest.mark.skipif(not STS.is_dir(), reason="the real patients are not part of the project")
def test_quantities_are_those_of_an_independent_implementation() -> None:
    """mirp on ten real patients, with their experts' masks; IBSI's names in brackets."""
    mirp = pytest.importorskip("mirp", reason="the extra `radiomics` is not installed")
    masks = {folder: read_mask(folder / "PET_mask.nii.gz")[0] for folder in STS.glob("STS_*")}
    # The smallest tumours: a feature of mirp's that nobody asks for here takes the square of their voxels.
    for folder in sorted(masks, key=lambda folder: masks[folder].sum())[:10]:
        volume, mask = read_image(folder / "PET_image.nii.gz", Unit.SUVBW), masks[folder]
        (table,) = mirp.extract_features(
            image=str(folder / "PET_image.nii.gz"),
            mask=str(folder / "PET_mask.nii.gz"),
            image_modality="PET",
            base_discretisation_method="none",
            base_feature_families=["morphological", "local_intensity", "statistical"],
        )
        theirs = table.iloc[0]
        ours = quantify(volume, mask.astype(np.uint32)).lesions[0]
        assert ours.mtv_ml == pytest.approx(theirs["morph_vol_approx"] / 1000, rel=1e-6)  # YEKZ
        assert ours.suv_max == pytest.approx(theirs["stat_max"], rel=1e-6)  # 84IY
        assert ours.suv_mean == pytest.approx(theirs["stat_mean"], rel=1e-5)  # Q4LE
        assert ours.suv_peak == pytest.approx(theirs["loc_peak_glob"], rel=1e-5)  # 0F91
        assert ours.diameter_mm == pytest.approx(theirs["morph_diam"], rel=1e-6)  # L0JK
        # TLG is of the counted volume; IBSI's integrated intensity (99N0) is of a mesh a little smaller.
        assert ours.tlg_g == pytest.approx(
            theirs["morph_integ_int"] * theirs["morph_vol_approx"] / theirs["morph_volume"] / 1000, rel=1e-4
        )


def test_labels_on_another_grid_are_refused() -> None:
    volume, labels = two_lesions(Unit.SUVBW)
    with pytest.raises(ValueError, match="labels are"):
        quantify(volume, labels[1:])


def test_labels_that_skip_a_number_are_refused() -> None:
    volume, labels = two_lesions(Unit.SUVBW)
    labels[labels == 2] = 3
    with pytest.raises(ValueError, match="labels go up to 3, but there is no 2"):
        quantify(volume, labels)


@given(st.integers(0, 2**31))
def test_lesions_add_up_to_the_scan(seed: int) -> None:
    rng = np.random.default_rng(seed)
    volume = Volume(rng.uniform(0, 10, GEOMETRY.shape).astype(np.float32), GEOMETRY, Unit.SUVBW)
    mask = threshold_mask(rng.random(GEOMETRY.shape, dtype=np.float32), 0.8)
    labels = label_lesions(mask)
    statistics = quantify(volume, labels)
    assert (labels > 0).sum() == mask.sum()
    assert sum(lesion.mtv_ml for lesion in statistics.lesions) == pytest.approx(statistics.tumour.mtv_ml)
    assert sum(lesion.tlg_g or 0 for lesion in statistics.lesions) == pytest.approx(statistics.tumour.tlg_g)
    sizes = [lesion.mtv_ml for lesion in statistics.lesions]
    assert sizes == sorted(sizes, reverse=True)


def test_corners_connect_a_lesion() -> None:
    mask = np.zeros((3, 3, 3), np.uint8)
    mask[0, 0, 0] = mask[1, 1, 1] = 1
    assert label_lesions(mask).max() == 1
    mask[1, 1, 1], mask[2, 2, 2] = 0, 1
    assert label_lesions(mask).max() == 2


def test_the_threshold_itself_is_tumour() -> None:
    np.testing.assert_array_equal(threshold_mask(np.array([[[0.49, 0.5, 0.51]]], np.float32), 0.5), [[[0, 1, 1]]])
