"""From a PET series' attributes to the factors that make SUVbw of its voxels. Pure: no files, no pydicom.

    SUVbw [g/ml] = activity concentration [Bq/ml] * body weight [g] / dose [Bq]

where dose and concentration must refer to the same moment. DecayCorrection (0054,1102) says which:

- ADMIN: the voxels are corrected back to the injection, so the dose is used as it is. Decaying it too
  would correct twice (SUV too high by a factor of 1.5 after an hour of uptake).
- START: the voxels are corrected to the start of the scan, so the dose is decayed to that moment, which
  `suv_timing` finds.
- NONE: the voxels are not corrected, so the dose is decayed to the moment of each slice's own frame at which
  its activity is the average of the frame.

Units (0054,1001) BQML is activity concentration. CNTS is turned into it, or into SUVbw, by Philips' private factors.
GML and CM2ML are SUVs already; those that refer to lean mass, ideal weight or body surface are turned to body weight.

Whatever does not fit is refused: no value is assumed, moved or repaired. There are two exceptions, a dose that can only
be meant in MBq and dates that anonymisation moved or removed; a note or a warning says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import NamedTuple

from petseg_runtime.errors import InputError
from petseg_runtime.io.body_size import MASSES_KG, body_surface_cm2
from petseg_runtime.io.plausible import HEAVIEST_KG
from petseg_runtime.io.suv_attributes import (
    ACQUISITION_TIME,
    CORRECTED_IMAGE,
    DECAY_CORRECTED_TO,
    DECAY_CORRECTION,
    DECAY_FACTOR,
    DOSE,
    FRAME_DURATION,
    FRAME_REFERENCE_TIME,
    HALF_LIFE,
    HEIGHT,
    INJECTION_DATETIME,
    NO_OVERRIDES,
    OPTIONS,
    PHILIPS_ACTIVITY,
    PHILIPS_SUV,
    RADIOPHARMACEUTICAL,
    SEX,
    SUV_TYPE,
    UNITS,
    WEIGHT,
    Frame,
    SuvAttributes,
    SuvOverrides,
    is_undated,
    merge_attributes,
    refusal,
    required,
)
from petseg_runtime.io.suv_timing import (
    DECAY_FACTOR_TOLERANCE,
    OTHER_DAY_S,
    acquisition_of,
    average_activity_time_s,
    injection_delay_s,
    is_usual_delay,
    scan_start,
    start_alone_s,
    unlike_decay_factors_s,
    unlike_frame_reference_s,
)
from petseg_runtime.io.tracer import (
    F18,
    HALF_LIFE_RANGE_S,
    HALF_LIFE_TOLERANCE,
    HALF_LIVES_S,
    OTHER_HALF_LIFE_TOLERANCE,
    nuclide_of,
)

__all__ = [
    "Frame",
    "SuvAttributes",
    "SuvFactors",
    "SuvOverrides",
    "is_convertible",
    "is_direct",
    "merge_attributes",
    "suvbw_factors",
]

WEIGHT_RANGE_KG = (1.0, HEAVIEST_KG)
# A diagnostic PET injection. What is outside is a dose in another unit, or not a dose.
DOSE_RANGE_BQ = (1e6, 1e10)
# Below this a dose cannot be Bq (IBSI SUV manual).
MBQ_BELOW = 1e4
# Below this a dose that is not Bq may as well be mCi: 5 to 25 mCi of FDG are 185 to 925 MBq.
MCI_BELOW = 50.0
# And from here on µCi: hardly a patient gets 1 GBq for a PET, but 1 to 10 mCi.
UCI_ABOVE = 1000.0

# What hardly a patient gets of F-18 (2 to 10 MBq/kg are usual), or has for a body mass index in kg/m².
F18_MOST_MBQ_PER_KG = 25.0
BODY_MASS_INDEX_RANGE = (10.0, 50.0)

# A patient's height. What is outside is a height in cm or feet, or none.
HEIGHT_RANGE_M = (0.4, 2.6)
# Philips' two factors agree but for their rounding and the residue in the syringe.
PHILIPS_TOLERANCE = 0.05


class SuvFactors(NamedTuple):
    """`per_frame[k]` times a rescaled voxel value of slice k is SUVbw in g/ml.

    `note` says in a sentence where they come from, `warnings` what is odd about them (mostly nothing).
    """

    per_frame: tuple[float, ...]
    note: str
    warnings: tuple[str, ...] = ()


def is_convertible(attributes: SuvAttributes) -> bool:
    """Whether the voxels of one slice are in a unit that `suvbw_factors` can turn into SUVbw."""
    if attributes.units == "GML":
        return attributes.suv_type in ("", "BW", *MASSES_KG)
    if attributes.units == "CM2ML":
        return attributes.suv_type in ("", "BSA")
    if attributes.units == "CNTS":
        return any(frame.philips_suv or frame.philips_activity for frame in attributes.frames)
    return attributes.units == "BQML"


def is_direct(attributes: SuvAttributes) -> bool:
    """Whether the voxels are activity or SUVbw themselves, not an SUV of another size or counts."""
    return attributes.units == "BQML" or (attributes.units == "GML" and attributes.suv_type in ("", "BW"))


def suvbw_factors(attributes: SuvAttributes, overrides: SuvOverrides = NO_OVERRIDES) -> SuvFactors:
    """Factors from rescaled voxel values (slope and intercept applied) to SUVbw in g/ml.

    Parameters
    ----------
    attributes : of one series, with the frame of every slice; nothing in it is changed.
    overrides : what the user says in place of the header.

    Returns
    -------
    SuvFactors : one for each frame; g/Bq for Units BQML, exactly 1 for Units GML with body weight.

    Raises
    ------
    InputError : an attribute that is needed is absent, implausible, or contradicts another one; or the
        Units, SUVType or DecayCorrection is one that PETSeg does not convert; or an override changes nothing.

    References
    ----------
    PS3.3 C.8.9.1 (PET Series) and C.8.9.2 (PET Isotope); IBSI SUV manual, version 3; QIBA, vendor-neutral
    pseudocode of SUV.
    """
    if not attributes.frames:
        attributes = replace(attributes, frames=(Frame(),))
    attributes, told = overrides.apply(attributes)
    makers = {
        "BQML": _from_bqml,
        "CNTS": _from_philips_counts,
        "GML": _from_suv_of_a_mass,
        "CM2ML": _from_suv_of_the_surface,
    }
    if attributes.units not in makers:
        raise refusal(f"{UNITS} {_came(attributes.units)}, expected BQML, GML, CM2ML or CNTS", "in Bq/ml or SUVbw")
    factors = makers[attributes.units](attributes, overrides)
    return factors._replace(warnings=(*told, *factors.warnings))


def suvbw_of_activity(weight_kg: float, dose_mbq: float) -> float:
    """Factor g/Bq from Bq/ml to SUVbw, for a dose as of the moment that the Bq/ml are corrected to.

    Raises
    ------
    InputError : if one of the two is implausible.
    """
    attributes = SuvAttributes(weight_kg=weight_kg, dose=dose_mbq * 1e6)
    return 1000.0 * _weight_kg(attributes) / _dose_bq(attributes)[0]


def _from_suv_of_a_mass(attributes: SuvAttributes, overrides: SuvOverrides) -> SuvFactors:
    suv_type, count = attributes.suv_type, len(attributes.frames)
    if suv_type in ("", "BW"):
        if overrides.options:
            raise _idle(overrides, "the voxels are SUVbw already")
        # PS3.3 C.8.9.1: "If absent, and the Units (0054,1001) are GML, then the type of SUV shall be assumed to be BW."
        how = f"{SUV_TYPE} BW" if suv_type else f"no {SUV_TYPE}, which stands for BW"
        return SuvFactors((1.0,) * count, f"The voxels are SUVbw already: {UNITS} GML, {how}.")
    if suv_type not in MASSES_KG:
        known = ", ".join(("BW", *MASSES_KG))
        raise refusal(f"{SUV_TYPE} is {suv_type}, expected {known} for {UNITS} GML", "in Bq/ml or SUVbw")
    _check_useful(overrides, "weight_kg", "height_m", "sex")
    weight_kg, height_m, sex = _weight_kg(attributes), _height_m(attributes), _sex(attributes)
    mass_kg = MASSES_KG[suv_type](weight_kg, height_m, sex)
    if mass_kg <= 0:
        raise refusal(
            f"{SUV_TYPE} {suv_type} is of {mass_kg:.3g} kg for {weight_kg:g} kg and {height_m:g} m", "in Bq/ml"
        )
    factor = weight_kg / mass_kg
    how = f"{weight_kg:g} kg / {mass_kg:.5g} kg ({SUV_TYPE} {suv_type})"
    return SuvFactors((factor,) * count, f"SUVbw is {factor:.6g} times the SUV of the voxels: {how}.")


def _from_suv_of_the_surface(attributes: SuvAttributes, overrides: SuvOverrides) -> SuvFactors:
    if attributes.suv_type not in ("", "BSA"):
        raise refusal(f"{SUV_TYPE} is {attributes.suv_type}, expected BSA for {UNITS} CM2ML", "in Bq/ml or SUVbw")
    _check_useful(overrides, "weight_kg", "height_m")
    weight_kg = _weight_kg(attributes)
    surface_cm2 = body_surface_cm2(weight_kg, _height_m(attributes))
    factor = 1000.0 * weight_kg / surface_cm2
    how = f"{weight_kg:g} kg / {surface_cm2:.5g} cm² of body surface ({UNITS} CM2ML)"
    note = f"SUVbw is {factor:.6g} times the SUV of the voxels: {how}."
    return SuvFactors((factor,) * len(attributes.frames), note)


def _from_bqml(attributes: SuvAttributes, overrides: SuvOverrides) -> SuvFactors:
    factors = _from_activity(attributes, overrides)
    scanner = [frame.philips_suv or 0.0 for frame in attributes.frames]
    if min(scanner) > 0 and attributes.suv_type in ("", "BW") and not overrides.options:
        apart = _apart(factors.per_frame, scanner)
        activity = [frame.philips_activity or 0.0 for frame in attributes.frames]
        if min(activity) > 0:  # of the counts that the scanner made the Bq/ml of, to which its SUV factor may refer
            apart = min(apart, _apart(factors.per_frame, [one / other for one, other in zip(scanner, activity)]))
        if apart > PHILIPS_TOLERANCE:
            warning = (
                f"The {PHILIPS_SUV} leads to SUVs {100 * apart:.0f} % away from those of the {UNITS} BQML. Check SUV."
            )
            return factors._replace(warnings=(*factors.warnings, warning))
    return factors


def _apart(factors: Sequence[float], others: Sequence[float]) -> float:
    return max(abs(one / other - 1) for one, other in zip(factors, others))


def _from_philips_counts(attributes: SuvAttributes, overrides: SuvOverrides) -> SuvFactors:
    suv = tuple(frame.philips_suv or 0.0 for frame in attributes.frames)
    activity = tuple(frame.philips_activity or 0.0 for frame in attributes.frames)
    # What is not above 0 stands for no factor, and one to the SUV of a lean mass is none to SUVbw.
    has_suv, has_activity = min(suv) > 0 and attributes.suv_type in ("", "BW"), min(activity) > 0
    if not has_suv and not has_activity:
        of_bw = f" to SUVbw ({SUV_TYPE} is {attributes.suv_type})" if min(suv) > 0 else ""
        raise refusal(
            f"{UNITS} is CNTS, and neither {PHILIPS_SUV}{of_bw} nor {PHILIPS_ACTIVITY} is above 0 in every slice",
            "in Bq/ml or SUVbw",
        )
    if not has_activity and attributes.decay_correction == "NONE":
        raise refusal(
            f"{DECAY_CORRECTION} is NONE, and {PHILIPS_SUV}, the only one, is for counts that are corrected", "in Bq/ml"
        )
    scanner = SuvFactors(suv, f"SUVbw is the scanner's own factor times the counts: {PHILIPS_SUV} {_range(suv)}.")
    if not has_activity:
        if overrides.options:
            raise _idle(overrides, f"{UNITS} is CNTS, and {PHILIPS_SUV} holds the weight and dose already")
        return scanner
    try:
        computed = _from_activity(attributes, overrides)
    except InputError:
        absent = _absent(attributes)  # the scanner still knew it
        if has_suv and absent and not overrides.options:
            return scanner._replace(note=f"{scanner.note} {absent} is absent or 0, so it was not checked.")
        raise
    factors = tuple(one * other for one, other in zip(activity, computed.per_frame))
    if has_suv and not overrides.options:
        apart = _apart(factors, suv)
        if apart > PHILIPS_TOLERANCE:
            raise refusal(
                f"{PHILIPS_SUV} and {PHILIPS_ACTIVITY} lead to SUVs {100 * apart:.0f} % apart", "in which they agree"
            )
    return computed._replace(
        per_frame=factors, note=f"Counts are Bq/ml by {PHILIPS_ACTIVITY} {_range(activity)}. {computed.note}"
    )


def _absent(attributes: SuvAttributes) -> str:
    """An attribute that SUV depends on and anonymisation removes, or sets to 0, where it is absent."""
    needed: dict[str, object] = {WEIGHT: attributes.weight_kg or None, DOSE: attributes.dose or None}
    if attributes.decay_correction != "ADMIN":
        injected = attributes.injection_datetime or attributes.injection_time
        needed |= {HALF_LIFE: attributes.half_life_s or None, INJECTION_DATETIME: injected}
        needed[ACQUISITION_TIME] = all(frame.acquisition for frame in attributes.frames) or None
    return next((name for name, value in needed.items() if value is None), "")


def _from_activity(attributes: SuvAttributes, overrides: SuvOverrides) -> SuvFactors:
    timed = () if attributes.decay_correction == "ADMIN" else ("half_life_s", "injection")
    _check_useful(overrides, "weight_kg", "dose_mbq", *timed)
    _check_decay_correction(attributes)
    _check_half_life(attributes)
    weight_kg = _weight_kg(attributes)
    dose_bq, how = _dose_bq(attributes)
    left, when, warnings = _decayed(attributes, overrides)
    warnings += _odd_patient(attributes, weight_kg, dose_bq / 1e6)
    factors = tuple(1000.0 * weight_kg / (dose_bq * share) for share in left)
    note = f"SUVbw is {_range(factors)} times the Bq/ml of the voxels: {weight_kg:g} kg / {how}, {when}."
    if attributes.decay_correction == "NONE":
        listed = f"{CORRECTED_IMAGE} lists DECY" if "DECY" in attributes.corrected_image else ""
        largest = max(frame.decay_factor or 1.0 for frame in attributes.frames)
        scaled = f"{DECAY_FACTOR} is {largest:g}" if largest > 1 + DECAY_FACTOR_TOLERANCE else ""
        if listed or scaled:
            warnings += (
                f"{listed or scaled}, but {DECAY_CORRECTION} is NONE: taken as not corrected for decay. Check SUV.",
            )
    return SuvFactors(factors, note, warnings)


def _odd_patient(attributes: SuvAttributes, weight_kg: float, dose_mbq: float) -> tuple[str, ...]:
    """What is odd about the weight, by the height where it is known (in m, or by mistake in cm), and about the dose."""
    odd = []
    low, high = HEIGHT_RANGE_M
    height_m = attributes.height_m or 0.0
    height_m = height_m / 100 if height_m > high else height_m
    if low <= height_m <= high and not BODY_MASS_INDEX_RANGE[0] <= weight_kg / height_m**2 <= BODY_MASS_INDEX_RANGE[1]:
        odd.append(f"{WEIGHT} {weight_kg:g} kg hardly fits {HEIGHT} {attributes.height_m:g}. Check both, and SUV.")
    if nuclide_of(attributes.radionuclide) == F18 and dose_mbq / weight_kg > F18_MOST_MBQ_PER_KG:
        odd.append(
            f"{DOSE} and {WEIGHT} are {dose_mbq / weight_kg:.3g} MBq/kg, expected at most {F18_MOST_MBQ_PER_KG:g} of "
            f"{F18}. Check both, and SUV."
        )
    return tuple(odd)


def _decayed(attributes: SuvAttributes, overrides: SuvOverrides) -> tuple[tuple[float, ...], str, tuple[str, ...]]:
    """What is left of the dose at the moment that each frame's voxels refer to, how that was found, and warnings."""
    if attributes.decay_correction == "ADMIN":
        how = f"not decayed because the voxels are corrected to the injection ({DECAY_CORRECTION} ADMIN)"
        return (1.0,) * len(attributes.frames), how, _unlike_injection(attributes)
    half_life_s, warnings = required(attributes.half_life_s, HALF_LIFE), []
    if half_life_s > HALF_LIFE_RANGE_S[1]:
        warnings.append(f"{HALF_LIFE} is {half_life_s:g} s, which no tracer for patients has. Check it, and SUV.")
    if attributes.decay_correction == "START":
        start, source = scan_start(attributes, half_life_s)
        apart_s = unlike_decay_factors_s(attributes, start, half_life_s)
        if apart_s:
            warnings.append(
                f"The scan start, from {source}, is {abs(apart_s) / 60:.1f} min {'before' if apart_s > 0 else 'after'} "
                f"the one that {DECAY_FACTOR} says. Check SUV, which differs by a factor of "
                f"{2 ** (abs(apart_s) / half_life_s):.2f}."
            )
        elif late_s := unlike_frame_reference_s(attributes, start, half_life_s):
            warnings.append(
                f"The scan start, from {source}, is {late_s / 60:.1f} min after the one that {FRAME_REFERENCE_TIME} "
                f"leads to. Check SUV, which differs by a factor of {2 ** (late_s / half_life_s):.2f}."
            )
        elif alone_s := start_alone_s(attributes, start, half_life_s):
            warnings.append(
                f"The scan start, from {source}, is {abs(alone_s) / 60:.1f} min {'before' if alone_s > 0 else 'after'} "
                f"the first {ACQUISITION_TIME}, and nothing else bears it out. Check SUV, which differs by a factor of "
                f"{2 ** (abs(alone_s) / half_life_s):.3g}."
            )
        moments, to = [start] * len(attributes.frames), f"the scan start, from {source}"
    else:
        moments = [_average_of(frame, half_life_s) for frame in attributes.frames]
        to = (
            "the average of each slice's frame, because the voxels are not corrected "
            f"({DECAY_CORRECTION} {attributes.decay_correction})"
        )
    scan = to if attributes.decay_correction == "START" else "the scan"
    found = [injection_delay_s(attributes, moment, half_life_s, scan) for moment in moments]
    delays_s = [delay_s for delay_s, _ in found]
    if is_undated(moments[0]):
        warnings.append(
            "The header has no date of the scan, as anonymisation leaves it: the times of day were taken, the "
            f"injection {min(delays_s) / 3600:.2f} h before the scan. Check it."
        )
    elif any(redated for _, redated in found):
        if overrides.injection is not None:
            raise InputError(f"{OPTIONS[INJECTION_DATETIME]} has another date than the scan. Pass the right one.")
        warnings.append(
            f"{INJECTION_DATETIME} has another date than the scan, as anonymisation leaves it: its time of day was "
            f"taken, {min(delays_s) / 3600:.2f} h before the scan. Check it."
        )
    if not is_usual_delay(min(delays_s), half_life_s):
        warnings.append(
            f"The injection is {max(0.0, min(delays_s)) / 3600:.2f} h before the scan, which is unusual. Check its "
            "time, and SUV."
        )
    how = f"decayed over {_range(delays_s, '.0f')} s (half-life {half_life_s:g} s) to {to}"
    return tuple(2.0 ** (-delay_s / half_life_s) for delay_s in delays_s), how, tuple(warnings)


