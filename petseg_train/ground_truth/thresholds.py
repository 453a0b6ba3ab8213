"""Fixed thresholds, the methods that hospitals use most."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from petseg_runtime.errors import InputError
from petseg_runtime.volume import MaskArray, Unit, Volume


def share_of_maximum(volume: Volume, share: float, voi: npt.NDArray[np.bool_] | None = None) -> MaskArray:
    """Every voxel `(z, y, x)` of at least `share` of the largest value, in the scan or in the VOI.

    Raises
    ------
    InputError : if the share is not between 0 and 1, the VOI is empty, or there is no uptake in it.
    """
    if not 0 < share < 1:
        raise InputError(f"The share of the maximum is {share}, expected more than 0 and less than 1.")
    inside = _inside(volume, voi)
    maximum = float(volume.array[inside].max())
    if maximum <= 0:
        raise InputError(f"The largest value is {maximum:g}, expected more than 0. Draw the VOI round the tumour.")
    return ((volume.array >= share * maximum) & inside).astype(np.uint8)


def fixed_suv(volume: Volume, suv: float, voi: npt.NDArray[np.bool_] | None = None) -> MaskArray:
    """Every voxel `(z, y, x)` of at least this SUV, in the scan or in the VOI.

    Raises
    ------
    InputError : if the scan's values are not SUVbw, or the VOI is empty.
    """
    if volume.unit is not Unit.SUVBW:
        raise InputError(
            f"A threshold in SUV needs a scan in SUVbw, and this is in {volume.unit.value}. Pass --unit suvbw if it is."
        )
    return ((volume.array >= suv) & _inside(volume, voi)).astype(np.uint8)


def _inside(volume: Volume, voi: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_]:
    inside = np.ones(volume.array.shape, dtype=bool) if voi is None else voi
    if not inside.any():
        raise InputError("The VOI is empty. Draw it round the tumour.")
    return inside


def t40(volume: Volume) -> MaskArray:
    """T40: every voxel of at least 40 % of the scan's largest value, on the whole image (the paper's rival)."""
    return share_of_maximum(volume, 0.4)
