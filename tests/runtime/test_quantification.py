"""Quantities by hand arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from petseg_runtime.postprocessing import label_lesions, threshold_mask
from petseg_runtime.quantification import quantify
from petseg_runtime.volume import Geometry, Unit, Volume

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


def test_labels_on_another_grid_are_refused() -> None:
    volume, labels = two_lesions(Unit.SUVBW)
    with pytest.raises(ValueError, match="labels are"):
        quantify(volume, labels[1:])


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
