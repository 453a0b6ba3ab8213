"""Probabilities on the scan's own grid to a mask, and the mask to lesions."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from petseg_runtime.volume import FloatArray, MaskArray, bounding_box


def threshold_mask(probabilities: FloatArray, threshold: float) -> MaskArray:
    """1 where the probability is at least `threshold`."""
    return (probabilities >= threshold).astype(np.uint8)


def label_lesions(mask: MaskArray) -> npt.NDArray[np.uint32]:
    """Number the lesions of a mask `(z, y, x)` from the largest (1) down; 0 outside.

    Voxels that share a face, an edge or a corner belong to one lesion.
    """
    labels = np.zeros(mask.shape, dtype=np.uint32)
    if mask.any():
        box = bounding_box(mask)
        components = sitk.ConnectedComponent(sitk.GetImageFromArray(np.ascontiguousarray(mask[box])), True)
        labels[box] = sitk.GetArrayFromImage(sitk.RelabelComponent(components))
    return labels
