"""What any PET volume must look like, whatever file it came from."""

from __future__ import annotations

import numpy as np

from petseg_runtime.errors import InputError, MemoryBudgetError
from petseg_runtime.volume import FloatArray, Shape, Triple

# More voxels than any PET: a total-body scan has 440 x 440 x 1600.
MAX_VOXELS = 1_000_000_000
# Small-animal scanners go down to 0.3 mm, old whole-body ones up to 10; beyond it is a wrong unit.
SPACING_RANGE_MM = (0.2, 20.0)
# A PET holds many thousands of different values, a label map a handful, or up to 256 in flat regions.
_LABEL_MAP_VALUES = 16
_LABEL_MAP_VALUES_IN_REGIONS = 256
_FLAT = 0.8  # share of the voxels above 0 whose neighbour is equal
# Of the dose: more cannot be in a scan but for the errors of its calibration, and far more is in none.
_MOST_OF_THE_DOSE, _IMPOSSIBLE_SHARE = 1.3, 5.0
HEAVIEST_KG = 400.0
# Reconstructions without a positivity constraint go a little below zero, and filtered back-projection far; CT goes down
# to -100 in fat, to -1000 in air, and to -3024 beyond its field of view.
_MOST_NEGATIVE = 0.1
_CT_LOWEST = (-3100.0, -50.0)
# And their noise in air cancels. In CT the air outweighs all else, however bright an implant is.
_MOST_BELOW = 0.5


def check_grid(shape: Shape, spacing_mm: Triple, name: str, max_voxels: int = MAX_VOXELS) -> None:
    """Refuse a header before anything is allocated for it.

    Parameters
    ----------
    max_voxels : that the memory budget has room for.

    Raises
    ------
    MemoryBudgetError : if it claims more voxels than that.
    InputError : if it claims more voxels than a PET has, or voxels of an impossible size.
    """
    if np.prod(shape, dtype=np.float64) > MAX_VOXELS:
        raise InputError(f"{name} claims {_by(shape)} voxels, more than a PET scan can have.")
    if np.prod(shape, dtype=np.float64) > max_voxels:
        raise MemoryBudgetError(
            f"{name} has {_by(shape)} voxels, and the memory budget is enough for {max_voxels:.2g}. Raise it, or cut "
            "the scan."
        )
    low, high = SPACING_RANGE_MM
    if not all(low <= spacing <= high for spacing in spacing_mm):
        spacing = _by(tuple(f"{value:g}" for value in spacing_mm))
        raise InputError(f"{name} has voxels of {spacing} mm (z, y, x), expected {low:g} to {high:g} mm a side.")


def check_uptake(array: FloatArray, name: str) -> None:
    """Refuse voxels `(z, y, x)` without uptake to segment.

    Raises
    ------
    InputError : if a voxel is NaN or infinite, or none is above 0.
    """
    odd = int(np.count_nonzero(~np.isfinite(array)))
    if odd:
        raise InputError(f"{name} holds {odd} voxels that are NaN or infinite. Repair the scan; PETSeg fills no gaps.")
    high = float(array.max())
    if high <= 0:
        raise InputError(f"{name} holds no value above 0 (largest {high:g}): there is no uptake in it.")


def check_activity(array: FloatArray, voxel_ml: float, weight_kg: float | None, name: str) -> tuple[str, ...]:
    """Hold SUVbw `(z, y, x)` against what was injected: voxels times their volume sum up to a body's weight at most.

    SUVbw times a volume is the share of the dose in it, times the weight. A whole body holds less than the dose,
    as some of it was voided. Where the weight is not known, the heaviest patient's is taken.

    Returns
    -------
    A warning where the scan holds more.

    Raises
    ------
    InputError : if it holds far more: dose, weight, times or unit are not those of the scan.
    """
    if not weight_kg or not 0 < weight_kg < HEAVIEST_KG:
        weight_kg = HEAVIEST_KG
    share = float(array.sum(dtype=np.float64)) * voxel_ml / 1000 / weight_kg
    if share <= _MOST_OF_THE_DOSE:
        return ()
    said = (
        f"{name} holds {share:.1f} times the activity that was injected into a patient of {weight_kg:g} kg, by its SUV"
    )
    if share > _IMPOSSIBLE_SHARE:
        raise InputError(
            f"{said}: its unit, dose, weight or times are wrong. Pass a scan in which they are right, or give them as "
            "--unit, --injected-dose-mbq, --patient-weight-kg and --injection-time."
        )
    return (f"{said}. Check its unit, dose, weight and times, and SUV.",)


def check_modality(array: FloatArray, name: str) -> None:
    """Refuse voxels `(z, y, x)` of a file that does not say its modality, and that look like another one's.

    Raises
    ------
    InputError : if they are all alike, or look like CT or a label map.
    """
    low, high = float(array.min()), float(array.max())
    if low == high:
        raise InputError(f"{name} holds the same value ({low:g}) in every voxel: there is no uptake in it.")
    is_as_ct = _CT_LOWEST[0] < low < _CT_LOWEST[1] and low < -_MOST_NEGATIVE * high
    if is_as_ct or (low < 0 and _is_mostly_below(array)):
        raise InputError(
            f"{name} holds values from {low:g} to {high:g}; PET has no such negative uptake. Is it CT? Pass the PET."
        )
    if _is_label_map(array):
        raise InputError(f"{name} holds a few whole numbers only: a mask or label map, not a PET scan.")


def _is_mostly_below(array: FloatArray) -> bool:
    below, above = (float(array.sum(where=part, dtype=np.float64)) for part in (array < 0, array > 0))
    return -below > _MOST_BELOW * above


def _is_label_map(array: FloatArray) -> bool:
    sample = np.sort(array.ravel()[:: max(1, array.size // 1_000_000)])
    values = sample[np.append(True, sample[1:] != sample[:-1])]  # np.unique imports masked arrays, and takes its time
    if len(values) > _LABEL_MAP_VALUES_IN_REGIONS or not (values == np.round(values)).all():
        return False
    here, beside = array[..., :-1], array[..., 1:]
    inside = here > 0
    flat = int((inside & (here == beside)).sum()) > _FLAT * int(inside.sum())
    return len(values) <= _LABEL_MAP_VALUES or flat


def _by(sides: tuple[object, ...]) -> str:
    return " x ".join(map(str, sides))
