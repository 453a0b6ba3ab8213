"""Metrics of a mask against the truth. Pure functions of boolean arrays `(z, y, x)`.

Empty masks: DSC, precision and recall are 1 where prediction and truth are both empty, and 0 where just one is. So a
right "no tumour" scores as right, and no case drops out of a mean. (MONAI's metrics give NaN there, and count voxels
in float32, which stops at 16.7 million; a whole-body scan has more.)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

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
