"""The PET slices that a DICOM result refers to, and the equipment that made it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from petseg_runtime import __version__
from petseg_runtime.errors import InputError
from petseg_runtime.io.dicom_elements import Elements, if_sound, tag_name
from petseg_runtime.io.dicom_header import ENHANCED_PET_STORAGE
from petseg_runtime.outputs.quiet import QUIET
from petseg_runtime.volume import Geometry

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_LONGEST_UID = 64

# What a result takes over from the Patient and General Study modules, with the longest text that the standard allows;
# a name has three ways of writing, each of that length (PS3.5 table 6.2-1).
_TEXTS = {
    "PatientName": 64,
    "PatientID": 64,
    "StudyID": 16,
    "AccessionNumber": 16,
    "ReferringPhysicianName": 64,
}
_ISSUER = "IssuerOfPatientID"  # whose the PatientID is; of type 3, so it is there or not
_DATES = {"PatientBirthDate": 0x00100030, "StudyDate": 0x00080020}
_STUDY_TIME, _SEX = 0x00080030, 0x00100040
# How the series was de-identified, which stays true of what is made of it: archives and uploads ask for it.
_DEIDENTIFIED = "PatientIdentityRemoved"
_METHOD = "DeidentificationMethod"
_METHOD_CODES = "DeidentificationMethodCodeSequence"
_CODE = {"CodeValue": 16, "CodingSchemeDesignator": 16, "CodeMeaning": 64}
# What a record says of whose it is, where it is asked to.
_IDENTITY = ("PatientID", "AccessionNumber", "StudyInstanceUID", "SeriesInstanceUID", "StudyDate")
# What is made up for the results where the series lacks it.
_MADE_UP = {
    0x0020000E: "The series has no SeriesInstanceUID: the DICOM results refer to one made up for them.",
    0x00200052: "The series has no FrameOfReferenceUID: the DICOM results have one made up for them, by which no other "
    "system knows that they lie on the scan.",
}
PATIENT_AND_STUDY = (
    *_TEXTS,
    _ISSUER,
    *_DATES,
    "StudyTime",
    "PatientSex",
    "StudyInstanceUID",
    _DEIDENTIFIED,
    _METHOD,
    _METHOD_CODES,
)


@dataclass(frozen=True)
class Equipment:
    """What made a result: the model, what it was run with, and this software (PS3.3 C.7.5.1, C.7.5.2, 10.16)."""

    model_name: str
    model_version: str
    model_sha256: str
    threshold: float
    overlap: float
    tta: bool
    backend: str

    manufacturer: str = "PETSeg"
    software: str = __version__

    @property
    def serial_number(self) -> str:
        """The model's digest: two devices differ in it when they may differ in what they outline."""
        return self.model_sha256[:64]

    @property
    def parameters(self) -> dict[str, str]:
        """All but the scan that the outline depends on."""
        return {
            "model_sha256": self.model_sha256,
            "threshold": str(self.threshold),
            "overlap": str(self.overlap),
            "tta": "yes" if self.tta else "no",
            "backend": self.backend,
        }


@dataclass(frozen=True)
class Source:
    """Headers of the slices in the order of axis z, fit to be referred to, and what had to be left out of them."""

    slices: tuple[Dataset, ...]
    notes: tuple[str, ...]


def read_source(files: Sequence[str], geometry: Geometry) -> Source:
    """Read what results refer to, before any work is done for them.

    Only what results need is taken, decoded to Unicode. Attributes of Type 2 that are absent, malformed or too long
    for the standard are left empty, and a note says which. A slice whose data set has lost its SOPInstanceUID has it
    in the file's own header. A series without SeriesInstanceUID or FrameOfReferenceUID, as some anonymisers leave it,
    gets one that follows from its study and number, so that all results of it agree, and a note says so.

    Parameters
    ----------
    files : DICOM files of the slices; slice k of the scan is `files[k]`.
    geometry : of the scan.

    Raises
    ------
    InputError : if the study or a slice has no valid UID, or two slices have the same.
    """
    with QUIET:
        kind = pydicom.dcmread(files[0], specific_tags=["SOPClassUID"]).get("SOPClassUID", "")
        if str(kind) in ENHANCED_PET_STORAGE:
            raise InputError(
                "The scan is an Enhanced PET, and DICOM results are written for single slices only. Leave out "
                "the DICOM --output-type."
            )
        originals = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
        about, notes = _patient_and_study(originals[0])
        slices = tuple(_slice(original, about, geometry, index) for index, original in enumerate(originals))
        elements = Elements(originals[0])
        notes += tuple(note for tag, note in _MADE_UP.items() if not elements.text(tag))
    if len({one.SOPInstanceUID for one in slices}) < len(slices):
        raise _unfit("SOPInstanceUID (0008,0018) is the same in several slices")
    return Source(slices, notes)


def identity_of(file: Path) -> dict[str, str]:
    """Who and what a DICOM file is of, for records that are asked to say so; what is absent or malformed is empty.

    Raises
    ------
    InputError : if it cannot be read any more.
    """
    with QUIET:
        try:
            elements = Elements(pydicom.dcmread(file, specific_tags=["SpecificCharacterSet", *_IDENTITY]))
            return {keyword: if_sound(partial(elements.decoded, Tag(keyword))) or "" for keyword in _IDENTITY}
        except (OSError, InvalidDicomError, AttributeError, TypeError, ValueError) as error:
            raise InputError(f"{file.name} cannot be read any more.") from error


