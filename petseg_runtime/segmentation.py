"""Segmentation: what a run knows when it is done."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from petseg_runtime.quantification import LesionStatistics, ScanStatistics
from petseg_runtime.volume import FloatArray, Geometry, MaskArray


@dataclass(frozen=True)
class Segmentation:
    """The tumour of one scan, on the scan's own grid.

    Attributes
    ----------
    mask : uint8 `(z, y, x)`, 1 in the tumour.
    lesion_labels : `(z, y, x)`, 0 outside, 1 to n in the lesions, the largest first.
    probabilities : float32 `(z, y, x)`; 0 outside the body.
    geometry : that of the scan.
    statistics : quantities of the scan, the tumour and each lesion.
    timings_s : seconds of each stage.
    warnings : what to mind of how scan and model go together, a sentence each.
    """

    mask: MaskArray
    lesion_labels: npt.NDArray[np.uint32]
    probabilities: FloatArray
    geometry: Geometry
    statistics: ScanStatistics
    timings_s: dict[str, float]
    warnings: tuple[str, ...] = ()

    @property
    def lesions(self) -> tuple[LesionStatistics, ...]:
        return self.statistics.lesions