def _unlike_injection(attributes: SuvAttributes) -> tuple[str, ...]:
    """A warning where the voxels should be corrected to the injection, and DecayFactor or a date say another moment."""
    try:
        half_life_s = required(attributes.half_life_s, HALF_LIFE)
        first = min(map(acquisition_of, attributes.frames))
        delay_s, _ = injection_delay_s(attributes, first, half_life_s, "the scan")
    except InputError:  # none of these is needed for ADMIN
        return ()
    injection = first - timedelta(seconds=delay_s)
    apart_s, source = unlike_decay_factors_s(attributes, injection, half_life_s), DECAY_FACTOR
    if not apart_s and attributes.decay_corrected_to is not None:
        apart_s, source = (injection - attributes.decay_corrected_to).total_seconds(), DECAY_CORRECTED_TO
    if abs(apart_s) > OTHER_DAY_S:
        return ()
    factor = 2 ** (abs(apart_s) / half_life_s)
    if factor - 1 <= DECAY_FACTOR_TOLERANCE:
        return ()
    return (
        f"{DECAY_CORRECTION} is ADMIN, but {source} says another moment than the injection, "
        f"{abs(apart_s) / 60:.1f} min from it. Check SUV, which differs by a factor of {factor:.3g}.",
    )


def _average_of(frame: Frame, half_life_s: float) -> datetime:
    """When the activity is the frame's average."""
    if frame.average is not None:
        return frame.average
    into_frame_s = average_activity_time_s(required(frame.duration_s, FRAME_DURATION), half_life_s)
    return acquisition_of(frame) + timedelta(seconds=into_frame_s)


