"""What a PET series says about its numbers, free of files and of pydicom, and the words to refuse it with."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, time

from petseg_runtime.errors import InputError

WEIGHT = "PatientWeight (0010,1030)"
DOSE = "RadionuclideTotalDose (0018,1074)"
HALF_LIFE = "RadionuclideHalfLife (0018,1075)"
INJECTION_DATETIME = "RadiopharmaceuticalStartDateTime (0018,1078)"
INJECTION_TIME = "RadiopharmaceuticalStartTime (0018,1072)"
RADIOPHARMACEUTICAL = "RadiopharmaceuticalInformationSequence (0054,0016)"
UNITS = "Units (0054,1001)"
SUV_TYPE = "SUVType (0054,1006)"
DECAY_CORRECTION = "DecayCorrection (0054,1102)"
CORRECTED_IMAGE = "CorrectedImage (0028,0051)"
SERIES_TIME = "SeriesTime (0008,0031)"
ACQUISITION_TIME = "AcquisitionTime (0008,0032)"
FRAME_REFERENCE_TIME = "FrameReferenceTime (0054,1300)"
FRAME_DURATION = "ActualFrameDuration (0018,1242)"
PRIVATE_SCAN_START = "private scan date-time, GE (0009,100D) or Siemens (0071,1022)"

MANUFACTURER = "Manufacturer (0008,0070)"
RADIONUCLIDE = "RadionuclideCodeSequence (0054,0300)"


@dataclass(frozen=True)
class FrameTiming:
    """When one slice was measured.

    Attributes
    ----------
    acquisition : AcquisitionDate and AcquisitionTime (0008,0022), (0008,0032), local time.
    frame_reference_s : FrameReferenceTime (0054,1300) in s (the header has ms).
    duration_s : ActualFrameDuration (0018,1242) in s (the header has ms).
    """

    acquisition: datetime | None = None
    frame_reference_s: float | None = None
    duration_s: float | None = None


@dataclass(frozen=True)
class SuvAttributes:
    """What a PET series says about its numbers. None or empty: the attribute is absent.

    Attributes
    ----------
    units, suv_type, decay_correction, corrected_image, manufacturer : as in the header, upper case.
    weight_kg : PatientWeight (0010,1030).
    dose : RadionuclideTotalDose (0018,1074) as written; Bq by the standard, MBq in some files.
    half_life_s : RadionuclideHalfLife (0018,1075).
    radionuclide : what names the nuclide or the tracer: code values, code meanings, free names.
    injections : number of items in RadiopharmaceuticalInformationSequence (0054,0016).
    injection_datetime : RadiopharmaceuticalStartDateTime (0018,1078), local time.
    injection_time : RadiopharmaceuticalStartTime (0018,1072), local time.
    series_start : SeriesDate and SeriesTime (0008,0021), (0008,0031), local time.
    private_scan_start : GE (0009,100D) or Siemens (0071,1022), local time.
    frames : the timing of every slice; the same timing need not be repeated.
    """

    units: str = ""
    suv_type: str = ""
    decay_correction: str = ""
    corrected_image: tuple[str, ...] = ()
    manufacturer: str = ""
    weight_kg: float | None = None
    dose: float | None = None
    half_life_s: float | None = None
    radionuclide: tuple[str, ...] = ()
    injections: int = 1
    injection_datetime: datetime | None = None
    injection_time: time | None = None
    series_start: datetime | None = None
    private_scan_start: datetime | None = None
    frames: tuple[FrameTiming, ...] = ()


# The fields of SuvAttributes that are one for the whole series, as messages name them.
NAMES = {
    "units": UNITS,
    "suv_type": SUV_TYPE,
    "decay_correction": DECAY_CORRECTION,
    "corrected_image": CORRECTED_IMAGE,
    "manufacturer": MANUFACTURER,
    "weight_kg": WEIGHT,
    "dose": DOSE,
    "half_life_s": HALF_LIFE,
    "radionuclide": RADIONUCLIDE,
    "injections": RADIOPHARMACEUTICAL,
    "injection_datetime": INJECTION_DATETIME,
    "injection_time": INJECTION_TIME,
    "series_start": SERIES_TIME,
    "private_scan_start": PRIVATE_SCAN_START,
}


def merge_attributes(slices: Iterable[SuvAttributes]) -> SuvAttributes:
    """Attributes of a series from those of its slices: the timings are collected, all else must be the same.

    Raises
    ------
    InputError : if a weight, a dose, a time or anything else of the series differs between slices.
    """
    slices = list(slices)
    for attribute, name in NAMES.items():
        values = {getattr(one, attribute) for one in slices}
        if len(values) > 1:
            raise refusal(f"{name} has {len(values)} different values in the slices of one series", "of one scan")
    timings = dict.fromkeys(timing for one in slices for timing in one.frames)
    return replace(slices[0], frames=tuple(timings))


def required(value: float | None, name: str) -> float:
    """The value of an attribute that SUV cannot do without.

    Raises
    ------
    InputError : if the attribute is absent or not a finite number.
    """
    if value is None:
        raise InputError(f"{name} is absent, so SUV cannot be computed. Pass a series that carries it.")
    if not math.isfinite(value):
        raise refusal(f"{name} is {value}, expected a number", "that carries it")
    return value


def refusal(wrong: str, wanted: str) -> InputError:
    """The error for a series whose SUV cannot be computed: what is wrong, and which series to pass instead."""
    return InputError(f"{wrong}, so SUV cannot be computed. Pass a series {wanted}.")
