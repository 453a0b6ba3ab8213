"""Do the backends agree? The same volume through each, compared with a reference.

Tolerances, all in float32:

- `MAX_PROBABILITY_DIFFERENCE` 1e-3: the largest difference of a voxel's probability on the network's grid.
- masks: identical between PyTorch and ONNX Runtime at export (`check_parity`); DSC at least `MIN_MASK_DSC` 0.999
  between backends (`compare`), because a voxel that lies on the threshold may fall to either side.
- MTV and TLG: relative difference at most `MAX_RELATIVE_DIFFERENCE` 1e-3.

In bf16 and fp16 single probabilities on an edge may be far off, so the masks decide: DSC at least
`MIN_MASK_DSC_REDUCED` 0.995, MTV and TLG within `MAX_RELATIVE_DIFFERENCE_REDUCED` 1e-2.

`petseg-export verify` exits with 5 when one of them is exceeded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from petseg_runtime.errors import BackendError, ModelError
from petseg_runtime.manifest import ModelManifest, read_model
from petseg_runtime.postprocessing import label_lesions, threshold_mask
from petseg_runtime.preprocessing import preprocess, restore
from petseg_runtime.quantification import RegionStatistics, quantify
from petseg_runtime.segmenter import Segmenter
from petseg_runtime.self_test import candidates
from petseg_runtime.volume import FloatArray, MaskArray, Volume
from petseg_train.metrics import dice

if TYPE_CHECKING:  # PyTorch is needed where there is a checkpoint only
    from petseg_train.training import SegmentationModule

MAX_PROBABILITY_DIFFERENCE = 1e-3
MIN_MASK_DSC = 0.999
MAX_RELATIVE_DIFFERENCE = 1e-3
MIN_MASK_DSC_REDUCED = 0.995
MAX_RELATIVE_DIFFERENCE_REDUCED = 1e-2


@dataclass(frozen=True)
class Agreement:
    """How far one backend is from the reference on one volume."""

    model: str
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
        if not self.backend.endswith("f32"):
            return (
                self.mask_dsc >= MIN_MASK_DSC_REDUCED
                and max(self.mtv_difference, self.tlg_difference) <= MAX_RELATIVE_DIFFERENCE_REDUCED
            )
        return (
            self.largest_probability_difference <= MAX_PROBABILITY_DIFFERENCE
            and self.mask_dsc >= MIN_MASK_DSC
            and max(self.mtv_difference, self.tlg_difference) <= MAX_RELATIVE_DIFFERENCE
        )


def segmenters_of(model: Path, checkpoint: Path | None = None) -> tuple[list[Segmenter], tuple[str, ...]]:
    """The model on every backend and precision of this machine, PyTorch first where there is a checkpoint.

    Returns
    -------
    The segmenters, and a sentence for each backend that does not work here.

    Raises
    ------
    ModelError : if the model or checkpoint cannot be read.
    BackendError : if fewer than two of them work.
    """
    model_file = read_model(model)
    found = []
    if checkpoint is not None:
        from petseg_train.inference import torch_segmenter
        from petseg_train.training import load_module

        found.append(torch_segmenter(load_module(checkpoint)))
    passed_over = []
    for open_it in candidates(model_file, model, None):  # ONNX Runtime first: the reference without a checkpoint
        try:
            found.append(Segmenter.from_backend(model_file.manifest, open_it()))
        except (BackendError, ModelError) as error:
            passed_over.append(str(error))
    if len(found) < 2:
        here = ", ".join(segmenter.backend_name for segmenter in found) or "none"
        raise BackendError(
            f"There is nothing to compare: of two backends or more, here works {here}. Install petseg[onnxruntime], or "
            f"pass --checkpoint. {' '.join(passed_over)}".rstrip()
        )
    return found, tuple(passed_over)


def compare(segmenters: Sequence[Segmenter], volume: Volume, volume_name: str) -> list[Agreement]:
    """Agreement of each segmenter with the first, on a volume in which the first finds a tumour.

    Raises
    ------
    ModelError : if a segmenter prepares the volume otherwise than the first, gives a probability that is no number,
        or the first finds no tumour: two empty masks agree and prove nothing.
    """
    reference, *others = segmenters
    expected = _infer(reference, volume)
    if not expected.mask.any():
        raise ModelError(f"{reference.backend_name} finds no tumour in {volume_name}. Pass a scan in which it does.")
    agreements = []
    for segmenter in others:
        if _input_of(segmenter.manifest) != _input_of(reference.manifest):
            raise ModelError(
                f"{segmenter.backend_name} and {reference.backend_name} do not run the same model: preprocessing, "
                "patch size, overlap or threshold differ. Pass the model's own checkpoint."
            )
        found = _infer(segmenter, volume)
        agreements.append(
            Agreement(
                segmenter.manifest.name,
                segmenter.backend_name,
                reference.backend_name,
                volume_name,
                float(np.abs(found.probabilities - expected.probabilities).max()),
                dice(found.mask > 0, expected.mask > 0),
                int((found.mask != expected.mask).sum()),
                _relative(found.tumour.mtv_ml, expected.tumour.mtv_ml),
                _relative(_total_uptake(found.tumour), _total_uptake(expected.tumour)),
            )
        )
    return agreements


class _Inference(NamedTuple):
    probabilities: FloatArray  # on the network's grid, where no interpolation hides a difference
    mask: MaskArray  # on the scan's grid
    tumour: RegionStatistics


def _infer(segmenter: Segmenter, volume: Volume) -> _Inference:
    network_input = preprocess(volume, segmenter.manifest.preprocessing)
    probabilities = segmenter.probabilities(network_input, segmenter.manifest.overlap)
    mask = threshold_mask(restore(probabilities, network_input.frame), segmenter.manifest.threshold)
    return _Inference(probabilities, mask, quantify(volume, label_lesions(mask)).tumour)


def _input_of(manifest: ModelManifest) -> tuple[object, ...]:
    return manifest.preprocessing, manifest.patch_size, manifest.fit_multiple, manifest.overlap, manifest.threshold


def _total_uptake(region: RegionStatistics) -> float:
    return region.mtv_ml * (region.intensity_mean or 0.0)


def check_parity(module: SegmentationModule, model: Path, volume: Volume, volume_name: str) -> Agreement:
    """Compare a fresh ONNX file, run by ONNX Runtime, with the network it came from.

    Raises
    ------
    ModelError : if a probability differs by more than 1e-3, or the masks are not identical.
    """
    from petseg_train.inference import torch_segmenter

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
    drifted = sorted({f"{a.backend} with {a.model}" for a in agreements if not a.within_tolerance})
    if drifted:
        raise BackendError(f"Out of tolerance: {'; '.join(drifted)}. Do not use them together on this machine.")


def _relative(value: float, reference: float) -> float:
    return abs(value - reference) / reference if reference else float(value != 0)
