"""Do the backends agree? The same volume through each, compared with a reference.

Tolerances, all in float32:

- `MAX_PROBABILITY_DIFFERENCE` 1e-3: the largest difference of a voxel's probability on the network's grid.
- masks: identical between PyTorch and ONNX Runtime at export (`check_parity`); DSC at least `MIN_MASK_DSC` 0.999
  between backends (`compare`), because a voxel that lies on the threshold may fall to either side.
- MTV and TLG: relative difference at most `MAX_RELATIVE_DIFFERENCE` 1e-3.

`petseg-export verify` exits with 5 when one of them is exceeded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from petseg_runtime.errors import BackendError, ModelError
from petseg_runtime.preprocessing import preprocess
from petseg_runtime.segmenter import Segmenter
from petseg_runtime.volume import Volume
from petseg_train.inference import torch_segmenter
from petseg_train.metrics import dice
from petseg_train.training import SegmentationModule

MAX_PROBABILITY_DIFFERENCE = 1e-3
MIN_MASK_DSC = 0.999
MAX_RELATIVE_DIFFERENCE = 1e-3


@dataclass(frozen=True)
class Agreement:
    """How far one backend is from the reference on one volume."""

    backend: str
    reference: str
    volume: str
    largest_probability_difference: float
    mask_dsc: float
    differing_voxels: int
    mtv_difference: float  # relative
    tlg_difference: float  # relative, of the intensity sum where the unit is unknown

    @property
    def within_tolerance(self) -> bool:
        return (
            self.largest_probability_difference <= MAX_PROBABILITY_DIFFERENCE
            and self.mask_dsc >= MIN_MASK_DSC
            and max(self.mtv_difference, self.tlg_difference) <= MAX_RELATIVE_DIFFERENCE
        )


def compare(segmenters: Sequence[Segmenter], volume: Volume, volume_name: str) -> list[Agreement]:
    """Agreement of each segmenter with the first."""
    results = []
    for segmenter in segmenters:
        network_input = preprocess(volume, segmenter.manifest.preprocessing)
        probabilities = segmenter.probabilities(network_input, segmenter.manifest.overlap)
        results.append((segmenter.backend_name, probabilities, segmenter.segment(volume)))
    reference_name, reference_probabilities, reference = results[0]
    agreements = []
    for name, probabilities, segmentation in results[1:]:
        tumour, expected = segmentation.statistics.tumour, reference.statistics.tumour
        agreements.append(
            Agreement(
                name,
                reference_name,
                volume_name,
                float(np.abs(probabilities - reference_probabilities).max()),
                dice(segmentation.mask > 0, reference.mask > 0),
                int((segmentation.mask != reference.mask).sum()),
                _relative(tumour.mtv_ml, expected.mtv_ml),
                _relative(
                    tumour.mtv_ml * (tumour.intensity_mean or 0.0), expected.mtv_ml * (expected.intensity_mean or 0.0)
                ),
            )
        )
    return agreements


def check_parity(module: SegmentationModule, model: Path, volume: Volume, volume_name: str) -> Agreement:
    """Compare a fresh ONNX file, run by ONNX Runtime, with the network it came from.

    Raises
    ------
    ModelError : if a probability differs by more than 1e-3, or the masks are not identical.
    """
    segmenters = [torch_segmenter(module), Segmenter(model, "cpu", "onnxruntime")]
    (agreement,) = compare(segmenters, volume, volume_name)
    if agreement.largest_probability_difference > MAX_PROBABILITY_DIFFERENCE or agreement.differing_voxels:
        raise ModelError(
            f"{model.name} does not compute what the checkpoint computes: largest probability difference "
            f"{agreement.largest_probability_difference:.1e} (at most {MAX_PROBABILITY_DIFFERENCE:.0e}), "
            f"{agreement.differing_voxels} voxels of the mask differ (none may). The file is not kept."
        )
    return agreement


def require_agreement(agreements: Sequence[Agreement]) -> None:
    """Raise BackendError naming the backends that left the tolerances."""
    drifted = sorted({agreement.backend for agreement in agreements if not agreement.within_tolerance})
    if drifted:
        raise BackendError(f"Out of tolerance: {'; '.join(drifted)}. Do not use it with this model on this machine.")


def _relative(value: float, reference: float) -> float:
    return abs(value - reference) / reference if reference else float(value != 0)
