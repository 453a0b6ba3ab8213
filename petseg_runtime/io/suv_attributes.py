"""What a PET series says about its numbers, free of files and of pydicom, and the words to refuse it with."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import date, datetime, time

from petseg_runtime.errors import InputError, UsageError

WEIGHT = "PatientWeight (0010,1030)"
HEIGHT = "PatientSize (0010,1020)"
SEX = "PatientSex (0010,0040)"
DOSE = "RadionuclideTotalDose (0018,1074)"
HALF_LIFE = "RadionuclideHalfLife (0018,1075)"
INJECTION_DATETIME = "RadiopharmaceuticalStartDateTime (0018,1078)"
INJECTION_TIME = "RadiopharmaceuticalStartTime (0018,1072)"
RADIOPHARMACEUTICAL = "RadiopharmaceuticalInformationSequence (0054,0016)"
UNITS = "Units (0054,1001)"
SUV_TYPE = "SUVType (0054,1006)"
DECAY_CORRECTION = "DecayCorrection (0054,1102)"
CORRECTED_IMAGE = "CorrectedImage (0028,0051)"
DECAY_CORRECTED_TO = "DecayCorrectionDateTime (0018,9701)"
SERIES_TIME = "SeriesTime (0008,0031)"
ACQUISITION_TIME = "AcquisitionTime (0008,0032)"
FRAME_REFERENCE_TIME = "FrameReferenceTime (0054,1300)"
DECAY_FACTOR = "DecayFactor (0054,1321)"
FRAME_DURATION = "ActualFrameDuration (0018,1242)"
PRIVATE_SCAN_START = "private scan date-time, GE (0009,100D) or Siemens (0071,1022)"

MANUFACTURER = "Manufacturer (0008,0070)"
PHILIPS_SUV = "private SUV factor, Philips (7053,1000)"
PHILIPS_ACTIVITY = "private activity factor, Philips (7053,1009)"
RADIONUCLIDE = "Radiopharmaceutical (0018,0031), or a code beside it,"


@dataclass(frozen=True)
class Frame:
    """What one slice says for itself: when it was measured, and with which factors Philips scales its counts.

    Attributes
    ----------
    acquisition : AcquisitionDate and AcquisitionTime (0008,0022), (0008,0032), local time; on `UNDATED` without a date.
    frame_reference_s : FrameReferenceTime (0054,1300) in s (the header has ms).
    decay_factor : DecayFactor (0054,1321), by which the scanner says that it scaled the slice.
    average : FrameReferenceDateTime (0018,9151) of an Enhanced PET, the moment that its values stand for.
    duration_s : ActualFrameDuration (0018,1242) in s (the header has ms).
    philips_suv : (7053,1000), SUVbw for each unit of the rescaled voxels; 0 where Philips did not compute it.
    philips_activity : (7053,1009), Bq/ml for each unit of the rescaled voxels; likewise.
    """

    acquisition: datetime | None = None
    frame_reference_s: float | None = None
    duration_s: float | None = None
    decay_factor: float | None = None
    average: datetime | None = None
    philips_suv: float | None = None
    philips_activity: float | None = None


@dataclass(frozen=True)
class SuvAttributes:
    """What a PET series says about its numbers. None or empty: the attribute is absent. NaN: it is no number.

    Attributes
    ----------
    units, suv_type, decay_correction, corrected_image, manufacturer : as in the header, upper case.
    weight_kg, height_m, sex : PatientWeight (0010,1030), PatientSize (0010,1020), PatientSex (0010,0040).
    dose : RadionuclideTotalDose (0018,1074) as written; Bq by the standard, MBq in some files.
    half_life_s : RadionuclideHalfLife (0018,1075).
    radionuclide : what names the nuclide or the tracer: code values, code meanings, free names.
    injections : number of items in RadiopharmaceuticalInformationSequence (0054,0016).
    injection_datetime : RadiopharmaceuticalStartDateTime (0018,1078), local time.
    injection_time : RadiopharmaceuticalStartTime (0018,1072), local time.
    decay_corrected_to : DecayCorrectionDateTime (0018,9701) of an Enhanced PET, local time.
    series_start : SeriesDate and SeriesTime (0008,0021), (0008,0031), local time; on `UNDATED` without a date.
    private_scan_start : GE (0009,100D) or Siemens (0071,1022), local time.
    frames : of every slice, in the order of the slices.
    """

    units: str = ""
    suv_type: str = ""
    decay_correction: str = ""
    corrected_image: tuple[str, ...] = ()
    manufacturer: str = ""
    weight_kg: float | None = None
    height_m: float | None = None
    sex: str = ""
    dose: float | None = None
    half_life_s: float | None = None
    radionuclide: tuple[str, ...] = ()
    injections: int = 1
    injection_datetime: datetime | None = None
    injection_time: time | None = None
    decay_corrected_to: datetime | None = None
    series_start: datetime | None = None
    private_scan_start: datetime | None = None
    frames: tuple[Frame, ...] = ()


# The day of a scan whose header has no date at all; anonymisation tools write the same where they do not empty it.
UNDATED = date(1900, 1, 1)

# What a dose may be that the user gives in MBq; one outside is in another unit.
DOSE_RANGE_MBQ = (1.0, 10_000.0)

# What a user who knows better than the header may say, by the attribute that it stands in for.
OPTIONS = {
    WEIGHT: "--patient-weight-kg",
    HEIGHT: "--patient-height-m",
    SEX: "--patient-sex",
    DOSE: "--injected-dose-mbq",
    HALF_LIFE: "--half-life-s",
    INJECTION_DATETIME: "--injection-time",
}

# What AttenuationCorrectionMethod (0054,1101), which is free text, says where there was none: a denial at its
# beginning, or one of the correction anywhere ("CTAC OFF"; but not "CT without contrast").
UNCORRECTED = re.compile(
    r"^(NO\b|NON|NOT\b|WITHOUT\b|OFF\b)|\bNAC\b|\bOFF$|\bNOT[ _-]?(APPLIED|CORRECTED|DONE|PERFORMED)|UNCORR"
)

# The fields of SuvAttributes that are one for the whole series, as messages name them.
NAMES = {
    "units": UNITS,
    "suv_type": SUV_TYPE,
    "decay_correction": DECAY_CORRECTION,
    "corrected_image": CORRECTED_IMAGE,
    "manufacturer": MANUFACTURER,
    "weight_kg": WEIGHT,
    "height_m": HEIGHT,
    "sex": SEX,
    "dose": DOSE,
    "half_life_s": HALF_LIFE,
    "radionuclide": RADIONUCLIDE,
    "injections": RADIOPHARMACEUTICAL,
    "injection_datetime": INJECTION_DATETIME,
    "injection_time": INJECTION_TIME,
    "decay_corrected_to": DECAY_CORRECTED_TO,
    "series_start": SERIES_TIME,
    "private_scan_start": PRIVATE_SCAN_START,
}


_START_TIMES = ("decay_corrected_to", "series_start", "private_scan_start")
_TIMES = (*_START_TIMES, "injection_datetime", "injection_time")


@dataclass(frozen=True)
class SuvOverrides:
    """What the user says of one patient in place of the header. None: the header holds.

    Attributes
    ----------
    weight_kg, height_m, sex : of the patient; sex is "M", "F" or "O".
    dose_mbq : injected activity at `injection`, residue in the syringe subtracted.
    injection : moment of the injection, by the clock that timed the scan.
    half_life_s : of the radionuclide.

    Raises
    ------
    UsageError : if the dose is none in MBq, or the injection has a time zone; the rest is checked like the header's.
    """

    weight_kg: float | None = None
    height_m: float | None = None
    sex: str | None = None
    dose_mbq: float | None = None
    injection: datetime | None = None
    half_life_s: float | None = None

    def __post_init__(self) -> None:
        low, high = DOSE_RANGE_MBQ
        if self.dose_mbq is not None and not low <= self.dose_mbq <= high:
            raise UsageError(f"{OPTIONS[DOSE]} is {self.dose_mbq:g}, expected {low:g} to {high:g} MBq.")
        if self.injection is not None and self.injection.tzinfo is not None:
            raise UsageError(f"{OPTIONS[INJECTION_DATETIME]} has a time zone. Give the time of the scan's own clock.")

    @property
    def options(self) -> tuple[str, ...]:
        """The options of petseg-run that were given."""
        given = {
            WEIGHT: self.weight_kg,
            HEIGHT: self.height_m,
            SEX: self.sex,
            DOSE: self.dose_mbq,
            HALF_LIFE: self.half_life_s,
            INJECTION_DATETIME: self.injection,
        }
        return tuple(OPTIONS[name] for name, value in given.items() if value is not None)

    def apply(self, attributes: SuvAttributes) -> tuple[SuvAttributes, tuple[str, ...]]:
        """The attributes with these values in them, and a sentence that says so; none where nothing is given.

        Whoever finds the result in an archive, beside a header that says otherwise, has nothing else to tell by.
        """
        changes: dict[str, object] = {
            name: getattr(self, name)
            for name in ("weight_kg", "height_m", "sex", "half_life_s")
            if getattr(self, name) is not None
        }
        if self.dose_mbq is not None:
            changes["dose"] = self.dose_mbq * 1e6
        if self.injection is not None:
            changes |= {"injection_datetime": self.injection, "injection_time": None}
        if not changes:
            return attributes, ()
        said = ", ".join(
            f"{NAMES[name]} ({'absent' if getattr(attributes, name) in (None, '') else 'replaced'})"
            for name in changes
            if name != "injection_time"
        )
        sentence = f"Given by the user in place of the header: {said}."
        return replace(attributes, **changes), (sentence,)  # type: ignore[arg-type]


NO_OVERRIDES = SuvOverrides()


def merge_attributes(slices: Iterable[SuvAttributes]) -> SuvAttributes:
    """Attributes of a series from those of its slices: the frames are collected, all else that counts is the same.

    Raises
    ------
    InputError : if a weight, a dose, a time or anything else of the series differs between slices.
    """
    slices = list(slices)
    first = slices[0]
    idle = _idle_times(first)
    for attribute, name in NAMES.items():
        if attribute in idle:
            continue
        values = {repr(getattr(one, attribute)) for one in slices}  # as text two NaN are equal
        if len(values) > 1:
            raise refusal(f"{name} has {len(values)} different values in the slices of one series", "of one scan")
    return replace(first, frames=tuple(frame for one in slices for frame in one.frames))


def _idle_times(attributes: SuvAttributes) -> tuple[str, ...]:
    """The times on which SUV does not depend."""
    if attributes.units in ("GML", "CM2ML") or attributes.decay_correction == "ADMIN":
        return _TIMES
    return _START_TIMES if attributes.decay_correction == "NONE" else ()


def is_undated(moment: datetime) -> bool:
    """Whether nothing dates the scan that `moment` is of."""
    return abs((moment.date() - UNDATED).days) <= 1


def required(value: float | None, name: str) -> float:
    """The value of an attribute that SUV cannot do without.

    Raises
    ------
    InputError : if the attribute is absent or not a finite number.
    """
    if value is None:
        option = f", or {OPTIONS[name]}" if name in OPTIONS else ""
        raise InputError(f"{name} is absent, so SUV cannot be computed. Pass a series that carries it{option}.")
    if not math.isfinite(value):
        raise refusal(f"{name} is not one finite number", "that carries it", name)
    return value


def refusal(wrong: str, wanted: str, instead_of: str = "") -> InputError:
    """The error for a series whose SUV cannot be computed: what is wrong, and which series to pass instead.

    `instead_of` is the attribute that is wrong, where the user may stand in for it.
    """
    option = f", or {OPTIONS[instead_of]}" if instead_of in OPTIONS else ""
    return InputError(f"{wrong}, so SUV cannot be computed. Pass a series {wanted}{option}.")
