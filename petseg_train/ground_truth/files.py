"""A mask for one scan, from files to a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from petseg_runtime import read_volume
from petseg_runtime.errors import InputError, UsageError
from petseg_runtime.io.images import IMAGE_SUFFIXES, image_suffix, write_image
from petseg_runtime.outputs.files import check_output_file, prepare_folder, whole_file
from petseg_runtime.volume import MaskArray, Unit, Volume
from petseg_train.cohort import read_mask_on
from petseg_train.ground_truth.consensus import staple
from petseg_train.ground_truth.flab import flab
from petseg_train.ground_truth.thresholds import fixed_suv, share_of_maximum

_FLAB_CLASSES = {"flab": 2, "flab3": 3}
_SHARES = {"t40": 0.40, "t41": 0.41, "t50": 0.50}


def make_mask(
    scan: Path,
    output: Path,
    method: str,
    voi: Path | None,
    masks: Sequence[Path],
    seed: int,
    unit: str = Unit.UNKNOWN,
    start: Sequence[float] | None = None,
    overwrite: bool = False,
) -> float:
    """Outline the tumour of `scan`, write the mask on the scan's grid, and return its volume in ml.

    Parameters
    ----------
    method : "flab" or "flab3" (inside `voi`), "t40", "t41", "t50" or "suv2.5" (inside `voi`, if there is one), or
        "staple" (the consensus of `masks`).
    unit : of a scan whose file does not say, see `petseg_runtime.read_volume`.
    start : first means of FLAB's hard classes, in the unit of the scan; where its mask does not show the tumour, the
        paper's expert ran it again with others.
    overwrite : also if `output` is there, which an expert may have edited.

    Raises
    ------
    UsageError : if the method lacks its VOI or its masks, or `output` has no image's suffix or is there.
    InputError : if a file cannot be read or lies on another grid, or the method refuses it or finds nothing.
    """
    if not image_suffix(output):
        raise UsageError(f"{output.name} is no image file. End its name in {', '.join(IMAGE_SUFFIXES)}.")
    check_output_file(output, [scan, *masks, *([] if voi is None else [voi])], overwrite)
    volume = read_volume(scan, unit=unit)
    inside = None if voi is None else read_mask_on(volume, voi, "The VOI") > 0
    given = [read_mask_on(volume, path, path.name) for path in masks]
    mask = _mask(volume, method, inside, given, np.random.default_rng(seed), start)
    if not mask.any() and (not given or any(one.any() for one in given)):
        raise InputError(f"{method} finds nothing here, so no mask was written. Look at what it was given.")
    prepare_folder(output.parent)
    with whole_file(output) as temporary:
        write_image(mask, volume.geometry, temporary)
    return float(mask.sum()) * volume.geometry.voxel_volume_ml


def _mask(
    volume: Volume,
    method: str,
    inside: npt.NDArray[np.bool_] | None,
    masks: Sequence[MaskArray],
    rng: np.random.Generator,
    start: Sequence[float] | None,
) -> MaskArray:
    if masks and method != "staple":
        raise UsageError(f"--mask is for --method staple; the method is {method}.")
    if start and method not in _FLAB_CLASSES:
        raise UsageError(f"--start is for --method {' or '.join(_FLAB_CLASSES)}; the method is {method}.")
    if method == "staple":
        if inside is not None:
            raise UsageError("staple takes no --voi: a consensus is made of whole masks.")
        return staple(masks).mask
    if method in _SHARES:
        return share_of_maximum(volume, _SHARES[method], inside)
    if method == "suv2.5":
        return fixed_suv(volume, 2.5, inside)
    if inside is None:
        raise UsageError(
            "FLAB works inside a volume of interest. Pass --voi: a mask round the tumour, without the bladder."
        )
    return flab(volume.array, inside, rng, _FLAB_CLASSES[method], start or None)
