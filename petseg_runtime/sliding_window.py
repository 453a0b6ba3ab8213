"""Sliding window: where the windows lie, how much each voxel of one counts, and their weighted mean. Pure NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product

import numpy as np

from petseg_runtime.volume import Box, FloatArray, Shape

Predict = Callable[[Iterable[FloatArray]], Iterator[FloatArray]]
Progress = Callable[[int, int], None]

# Standard deviation of the Gaussian importance, as a share of the window's side (nnU-Net and MONAI use the same).
IMPORTANCE_SIGMA = 0.125


def window_starts(size: int, window: int, overlap: float) -> list[int]:
    """First voxels of the windows along one axis: evenly spread, the first at 0, the last ending at `size`.

    Parameters
    ----------
    size : voxels along the axis, at least `window`.
    overlap : smallest share of a window that it has in common with the next one, in `[0, 1)`.

    Raises
    ------
    ValueError : if the window does not fit or the overlap is out of range.
    """
    if not 0 < window <= size:
        raise ValueError(f"window of {window} voxels does not fit an axis of {size}")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap is {overlap}, expected at least 0 and below 1")
    longest_step = max(1, int(window * (1 - overlap)))
    steps = -(-(size - window) // longest_step)
    return [round(i * (size - window) / steps) for i in range(steps + 1)] if steps else [0]


def window_places(shape: tuple[int, ...], window: Shape, overlap: float) -> list[Box]:
    """Where the windows lie in an array of `shape`, no side of which is less than the window's; see `window_starts`."""
    starts = product(*(window_starts(size, side, overlap) for size, side in zip(shape, window)))
    return [(slice(z, z + window[0]), slice(y, y + window[1]), slice(x, x + window[2])) for z, y, x in starts]


def gaussian_importance(window: Shape) -> FloatArray:
    """Weight `(z, y, x)` of each voxel of a window: 1 in the middle, falling towards the faces, never 0."""
    profiles = []
    for size in window:
        distance = np.arange(size) - (size - 1) / 2
        profiles.append(np.exp(-0.5 * (distance / (IMPORTANCE_SIGMA * size)) ** 2))
    importance = profiles[0][:, None, None] * profiles[1][:, None] * profiles[2]
    importance /= importance.max()
    positive: FloatArray = np.maximum(importance, 1e-3).astype(np.float32)
    return positive


def fitted_window(patch: Shape, multiple: int, shape: tuple[int, ...]) -> Shape:
    """The window for an array of `shape`: `patch`, but no wider along an axis than the array needs.

    Air beyond a body that is thinner than the patch costs as much as the body, and shifts the instance norm. So the
    side becomes the array's, rounded up to `multiple` (at least two of them, at most the patch's).

    Parameters
    ----------
    multiple : what the network's sides are multiples of; 0 where its windows always have the size of the patch.
    """
    if not multiple:
        return patch
    z, y, x = (min(side, max(2, -(-size // multiple)) * multiple) for side, size in zip(patch, shape))
    return z, y, x


def pad_to_window(array: FloatArray, window: Shape, air: float) -> tuple[FloatArray, Box]:
    """Pad with air on both sides to at least one window; also where the original lies in the result."""
    missing = [max(0, size - have) for size, have in zip(window, array.shape)]
    inside = [slice(gap // 2, gap // 2 + have) for gap, have in zip(missing, array.shape)]
    if not any(missing):
        return array, (inside[0], inside[1], inside[2])
    padded = np.pad(array, [(gap // 2, gap - gap // 2) for gap in missing], constant_values=air)
    return padded, (inside[0], inside[1], inside[2])


def sliding_window_probabilities(
    array: FloatArray,
    window: Shape,
    overlap: float,
    air: float,
    predict: Predict,
    progress: Progress | None = None,
    body_level: float = -np.inf,
) -> FloatArray:
    """Probability of each voxel: the importance-weighted mean of the windows that cover it.

    Parameters
    ----------
    array : normalised voxels `(z, y, x)`.
    window : voxels of one window `(z, y, x)`; a smaller array is padded with `air`.
    overlap : smallest share that neighbouring windows have in common.
    predict : maps windows `(1, 1, z, y, x)`, taken one by one, to probabilities of the same shape, in their order. A
        GPU takes the next window while it computes one.
    progress : called with windows done and windows in all, after each.
    body_level : a window without a voxel above it is air, and counts as one without tumour; the network does not see
        it.

    Returns
    -------
    float32 `(z, y, x)` of the shape of `array`.
    """
    padded, inside = pad_to_window(array, window, air)
    places = window_places(padded.shape, window, overlap)
    importance = gaussian_importance(window)
    total = np.zeros(padded.shape, dtype=np.float32)
    seen = [here for here in places if padded[here].max() > body_level]
    windows = (np.ascontiguousarray(padded[here])[None, None] for here in seen)
    for done, (here, probabilities) in enumerate(zip(seen, predict(windows), strict=True), 1):
        total[here] += importance * probabilities[0, 0]
        if progress:
            progress(done, len(seen))
    _divide_by_importance(total, places, importance)
    return np.ascontiguousarray(total[inside])


def _divide_by_importance(total: FloatArray, places: Sequence[Box], importance: FloatArray) -> None:
    """Divide each voxel by the importance it has in all windows together, slice by slice: a volume less in memory.

    The sum of the importance is in float64, which costs nothing for one slice, so only that of the windows rounds.
    """
    for number in range(len(total)):
        weight = np.zeros(total.shape[1:])
        for z, y, x in places:
            if z.start <= number < z.stop:
                weight[y, x] += importance[number - z.start]
        total[number] /= weight
