"""Segmenter: from a volume to a mask, with a model whose answer is known."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from conftest import GEOMETRIES, OBLIQUE, body_array

from petseg_runtime import CancelledError, InputError, MemoryBudgetError, ModelError, Segmenter, UsageError, Volume
from petseg_runtime.volume import Geometry, Unit


@pytest.fixture(scope="module")
def segmenter(known_model: Path) -> Segmenter:
    return Segmenter(known_model, threads=1)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


def test_the_hot_ball_is_outlined_in_every_geometry(volume: Volume, segmenter: Segmenter) -> None:
    segmentation = segmenter.segment(volume)
    assert segmentation.mask.shape == volume.array.shape
    assert segmentation.geometry == volume.geometry
    assert dice(segmentation.mask > 0, volume.array > 6) > 0.9
    assert segmentation.statistics.tumour.suv_max == 12.0
    assert len(segmentation.lesions) == 1


def test_the_orientation_of_the_array_does_not_change_the_mask(segmenter: Segmenter) -> None:
    """The same patient, stored with every axis turned round and swapped, gives the same voxels."""
    straight = Geometry((24, 30, 32), (4.0, 5.0, 4.5), (-80.0, -70.0, 10.0))
    array = body_array(straight.shape)
    turned_array = np.ascontiguousarray(array[::-1, :, ::-1].transpose(2, 0, 1))
    # Axes are now x (against L), z (against S), y (along P); the first voxel is the old [23, 0, 31].
    turned = Geometry(
        turned_array.shape,  # type: ignore[arg-type]
        (4.5, 4.0, 5.0),
        tuple(straight.to_lps_mm([23, 0, 31]).tolist()),  # type: ignore[arg-type]
        ((-1, 0, 0), (0, 0, 1), (0, -1, 0)),
    )
    expected = segmenter.segment(Volume(array, straight, Unit.SUVBW))
    found = segmenter.segment(Volume(turned_array, turned, Unit.SUVBW))
    np.testing.assert_array_equal(found.mask.transpose(1, 2, 0)[::-1, :, ::-1], expected.mask)
    assert found.lesions[0].centroid_lps_mm == pytest.approx(expected.lesions[0].centroid_lps_mm)


def test_no_tumour_is_a_result(segmenter: Segmenter) -> None:
    geometry = GEOMETRIES["axial"]
    array = body_array(geometry.shape).clip(None, 1.05)
    segmentation = segmenter.segment(Volume(array, geometry))
    assert segmentation.mask.sum() == 0
    assert segmentation.lesions == ()


def test_threads_give_the_same_mask_bit_for_bit(segmenter: Segmenter) -> None:
    geometry = GEOMETRIES["axial"]
    volumes = [Volume(body_array(geometry.shape, seed), geometry) for seed in range(8)]
    alone = [segmenter.segment(volume).probabilities for volume in volumes]
    with ThreadPoolExecutor(8) as pool:
        together = [segmentation.probabilities for segmentation in pool.map(segmenter.segment, volumes)]
    for one, other in zip(alone, together):
        np.testing.assert_array_equal(one, other)


def test_overlap_threshold_and_tta_are_honoured(axial_volume: Volume, segmenter: Segmenter) -> None:
    # The known network looks at single voxels: no window grid and no mirroring changes it, a threshold does.
    reference = segmenter.segment(axial_volume)
    for options in ({"overlap": 0.0}, {"overlap": 0.75}, {"tta": True}):
        np.testing.assert_allclose(
            segmenter.segment(axial_volume, **options).probabilities, reference.probabilities, atol=1e-5
        )
    strict = segmenter.segment(axial_volume, threshold=0.999).mask.sum()
    lax = segmenter.segment(axial_volume, threshold=0.001).mask.sum()
    assert strict < reference.mask.sum() < lax


def test_a_scan_is_cancelled_with_the_window_in_hand(axial_volume: Volume, segmenter: Segmenter) -> None:
    cancel, seen = Event(), list[int]()

    def progress(done: int, windows: int) -> None:
        seen.append(done)
        assert windows > 2
        cancel.set()

    with pytest.raises(CancelledError):
        segmenter.segment(axial_volume, progress, cancel=cancel)
    assert seen == [1]
    cancel.clear()
    assert segmenter.segment(axial_volume, cancel=cancel).statistics.lesion_count == 1


def test_progress_ends_at_the_number_of_windows(axial_volume: Volume, segmenter: Segmenter) -> None:
    seen: list[tuple[int, int]] = []
    segmenter.segment(axial_volume, lambda done, total: seen.append((done, total)), tta=True)
    assert [done for done, _ in seen] == list(range(1, seen[-1][1] + 1))


def test_every_stage_is_timed(axial_volume: Volume, segmenter: Segmenter) -> None:
    timings = segmenter.segment(axial_volume).timings_s
    assert set(timings) == {"preprocessing", "inference", "postprocessing", "quantification"}
    assert all(seconds >= 0 for seconds in timings.values())


@pytest.mark.parametrize(
    "options", [{"overlap": -0.1}, {"overlap": 0.95}, {"threshold": 0.0}, {"threshold": 1.0}], ids=str
)
def test_impossible_options_are_refused(options: dict, axial_volume: Volume, segmenter: Segmenter) -> None:
    with pytest.raises(UsageError, match="expected"):
        segmenter.segment(axial_volume, **options)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda window: window * np.nan, "expected probabilities"),
        (lambda window: window * 40, "expected probabilities"),
        (lambda window: window[:, :, ::2, ::2, ::2], "expected the same shape"),
    ],
    ids=["NaN", "logits", "half size"],
)
def test_a_network_that_gives_no_probabilities_is_refused(answer, reason: str, axial_volume, manifest) -> None:
    class Wrong:
        name, device, predict = "wrong", "cpu", staticmethod(partial(map, answer))

    with pytest.raises(ModelError, match=reason):
        Segmenter.from_backend(manifest, Wrong()).segment(axial_volume)


def test_rounding_makes_no_probability_above_one(axial_volume, manifest) -> None:
    class Rounding:
        name, device = "rounding", "cpu"
        predict = staticmethod(partial(map, lambda window: np.full_like(window, 1.0005)))

    probabilities = Segmenter.from_backend(manifest, Rounding()).segment(axial_volume).probabilities
    assert probabilities.max() == 1.0


def test_a_giant_is_refused_before_memory_is_taken(segmenter: Segmenter) -> None:
    geometry = Geometry((40, 40, 40), (2000.0, 2000.0, 2000.0))
    with pytest.raises(MemoryBudgetError, match="voxel size"):
        segmenter.segment(Volume(body_array(geometry.shape).clip(0.5), geometry))


def test_nan_in_a_volume_is_refused(axial_volume: Volume, segmenter: Segmenter) -> None:
    array = axial_volume.array.copy()
    array[3, 3, 3] = np.nan
    with pytest.raises(InputError, match="NaN"):
        segmenter.segment(Volume(array, axial_volume.geometry))


def test_an_empty_scan_is_refused(segmenter: Segmenter) -> None:
    with pytest.raises(InputError, match="no body"):
        segmenter.segment(Volume(np.zeros((9, 9, 9), np.float32), Geometry((9, 9, 9), (4.0, 4.0, 4.0))))


def test_a_sheared_geometry_cannot_be_made() -> None:
    sheared = (OBLIQUE[0], OBLIQUE[1], (0.9174, 0.2813, 0.4))
    with pytest.raises(ValueError, match="orthonormal"):
        Geometry((4, 4, 4), (1.0, 1.0, 1.0), direction_lps=sheared)


@pytest.mark.parametrize(
    ("shape", "spacing"), [((0, 4, 4), (1.0, 1.0, 1.0)), ((4, 4, 4), (1.0, 0.0, 1.0)), ((4, 4, 4), (1.0, np.nan, 1.0))]
)
def test_a_degenerate_geometry_cannot_be_made(shape: tuple, spacing: tuple) -> None:
    with pytest.raises(ValueError, match="expected"):
        Geometry(shape, spacing)


def test_a_volume_is_float32_on_its_own_geometry() -> None:
    with pytest.raises(ValueError, match="float32"):
        Volume(np.zeros((4, 4, 4)), Geometry((4, 4, 4), (1.0, 1.0, 1.0)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="geometry"):
        Volume(np.zeros((4, 4, 5), np.float32), Geometry((4, 4, 4), (1.0, 1.0, 1.0)))


def test_a_geometry_takes_numbers_of_any_kind_and_three_of_each() -> None:
    given = Geometry([24, 30, np.int64(32)], np.float32([4.0, 5.0, 4.5]))  # type: ignore[arg-type]
    assert given == Geometry((24, 30, 32), (4.0, 5.0, 4.5))
    for wrong in ({"shape": (24, 30)}, {"spacing_mm": (4.0, 5.0)}, {"origin_lps_mm": (1.0,) * 4}):
        with pytest.raises(ValueError, match="expected three numbers"):
            Geometry(**{"shape": (24, 30, 32), "spacing_mm": (4.0, 5.0, 4.5), **wrong})  # type: ignore[arg-type]


def test_a_cache_may_be_given_as_text(known_model: Path, tmp_path: Path) -> None:
    Segmenter(known_model, threads=1, cache=str(tmp_path / "cache"))
