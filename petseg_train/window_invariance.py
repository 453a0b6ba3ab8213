"""Window invariance: how much of a mask stays the same when the windows lie elsewhere.

Instance norm computes its statistics over a window, so what a window holds is an input of the network. A model
whose masks change with the window grid is not shipped (below 0.95), however good its score on one grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from petseg_runtime.preprocessing import NetworkInput, preprocess, restore
from petseg_runtime.segmenter import Segmenter
from petseg_runtime.volume import Volume
from petseg_train.metrics import dice

# Overlaps to compare with the manifest's own.
OVERLAPS = (0.25, 0.5, 0.625)


@dataclass(frozen=True)
class WindowInvariance:
    """DSC between the mask on the standard window grid and those on shifted grids and at other overlaps."""

    shifted: tuple[float, ...]
    overlaps: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.shifted + self.overlaps))

    @property
    def lowest(self) -> float:
        return min(self.shifted + self.overlaps)


def window_invariance(
    segmenter: Segmenter, volume: Volume, rng: np.random.Generator, shifts: int = 3
) -> WindowInvariance:
    """Score one scan.

    The grid is shifted by putting air before the scan, up to half a window on each axis: that moves every window,
    and changes what the outer ones hold, as another field of view would.
    """
    manifest = segmenter.manifest
    network_input = preprocess(volume, manifest.preprocessing)

    def mask(shift: tuple[int, ...], overlap: float) -> np.ndarray:
        padded = np.pad(network_input.array, [(first, 0) for first in shift], constant_values=network_input.air)
        moved = NetworkInput(padded, network_input.air, network_input.frame)
        probabilities = segmenter.probabilities(moved, overlap)[tuple(slice(first, None) for first in shift)]
        return restore(np.ascontiguousarray(probabilities), network_input.frame) >= manifest.threshold

    reference = mask((0, 0, 0), manifest.overlap)
    drawn = [tuple(int(rng.integers(1, side // 2 + 1)) for side in manifest.patch_size) for _ in range(shifts)]
    return WindowInvariance(
        tuple(dice(mask(shift, manifest.overlap), reference) for shift in drawn),
        tuple(dice(mask((0, 0, 0), overlap), reference) for overlap in OVERLAPS if overlap != manifest.overlap),
    )