def _check_decay_correction(attributes: SuvAttributes) -> None:
    correction = attributes.decay_correction
    if correction not in ("START", "ADMIN", "NONE"):
        raise refusal(f"{DECAY_CORRECTION} {_came(correction)}, expected START, ADMIN or NONE", "that says it")
    if correction != "NONE" and attributes.corrected_image and "DECY" not in attributes.corrected_image:
        raise refusal(
            f"{DECAY_CORRECTION} is {correction}, but {CORRECTED_IMAGE} does not list DECY", "in which they agree"
        )


def _check_half_life(attributes: SuvAttributes) -> None:
    unneeded = attributes.decay_correction == "ADMIN" and math.isnan(attributes.half_life_s or 0.0)
    if attributes.half_life_s is None or unneeded:
        return
    half_life_s = required(attributes.half_life_s, HALF_LIFE)
    if half_life_s < HALF_LIFE_RANGE_S[0]:
        raise refusal(
            f"{HALF_LIFE} is {half_life_s:g} s, expected at least {HALF_LIFE_RANGE_S[0]:g} s",
            "with the half-life in s",
            HALF_LIFE,
        )
    nuclide = nuclide_of(attributes.radionuclide)
    if nuclide is None:
        return
    expected_s = HALF_LIVES_S[nuclide]
    if abs(half_life_s / expected_s - 1.0) > HALF_LIFE_TOLERANCE.get(nuclide, OTHER_HALF_LIFE_TOLERANCE):
        raise refusal(
            f"{HALF_LIFE} is {half_life_s:g} s, expected {expected_s:g} s of {nuclide}, which the series names",
            "in which they agree",
            HALF_LIFE,
        )


