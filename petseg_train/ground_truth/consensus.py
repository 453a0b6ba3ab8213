"""STAPLE: the statistical consensus of several masks of one tumour (Warfield et al., IEEE TMI 23(7):903-921, 2004)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from petseg_runtime.errors import InputError
from petseg_runtime.volume import MaskArray, bounding_box


@dataclass(frozen=True)
class Consensus:
    """The consensus mask `(z, y, x)`, and how each mask stands to it.

    Attributes
    ----------
    sensitivity, specificity : of each mask, in the order given.
    """

    mask: MaskArray
    sensitivity: tuple[float, ...]
    specificity: tuple[float, ...]


def staple(masks: Sequence[MaskArray]) -> Consensus:
    """The voxels that are tumour with a probability of one half or more, given all masks.

    STAPLE weighs the background, so it is run on the box of all masks with a margin of their own size: in a whole scan
    every mask would look perfect outside the tumour (specificity 1), and the consensus would be their union.

    Raises
    ------
    InputError : if there are fewer than two masks, or they differ in shape.
    """
    if len(masks) < 2 or len({mask.shape for mask in masks}) > 1:
        raise InputError(f"A consensus needs two masks or more of one shape; came {[mask.shape for mask in masks]}.")
    union = np.any([mask > 0 for mask in masks], axis=0)
    if all(np.array_equal(mask > 0, union) for mask in masks):  # also of nothing, and where nothing else is left
        return Consensus(union.astype(np.uint8), (1.0,) * len(masks), (1.0,) * len(masks))
    box = bounding_box(union, [side.stop - side.start for side in bounding_box(union)])
    method = sitk.STAPLEImageFilter()
    method.SetForegroundValue(1)
    images = [sitk.GetImageFromArray((mask[box] > 0).astype(np.uint8)) for mask in masks]
    probability = sitk.GetArrayFromImage(method.Execute(images))
    consensus = np.zeros(union.shape, dtype=np.uint8)
    consensus[box] = probability >= 0.5
    return Consensus(consensus, tuple(method.GetSensitivity()), tuple(method.GetSpecificity()))
