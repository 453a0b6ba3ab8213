"""Window invariance: how much of a mask stays the same when the windows lie elsewhere.

Instance norm computes its statistics over a window, so what a window holds is an input of the network. A model
whose masks change with the window grid is not shipped (below 0.95), however good its score on one grid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from petseg_runtime.manifest import ModelManifest
from petseg_runtime.preprocessing import preprocess, restore
from petseg_runtime.segmenter import Segmenter
from petseg_runtime.sliding_window import fitted_window, window_places
from petseg_runtime.volume import Volume
from petseg_train.metrics import BoolArray, dice

# Overlaps to compare with the manifest's own.
OVERLAPS = (0.25, 0.5, 0.625)


@dataclass(frozen=True)
class WindowInvariance:
    """DSC between the mask on the standard window grid and those on shifted grids and at other overlaps.

    Overlaps that put the windows of this scan where another does are not among these. All NaN where no grid finds
    anything: masks that are empty agree, and say nothing.
    """

    shifted: tuple[float, ...]
    overlaps: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.shifted + self.overlaps))

    @property
    def lowest(self) -> float:
        return float(np.min(self.shifted + self.overlaps))


def window_invariance(
    segmenter: Segmenter, volume: Volume, rng: np.random.Generator, shifts: int = 3
) -> WindowInvariance:
    """Score one scan.

    The grid is shifted by putting air before and behind the scan, each time and on each axis another random width of up
    to half a window. That moves the windows, spaces them anew, and changes what the outer ones hold, as another field
    of view would.
    """
    manifest = segmenter.manifest
    network_input = preprocess(volume, manifest.preprocessing)
    no_air = [(0, 0)] * 3

    def mask(air: list[tuple[int, int]], overlap: float) -> BoolArray:
        padded = np.pad(network_input.array, air, constant_values=network_input.air)
        moved = replace(network_input, array=padded)
        inside = tuple(slice(before, size - behind) for (before, behind), size in zip(air, padded.shape))
        probabilities = np.ascontiguousarray(segmenter.probabilities(moved, overlap)[inside])
        return restore(probabilities, network_input.frame) >= manifest.threshold

    def draw() -> list[tuple[int, int]]:
        return [(int(rng.integers(1, n // 2 + 1)), int(rng.integers(1, n // 2 + 1))) for n in manifest.patch_size]

    reference = mask(no_air, manifest.overlap)
    shifted = [mask(draw(), manifest.overlap) for _ in range(shifts)]
    others = [mask(no_air, overlap) for overlap in _other_overlaps(manifest, network_input.array.shape)]
    if not reference.any() and not any(found.any() for found in shifted + others):
        return WindowInvariance((np.nan,) * len(shifted), (np.nan,) * len(others))
    return WindowInvariance(
        tuple(dice(found, reference) for found in shifted), tuple(dice(found, reference) for found in others)
    )


def _other_overlaps(manifest: ModelManifest, shape: tuple[int, ...]) -> list[float]:
    """Of `OVERLAPS` those that make a grid of their own.

    Windows are spread evenly, so two overlaps may put them at the same places, and such masks agree whatever the model.
    """
    window = fitted_window(manifest.patch_size, manifest.fit_multiple, shape)
    padded = tuple(max(size, side) for size, side in zip(shape, window))
    grids = [window_places(padded, window, overlap) for overlap in (manifest.overlap, *OVERLAPS)]
    return [overlap for number, overlap in enumerate(OVERLAPS, 1) if grids[number] not in grids[:number]]