def _weight_kg(attributes: SuvAttributes) -> float:
    return _within(WEIGHT_RANGE_KG, attributes.weight_kg, WEIGHT, "kg", "with the weight in kg")


def _height_m(attributes: SuvAttributes) -> float:
    return _within(HEIGHT_RANGE_M, attributes.height_m, HEIGHT, "m", "with the height in m")


def _within(limits: tuple[float, float], value: float | None, name: str, unit: str, advice: str) -> float:
    given, (low, high) = required(value, name), limits
    if not low <= given <= high:
        raise refusal(f"{name} is {given:g} {unit}, expected {low:g} to {high:g} {unit}", advice, name)
    return given


def _sex(attributes: SuvAttributes) -> str:
    if attributes.sex not in ("M", "F", "O"):
        raise refusal(f"{SEX} {_came(attributes.sex)}, expected M, F or O", "that carries it, or --patient-sex")
    return attributes.sex


def _dose_bq(attributes: SuvAttributes) -> tuple[float, str]:
    """Dose in Bq at the injection, and how it was read."""
    if attributes.injections > 1:
        raise refusal(
            f"{RADIOPHARMACEUTICAL} has {attributes.injections} items, expected one injection", "of one injection"
        )
    dose = required(attributes.dose, DOSE)
    if 0 < dose < MCI_BELOW or UCI_ABOVE < dose < MBQ_BELOW:
        raise refusal(f"{DOSE} is {dose:g}, which is not Bq and may be MBq, mCi or µCi", "with the dose in Bq", DOSE)
    in_mbq = 0 < dose < MBQ_BELOW
    dose_bq = dose * 1e6 if in_mbq else dose
    low, high = DOSE_RANGE_BQ
    if not low <= dose_bq <= high:
        raise refusal(f"{DOSE} is {dose:g}, expected {low:g} to {high:g} Bq", "with the dose in Bq", DOSE)
    return dose_bq, f"{dose_bq / 1e6:.5g} MBq" + (f" ({DOSE} is {dose:g}, read as MBq)" if in_mbq else "")


def _came(value: str) -> str:
    return f"is {value}" if value else "is absent"


def _range(values: Sequence[float], form: str = ".6g") -> str:
    low, high = f"{min(values):{form}}", f"{max(values):{form}}"
    return low if low == high else f"{low} to {high}"


def _check_useful(overrides: SuvOverrides, *useful: str) -> None:
    """Refuse an override that this series has no use for: the user believes something of it that is not so."""
    idle = replace(overrides, **dict.fromkeys(useful))
    if idle.options:
        raise _idle(idle, "the SUV of this series does not depend on it")


def _idle(overrides: SuvOverrides, why: str) -> InputError:
    return InputError(f"{', '.join(overrides.options)} would change nothing: {why}. Leave it out.")
