"""Windows: where they lie, how they are blended. MONAI's inferer is the independent implementation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from monai.data.utils import compute_importance_map
from monai.inferers import sliding_window_inference

from petseg_runtime.sliding_window import (
    fitted_window,
    gaussian_importance,
    pad_to_window,
    sliding_window_probabilities,
    window_starts,
)


@given(size=st.integers(1, 400), window=st.integers(1, 128), overlap=st.floats(0, 0.95))
def test_windows_cover_the_axis_and_overlap_as_asked(size: int, window: int, overlap: float) -> None:
    size = max(size, window)
    starts = window_starts(size, window, overlap)
    assert starts[0] == 0
    assert starts[-1] + window == size
    steps = np.diff(starts)
    assert (steps >= 1).all()
    assert (steps <= max(1, window * (1 - overlap))).all() or len(starts) == 1


@pytest.mark.parametrize(
    ("size", "window", "overlap", "expected"),
    [(64, 64, 0.5, [0]), (65, 64, 0.5, [0, 1]), (128, 64, 0.5, [0, 32, 64]), (100, 64, 0.25, [0, 36])],
)
def test_window_starts_by_hand(size: int, window: int, overlap: float, expected: list[int]) -> None:
    assert window_starts(size, window, overlap) == expected


@pytest.mark.parametrize(("size", "window", "overlap"), [(10, 11, 0.5), (10, 0, 0.5), (10, 5, 1.0), (10, 5, -0.1)])
def test_impossible_windows_are_refused(size: int, window: int, overlap: float) -> None:
    with pytest.raises(ValueError, match=r"window|overlap"):
        window_starts(size, window, overlap)


def test_importance_is_monais() -> None:
    # MONAI centres its Gaussian on a voxel of an even window; ours lies between the two middle voxels, as the window
    # does. On an odd window the two agree.
    ours = gaussian_importance((15, 21, 9))
    theirs = compute_importance_map((15, 21, 9), mode="gaussian", sigma_scale=0.125).numpy()
    np.testing.assert_allclose(ours, np.maximum(theirs, 1e-3), atol=1e-5)


@pytest.mark.parametrize("window", [(16, 16, 16), (8, 12, 16)])
def test_importance_is_symmetric(window: tuple[int, int, int]) -> None:
    importance = gaussian_importance(window)
    np.testing.assert_array_equal(importance, importance[::-1, ::-1, ::-1])


@settings(max_examples=30, deadline=None)
@example(shape=(10, 21, 21), window=(6, 9, 9), overlap=0.78125, seed=0)
@given(
    shape=st.tuples(*[st.integers(3, 24)] * 3),
    window=st.tuples(*[st.integers(4, 10)] * 3),
    overlap=st.floats(0, 0.8),
    seed=st.integers(0, 1000),
)
def test_blending_changes_nothing_for_a_network_that_looks_at_one_voxel(
    shape: tuple[int, int, int], window: tuple[int, int, int], overlap: float, seed: int
) -> None:
    array = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    blended = sliding_window_probabilities(array, window, overlap, -1.0, lambda windows: map(np.tanh, windows))
    # At most 1,000 windows of these sizes lie over a voxel, and each addition in float32 rounds by 2^-24 of the sum.
    np.testing.assert_allclose(blended, np.tanh(array), atol=1000 * 2**-24)


def test_agrees_with_monai_for_a_network_that_looks_around() -> None:
    array = np.random.default_rng(0).normal(size=(27, 27, 27)).astype(np.float32)
    convolution = torch.nn.Conv3d(1, 1, 3, padding=1)

    def predict(windows: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for window in windows:
            with torch.inference_mode():
                yield convolution(torch.from_numpy(window)).numpy()

    # Windows of 9 in an axis of 27 with overlap 1/3 start at 0, 6, 12, 18 in both.
    ours = sliding_window_probabilities(array, (9, 9, 9), 1 / 3, 0.0, predict)
    with torch.inference_mode():
        theirs = sliding_window_inference(
            torch.from_numpy(array)[None, None], (9, 9, 9), 1, convolution, overlap=1 / 3, mode="gaussian"
        )
    np.testing.assert_allclose(ours, theirs[0, 0].numpy(), atol=1e-5)


def test_padding_is_air_and_the_scan_lies_in_the_middle() -> None:
    array = np.ones((4, 10, 7), dtype=np.float32)
    padded, inside = pad_to_window(array, (8, 8, 8), -0.7)
    assert padded.shape == (8, 10, 8)
    np.testing.assert_array_equal(padded[inside], array)
    assert padded[0, 0, 0] == np.float32(-0.7)
    assert inside[0] == slice(2, 6)


def test_progress_counts_every_window() -> None:
    seen = []
    sliding_window_probabilities(
        np.zeros((16, 8, 8), np.float32),
        (8, 8, 8),
        0.5,
        0.0,
        iter,
        lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("multiple", "shape", "expected"),
    [
        (0, (30, 70, 200), (64, 128, 128)),  # windows always have the size of the patch
        (16, (437, 70, 110), (64, 80, 112)),
        (16, (437, 64, 200), (64, 64, 128)),
        (16, (10, 10, 10), (32, 32, 32)),  # two multiples are the least: a norm over one voxel is nothing
    ],
)
def test_a_window_is_no_wider_than_the_body_needs(
    multiple: int, shape: tuple[int, int, int], expected: tuple[int, int, int]
) -> None:
    assert fitted_window((64, 128, 128), multiple, shape) == expected


def test_the_network_does_not_see_windows_that_hold_only_air() -> None:
    array = np.full((32, 8, 8), -0.5, np.float32)
    array[:16] = 1.0
    seen = []

    def always(windows: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for window in windows:
            seen.append(window)
            yield np.ones_like(window)

    found = sliding_window_probabilities(array, (8, 8, 8), 0.0, -0.5, always, body_level=0.0)
    assert len(seen) == 2
    np.testing.assert_array_equal(found[:16], 1.0)
    np.testing.assert_array_equal(found[16:], 0.0)