def _patient_and_study(first: Dataset) -> tuple[Dataset, tuple[str, ...]]:
    elements, about, left_out = Elements(first), Dataset(), []
    about.StudyInstanceUID = _uid(elements.text(0x0020000D), "StudyInstanceUID (0020,000D)")
    for keyword, longest in _TEXTS.items():
        text = _text(elements, keyword, longest)
        left_out += [keyword] if text is None else []
        setattr(about, keyword, text or "")
    issuer = _text(elements, _ISSUER, 64)
    left_out += [_ISSUER] if issuer is None else []
    if issuer:
        setattr(about, _ISSUER, issuer)
    moments = {keyword: if_sound(partial(_date, elements, tag)) for keyword, tag in _DATES.items()}
    moments["StudyTime"] = if_sound(partial(_clock, elements))
    for keyword, moment in moments.items():
        left_out += [keyword] if moment is None else []
        setattr(about, keyword, moment or "")
    sex = elements.text(_SEX)
    about.PatientSex = sex if sex in ("M", "F", "O") else ""
    left_out += ["PatientSex"] if sex and not about.PatientSex else []
    left_out += _copy_deidentification(elements, about)
    if not left_out:
        return about, ()
    names = ", ".join(left_out)
    return about, (f"Left empty in the DICOM results, because the series has it malformed or too long: {names}.",)


def _copy_deidentification(elements: Elements, about: Dataset) -> list[str]:
    """Copy that and how the series was de-identified (PS3.3 C.7.1.1); returns what of it is malformed."""
    left_out = []
    if (removed := elements.text(Tag(_DEIDENTIFIED))) in ("YES", "NO"):
        setattr(about, _DEIDENTIFIED, removed)
    methods = if_sound(partial(elements.all_decoded, Tag(_METHOD)))
    if methods and max(map(len, methods)) <= 64:
        setattr(about, _METHOD, list(methods))
    elif methods != ():
        left_out.append(_METHOD)
    items = if_sound(partial(elements.items, Tag(_METHOD_CODES)))
    codes = [code for code in map(_code, items or ()) if code is not None]
    if codes:
        setattr(about, _METHOD_CODES, codes)
    if items is None or len(codes) < len(items):
        left_out.append(_METHOD_CODES)
    return left_out


def _code(item: Elements) -> Dataset | None:
    """A code of its three required parts (PS3.3 8.8); None where one of them is absent or malformed."""
    code = Dataset()
    for keyword, longest in _CODE.items():
        if not (text := _text(item, keyword, longest)):
            return None
        setattr(code, keyword, text)
    return code


def _date(elements: Elements, tag: int) -> str:
    """A date as today's standard writes it, without the dots of the one before."""
    date = elements.date(tag)
    return "" if date is None else date.strftime("%Y%m%d")


def _clock(elements: Elements) -> str:
    clock = elements.clock(_STUDY_TIME)
    return "" if clock is None else clock.strftime("%H%M%S.%f").removesuffix(".000000")


def _text(elements: Elements, keyword: str, longest: int) -> str | None:
    """A text in Unicode; None if it is malformed or too long."""
    tag = Tag(keyword)
    text = if_sound(partial(elements.decoded, tag))
    if text is None:
        return None
    parts = text.split("=") if dictionary_VR(tag) == "PN" else [text]
    return text if max(map(len, parts)) <= longest else None


def _slice(original: Dataset, about: Dataset, geometry: Geometry, index: int) -> Dataset:
    elements, result = Elements(original), Dataset()
    for element in about:
        result.add(element)
    result.SpecificCharacterSet = "ISO_IR 192"
    result.Modality = "PT"
    result.SOPClassUID = _uid(elements.text(0x00080016), "SOPClassUID (0008,0016)")
    own = elements.text(0x00080018) or str(original.file_meta.get("MediaStorageSOPInstanceUID", ""))
    result.SOPInstanceUID = _uid(own, "SOPInstanceUID (0008,0018)")
    number = elements.text(0x00200011)
    result.SeriesNumber = number if number.isdecimal() else None
    result.InstanceNumber = index + 1
    result.SeriesInstanceUID = elements.text(0x0020000E) or generate_uid(entropy_srcs=[result.StudyInstanceUID, number])
    frame = elements.text(0x00200052)
    result.FrameOfReferenceUID = frame or generate_uid(entropy_srcs=[result.SeriesInstanceUID, "frame"])
    for uid, tag in ((result.SeriesInstanceUID, 0x0020000E), (result.FrameOfReferenceUID, 0x00200052)):
        _uid(str(uid), tag_name(tag))
    result.Rows, result.Columns = geometry.shape[1:]
    result.PixelSpacing = [f"{step:.8g}" for step in geometry.spacing_mm[1:]]
    result.SliceThickness = f"{geometry.spacing_mm[0]:.8g}"
    column, row = np.array(geometry.direction_lps).T[1:]
    result.ImageOrientationPatient = [f"{cosine:.9f}" for cosine in (*row, *column)]
    result.ImagePositionPatient = list(elements.numbers(0x00200032) or ())
    result.PositionReferenceIndicator = ""
    result.file_meta = FileMetaDataset()
    result.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return result


def _uid(text: str, name: str) -> str:
    if not text or len(text) > _LONGEST_UID or _UID.fullmatch(text) is None:
        raise _unfit(f"{name} is {'absent' if not text else 'malformed'}")
    return text


def _unfit(wrong: str) -> InputError:
    return InputError(f"{wrong}, so no DICOM result can refer to the series. Leave out the DICOM --output-type.")
