"""Metrics of a mask against the truth. Pure functions of boolean arrays `(z, y, x)`.

Empty masks: DSC, precision, recall and surface Dice are 1 where prediction and truth are both empty, and 0 where just
one is. So a right "no tumour" scores as right, and no case drops out of a mean. (MONAI's metrics give NaN there, and
count voxels in float32, which stops at 16.7 million; a whole-body scan has more.) The Hausdorff distance is 0 where
both are empty and infinite where just one is: no number of millimetres stands for a missed tumour.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from petseg_runtime.volume import bounding_box

if TYPE_CHECKING:  # `petseg-export verify` counts voxels on machines without PyTorch and MONAI
    import torch

BoolArray = npt.NDArray[np.bool_]


def dice(predicted: BoolArray, truth: BoolArray) -> float:
    """Dice similarity coefficient, 2 TP / (2 TP + FP + FN)."""
    tp, fp, fn = _counts(predicted, truth)
    return 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 1.0


def precision(predicted: BoolArray, truth: BoolArray) -> float:
    """Share of the predicted voxels that are tumour, TP / (TP + FP)."""
    tp, fp, fn = _counts(predicted, truth)
    return tp / (tp + fp) if tp + fp else float(fn == 0)


def recall(predicted: BoolArray, truth: BoolArray) -> float:
    """Share of the tumour's voxels that were predicted, TP / (TP + FN)."""
    tp, fp, fn = _counts(predicted, truth)
    return tp / (tp + fn) if tp + fn else float(fp == 0)


def hausdorff95_mm(predicted: BoolArray, truth: BoolArray, spacing_mm: tuple[float, float, float]) -> float:
    """HD95: the larger of the two directed 95th percentiles of the distances between the surfaces, in mm.

    From MONAI, whose surfaces are the masks' outermost voxels.
    """
    if not (predicted.any() and truth.any()):
        return 0.0 if predicted.any() == truth.any() else float("inf")
    from monai.metrics import compute_hausdorff_distance

    one, other = _cropped(predicted, truth)
    with _no_word_of_the_future():
        return float(compute_hausdorff_distance(one, other, True, percentile=95, spacing=spacing_mm))


def surface_dice(
    predicted: BoolArray, truth: BoolArray, spacing_mm: tuple[float, float, float], tolerance_mm: float
) -> float:
    """Share of both surfaces' area that lies within `tolerance_mm` of the other (Nikolov et al., arXiv 1809.04430)."""
    if not (predicted.any() and truth.any()):
        return float(predicted.any() == truth.any())
    from monai.metrics import compute_surface_dice

    one, other = _cropped(predicted, truth)
    with _no_word_of_the_future():
        return float(compute_surface_dice(one, other, [tolerance_mm], True, spacing=spacing_mm, use_subvoxels=True))


def leakage(predicted: BoolArray, organ: BoolArray) -> float:
    """Share of the predicted mask that lies inside an organ (the bladder); 0 for an empty mask."""
    size = int(np.count_nonzero(predicted))
    return int(np.count_nonzero(predicted & organ)) / size if size else 0.0


@contextmanager
def _no_word_of_the_future() -> Iterator[None]:
    """MONAI's metrics call what MONAI will change, and warn whoever calls them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _cropped(predicted: BoolArray, truth: BoolArray) -> tuple[torch.Tensor, torch.Tensor]:
    """Both masks in the box of both with a margin of one voxel, as `(1, 1, z, y, x)`."""
    import torch

    box = bounding_box(predicted | truth)
    one, other = (torch.from_numpy(np.pad(mask[box], 1))[None, None] for mask in (predicted, truth))
    return one, other


def _counts(predicted: BoolArray, truth: BoolArray) -> tuple[int, int, int]:
    """Voxels that are true positive, false positive, false negative.

    Raises
    ------
    ValueError : if the masks differ in shape.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"masks are {predicted.shape} and {truth.shape}, expected one grid")
    tp = int(np.count_nonzero(predicted & truth))
    return tp, int(np.count_nonzero(predicted)) - tp, int(np.count_nonzero(truth)) - tp
