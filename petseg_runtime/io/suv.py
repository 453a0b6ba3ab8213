"""From a PET series' attributes to the factor that makes SUVbw of its voxels. Pure: no files, no pydicom.

    SUVbw [g/ml] = activity concentration [Bq/ml] * body weight [g] / dose [Bq]

where dose and concentration must refer to the same moment. DecayCorrection (0054,1102) says which:

- ADMIN: the voxels are corrected back to the injection, so the dose is used as it is. Decaying it too
  would correct twice (SUV too high by a factor of 1.5 after an hour of uptake).
- START: the voxels are corrected to the start of the scan, so the dose is decayed to that moment, which
  `suv_timing` finds.

Whatever does not fit is refused: no value is assumed, moved or repaired. The single exception is a dose
that can only be meant in MBq, and the note says so.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from petseg_runtime.errors import InputError
from petseg_runtime.io.suv_attributes import (
    CORRECTED_IMAGE,
    DECAY_CORRECTION,
    DOSE,
    HALF_LIFE,
    RADIOPHARMACEUTICAL,
    SUV_TYPE,
    UNITS,
    WEIGHT,
    FrameTiming,
    SuvAttributes,
    merge_attributes,
    refusal,
    required,
)
from petseg_runtime.io.suv_timing import injection_delay_s, scan_start

__all__ = ["FrameTiming", "SuvAttributes", "SuvFactor", "is_convertible", "merge_attributes", "suvbw_factor"]

WEIGHT_RANGE_KG = (1.0, 400.0)
# A diagnostic PET injection. What is outside is a dose in another unit, or not a dose.
DOSE_RANGE_BQ = (1e6, 1e10)
# Below this a dose cannot be Bq (IBSI SUV manual).
MBQ_BELOW = 1e4
# Below this a dose that is not Bq may as well be mCi: 5 to 25 mCi of FDG are 185 to 925 MBq.
MCI_BELOW = 50.0

F18_HALF_LIFE_S = 6586.2
# Vendors write 6586 to 6600 s; 1 % changes SUV by less than 0.5 % after an hour.
F18_HALF_LIFE_TOLERANCE = 0.01
F18_CODES = frozenset({"C-111A1", "77004003"})  # PS3.16 CID 4020, in SRT and in SNOMED CT
_F18_NAMES = ("18f", "f18", "18fluor", "fluorine18", "fdg", "fluorodeoxyglucose", "fludeoxyglucose")


class SuvFactor(NamedTuple):
    """`factor` times a rescaled voxel value is SUVbw in g/ml; `note` says in a sentence where it comes from."""

    factor: float
    note: str


def is_convertible(attributes: SuvAttributes) -> bool:
    """Whether the voxels are in a unit that `suvbw_factor` can turn into SUVbw."""
    return attributes.units == "BQML" or (attributes.units == "GML" and attributes.suv_type in ("", "BW"))


def suvbw_factor(attributes: SuvAttributes) -> SuvFactor:
    """Factor from rescaled voxel values (slope and intercept applied) to SUVbw in g/ml.

    Parameters
    ----------
    attributes : of one series; nothing in it is changed.

    Returns
    -------
    SuvFactor : g/Bq for Units BQML, exactly 1 for Units GML.

    Raises
    ------
    InputError : an attribute that is needed is absent, implausible, or contradicts another one; or the
        Units, SUVType or DecayCorrection is one that PETSeg does not convert.

    References
    ----------
    PS3.3 C.8.9.1 (PET Series) and C.8.9.2 (PET Isotope); IBSI SUV manual, version 3; QIBA, vendor-neutral
    pseudocode of SUV.
    """
    if attributes.units == "GML":
        return _factor_of_suv(attributes)
    if attributes.units == "BQML":
        return _factor_of_activity(attributes)
    raise refusal(f"{UNITS} {_came(attributes.units)}, expected BQML or GML", "in Bq/ml or SUVbw")


def _factor_of_suv(attributes: SuvAttributes) -> SuvFactor:
    if attributes.suv_type not in ("", "BW"):
        raise InputError(
            f"{SUV_TYPE} is {attributes.suv_type}, expected BW (body weight): PETSeg does not convert other SUVs. "
            "Pass a series in Bq/ml or SUVbw."
        )
    # PS3.3 C.8.9.1: "If absent, and the Units (0054,1001) are GML, then the type of SUV shall be assumed to be BW."
    how = f"{SUV_TYPE} BW" if attributes.suv_type else f"no {SUV_TYPE}, which stands for BW"
    return SuvFactor(1.0, f"The voxels are SUVbw already: {UNITS} GML, {how}.")


def _factor_of_activity(attributes: SuvAttributes) -> SuvFactor:
    _check_decay_correction(attributes)
    _check_half_life(attributes)
    weight_kg = _weight_kg(attributes)
    dose_bq, how = _dose_bq(attributes)
    if attributes.decay_correction == "ADMIN":
        decay = 1.0
        how += f", not decayed because the voxels are corrected to the injection ({DECAY_CORRECTION} ADMIN)"
    else:
        half_life_s = required(attributes.half_life_s, HALF_LIFE)
        start, source = scan_start(attributes, half_life_s)
        delay_s = injection_delay_s(attributes, start, half_life_s)
        decay = 2.0 ** (-delay_s / half_life_s)
        how += f", decayed over {delay_s:.0f} s (half-life {half_life_s:g} s) to the scan start, from {source}"
    factor = 1000.0 * weight_kg / (dose_bq * decay)
    return SuvFactor(factor, f"SUVbw is {factor:.6g} times the Bq/ml of the voxels: {weight_kg:g} kg / {how}.")


def _check_decay_correction(attributes: SuvAttributes) -> None:
    correction = attributes.decay_correction
    if correction not in ("START", "ADMIN"):
        raise refusal(f"{DECAY_CORRECTION} {_came(correction)}, expected START or ADMIN", "corrected for decay")
    if attributes.corrected_image and "DECY" not in attributes.corrected_image:
        raise refusal(
            f"{DECAY_CORRECTION} is {correction}, but {CORRECTED_IMAGE} does not list DECY", "in which they agree"
        )


def _check_half_life(attributes: SuvAttributes) -> None:
    if attributes.half_life_s is None:
        return
    half_life_s = required(attributes.half_life_s, HALF_LIFE)
    if half_life_s <= 0:
        raise refusal(f"{HALF_LIFE} is {half_life_s:g} s, expected more than 0", "with the half-life in s")
    far = abs(half_life_s / F18_HALF_LIFE_S - 1.0) > F18_HALF_LIFE_TOLERANCE
    if far and _is_f18(attributes.radionuclide):
        raise refusal(
            f"{HALF_LIFE} is {half_life_s:g} s, expected {F18_HALF_LIFE_S:g} s of F-18, which the series names",
            "in which they agree",
        )


def _is_f18(names: tuple[str, ...]) -> bool:
    plain = [re.sub(r"[^a-z0-9]", "", name.lower()) for name in names]
    return any(name in F18_CODES for name in names) or any(known in name for known in _F18_NAMES for name in plain)


def _weight_kg(attributes: SuvAttributes) -> float:
    weight_kg = required(attributes.weight_kg, WEIGHT)
    low, high = WEIGHT_RANGE_KG
    if not low <= weight_kg <= high:
        raise refusal(f"{WEIGHT} is {weight_kg:g} kg, expected {low:g} to {high:g} kg", "with the weight in kg")
    return weight_kg


def _dose_bq(attributes: SuvAttributes) -> tuple[float, str]:
    """Dose in Bq at the injection, and how it was read."""
    if attributes.injections > 1:
        raise refusal(
            f"{RADIOPHARMACEUTICAL} has {attributes.injections} items, expected one injection", "of one injection"
        )
    dose = required(attributes.dose, DOSE)
    if 0 < dose < MCI_BELOW:
        raise refusal(f"{DOSE} is {dose:g}, which is not Bq and may be MBq or mCi", "with the dose in Bq")
    in_mbq = 0 < dose < MBQ_BELOW
    dose_bq = dose * 1e6 if in_mbq else dose
    low, high = DOSE_RANGE_BQ
    if not low <= dose_bq <= high:
        raise refusal(f"{DOSE} is {dose:g}, expected {low:g} to {high:g} Bq", "with the dose in Bq")
    return dose_bq, f"{dose_bq / 1e6:.5g} MBq" + (f" ({DOSE} is {dose:g}, read as MBq)" if in_mbq else "")


def _came(value: str) -> str:
    return f"is {value}" if value else "is absent"
