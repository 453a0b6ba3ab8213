"""One DICOM file's header, as far as PETSeg needs it."""

from __future__ import annotations

import math
import os
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime, time
from functools import partial
from pathlib import Path, PurePath
from typing import BinaryIO, NamedTuple

import pydicom
from pydicom.dataset import FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import _read_file_meta_info, read_preamble

from petseg_runtime.io.dicom_elements import Elements, MalformedValueError, if_sound
from petseg_runtime.io.dicom_frames import ENHANCED_TAGS, LEGACY_CONVERTED, slices_of
from petseg_runtime.io.identity import FileState
from petseg_runtime.io.suv import MBQ_BELOW
from petseg_runtime.io.suv_attributes import UNCORRECTED, UNDATED, Frame, SuvAttributes
from petseg_runtime.io.suv_timing import CLOCK_TOLERANCE_S

DEFLATED = "1.2.840.10008.1.2.1.99"  # the transfer syntax in which even the header is compressed
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
PET_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.128"
# Enhanced PET, and Legacy Converted Enhanced PET: all slices in one file, see `dicom_frames`.
_ENHANCED = "1.2.840.10008.5.1.4.1.1.130"
ENHANCED_PET_STORAGE = frozenset({_ENHANCED, LEGACY_CONVERTED})
_PREAMBLE = 132  # bytes, of which the last four say DICM
_BEGIN = 1024  # bytes, in which almost every file tells its transfer syntax
_TRANSFER_SYNTAX = b"\x02\0\x10\0"  # the tag
_MOST_INFLATED = 2**29
# The first bytes of an element, the tag of PixelData in them, and the length of a value that is compressed.
_ELEMENT, _PIXEL_DATA, _UNDEFINED = 12, b"\xe0\x7f\x10\0", 0xFFFFFFFF
_NUMBER_OF_FRAMES = 0x00280008
_DICOMDIR = "1.2.840.10008.1.3.10"
_DICOM_SUFFIXES = (".dcm", ".ima")
_TIME_ZONE = 0x00080201
# The zones that there are, in minutes from UTC: whole hours, and a few between them.
_ZONES = (*range(-12 * 60, 15 * 60, 60), *(-570, -210, -150, 210, 270, 330, 345, 390, 525, 570, 630, 765, 825))
_INJECTIONS = 0x00540016
_OF_AN_INJECTION = (0x00181072, 0x00181074, 0x00181075, 0x00181078)  # start time, dose, half-life, start date-time
# What AttenuationCorrectionMethod (0054,1101), which is free text, names where there was one, such as "measured,CTAC".
_METHOD = re.compile(r"MEASURED|CALCULATED|TRANSMISSION|SEGMENTED|(?<![A-Z])(CT|MR)|(?<!UN)CORRECTED|^YES\b|^ON\b")

# The vendors' private elements, by group. A writer takes the first block that is free, so they may lie in any; those
# after the sixteenth are not looked at.
_PRIVATE_BLOCKS = range(0x10, 0x20)
_PRIVATE = {0x0009: (0x0D, 0x8C), 0x0071: (0x22,), 0x7053: (0x00, 0x09)}

# Every element that is read, so that pydicom skips the rest.
_TAGS = (
    *(0x00080008, 0x00080016, 0x00080021, 0x00080022, 0x0008002A, 0x00080031, 0x00080032, 0x00080060, 0x00080070),
    *(0x0008103E, 0x00082218, _TIME_ZONE, 0x00100020, 0x00100040, 0x00101020, 0x00101030, 0x00180015, 0x00181242),
    *(0x0020000D, 0x0020000E, 0x00080020, 0x00209163),
    *(0x00200011, 0x00200032, 0x00200037, 0x00200052, 0x00280002, 0x00280004, 0x00280008, 0x00280010, 0x00280011),
    *(0x00280030, 0x00280051, 0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00280120, 0x00280121),
    *(0x00281052, 0x00281053, 0x00282110),
    *(_INJECTIONS, 0x00540081, 0x00541000, 0x00541001, 0x00541006, 0x00541101, 0x00541102, 0x00541300, 0x00541321),
    *(group << 16 | block for group in _PRIVATE for block in _PRIVATE_BLOCKS),
    *(group << 16 | block << 8 | last for group in _PRIVATE for last in _PRIVATE[group] for block in _PRIVATE_BLOCKS),
    *ENHANCED_TAGS,
)


@dataclass(frozen=True)
class PixelFormat:
    """How the numbers of a slice are stored (PS3.3 C.7.6.3).

    `representation` is 0 for unsigned numbers and 1 for signed ones; `lossy` LossyImageCompression (0028,2110), "00" or
    "01"; `padding` the first and last stored number that mean no image (PS3.3 C.7.5.1.1.2).
    """

    samples: int | None = None
    photometric: str = ""
    bits_allocated: int | None = None
    bits_stored: int | None = None
    high_bit: int | None = None
    representation: int | None = None
    lossy: str = ""
    padding: tuple[int, int] | None = None

    @property
    def signed(self) -> bool:
        return self.representation == 1


@dataclass(frozen=True)
class Header:
    """What one DICOM file says about itself. None or empty: the attribute is absent.

    Of files other than PET only the identity, the modality and the series number are read.

    Attributes
    ----------
    patient, study, series : PatientID, StudyInstanceUID, SeriesInstanceUID; kept out of every message.
    series_number, series_description : SeriesNumber (0020,0011), SeriesDescription (0008,103E) for `decoded_text`; the
        latter is kept out of every message as well, as people write names into it.
    body_part : BodyPartExamined (0018,0015) and the meanings in AnatomicRegionSequence (0008,2218), in upper case; no
        message repeats them, as people write anything there.
    attenuation_corrected : CorrectedImage (0028,0051) lists ATTN, and nothing else in the header denies it; None where
        the header does not say.
    orientation, position_mm, pixel_spacing_mm : ImageOrientationPatient (0020,0037), ImagePositionPatient
        (0020,0032), PixelSpacing (0028,0030: between rows, between columns).
    slope, intercept : RescaleSlope (0028,1053), RescaleIntercept (0028,1052) of this slice.
    declared_slices : NumberOfSlices (0054,0081) of the series.
    parts : InConcatenationTotalNumber (0020,9163), the files that an Enhanced PET was split into.
    suv : with the timing of this slice in `suv.frames`.
    file_bytes : size of the file; of an uncompressed Enhanced PET up to the end of its pixels.
    damage : why the file cannot be used, as a message; empty for a sound file.
    contradiction : why its series cannot be used, likewise; other series of the study may be.
    frame : number of the slice among those of its file, from 0; None where it is the only one.
    pixels_at : byte of the file at which the pixels of the first slice begin.
    unreadable : the damage is that the disk did not give the file just now.
    state : that the file was in when it was read; None where it could not be.
    blank : the damage is that it is empty or begins with zeros, and its name does not say that it is DICOM.
    """

    path: Path
    modality: str = ""
    patient: str = field(default="", repr=False)
    study: str = field(default="", repr=False)
    series: str = field(default="", repr=False)
    series_number: int | None = None
    series_description: tuple[bytes, tuple[str, ...]] = field(default=(b"", ()), repr=False)
    sop_class: str = ""
    transfer_syntax: str = ""
    image_type: tuple[str, ...] = ()
    series_type: tuple[str, ...] = ()
    body_part: tuple[str, ...] = field(default=(), repr=False)
    attenuation_corrected: bool | None = False
    frame_of_reference: str = field(default="", repr=False)
    frames: int | None = None
    rows: int | None = None
    columns: int | None = None
    orientation: tuple[float, ...] | None = None
    position_mm: tuple[float, ...] | None = None
    pixel_spacing_mm: tuple[float, ...] | None = None
    slope: float | None = None
    intercept: float | None = None
    pixels: PixelFormat = PixelFormat()
    declared_slices: int | None = None
    parts: int | None = None
    suv: SuvAttributes = field(default_factory=SuvAttributes)
    file_bytes: int = 0
    frame: int | None = None
    pixels_at: int = 0
    damage: str = ""
    contradiction: str = ""
    unreadable: bool = False
    blank: bool = False
    state: FileState | None = field(default=None, repr=False)

    @property
    def slice_bytes(self) -> int:
        """Of the pixels of one slice, uncompressed."""
        return (self.rows or 0) * (self.columns or 0) * ((self.pixels.bits_allocated or 0) // 8)


def read_headers(files: Iterable[Path]) -> list[Header]:
    """Headers of the slices in the DICOM files among `files`, in their order; other files and DICOMDIRs are left out.

    A file that is DICOM but cannot be read comes back too, with the reason in `damage`: whether that stops
    anything depends on the study it belongs to. Pixels are not read.
    """
    return [header for path in files for header in _read_headers(path)]


def group_by_study(headers: Iterable[Header]) -> list[list[Header]]:
    """Headers by PatientID and StudyInstanceUID, in the order of their first files.

    A damaged file does not say which study it is of, so it goes to each study that has a file in the same
    folder, and stops these; alone in its folder it is a study of its own. A blank one only stops studies whose files
    have its suffix: else it is something else.
    """
    headers = list(headers)
    studies: dict[tuple[str, str], list[Header]] = {}
    for header in headers:
        if header.sop_class:
            studies.setdefault((header.patient, header.study), []).append(header)
    places = {key: {(one.path.parent, kind_by_name(one.path)) for one in study} for key, study in studies.items()}
    strays: dict[Path, list[Header]] = {}
    for header in headers:
        if not header.sop_class:
            folder, kind = header.path.parent, kind_by_name(header.path)
            hosts = [
                studies[key]
                for key, there in places.items()
                if any(place == folder and (alike == kind or not header.blank) for place, alike in there)
            ]
            if not hosts and not header.blank:
                hosts = [strays.setdefault(folder, [])]
            for study in hosts:
                study.append(header)
    return [*studies.values(), *strays.values()]


def kind_by_name(path: PurePath) -> str:
    """The suffix, unless it is the end of a UID."""
    return "" if path.suffix[1:].isdigit() else path.suffix.lower()


def _read_headers(path: Path) -> list[Header]:
    try:
        with path.open("rb") as stream:
            begin = stream.read(_BEGIN)
            stream.seek(0)
            dataset = _dataset(stream, begin)
            if dataset is None:
                return _foreign(path, begin[:_PREAMBLE])
            end_of_header = stream.tell()  # where the pixels begin, or the end of the file
            pixels = _PixelElement.of(stream.read(_ELEMENT))
            file_bytes = stream.seek(0, os.SEEK_END)
            state = FileState.of(os.fstat(stream.fileno()))
        if str(dataset.file_meta.get("MediaStorageSOPClassUID", "")) == _DICOMDIR:
            return []
        file = Header(path, transfer_syntax=_transfer_syntax(dataset), file_bytes=file_bytes, state=state)
        return _parse_file(replace(file, pixels_at=end_of_header), dataset, pixels)
    except Exception as error:  # pydicom lets any exception out of a damaged file
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        unreadable = isinstance(error, OSError) and error.errno is not None
        damage = f"{path.name} cannot be read as DICOM ({reason}). Get the file again."
        return [Header(path, damage=damage, unreadable=unreadable)]


def _dataset(stream: BinaryIO, begin: bytes) -> FileDataset | None:
    """The data set of a DICOM file, with the preamble of one or without; None of anything else."""
    bare = not _has_preamble(begin)
    # Without it, it begins with a low element of group 0002 or 0008.
    if bare and not (begin[:2] in (b"\x02\0", b"\x08\0") and begin[3:4] == b"\0"):
        return None
    try:
        if DEFLATED.encode() in begin or _TRANSFER_SYNTAX not in begin:
            _refuse_a_bomb(stream, bare)
        dataset = pydicom.dcmread(stream, stop_before_pixels=True, force=bare, specific_tags=list(_TAGS))
    except Exception as error:  # pydicom's share no base class
        if bare and not isinstance(error, OSError):  # something else, that begins alike
            return None
        raise
    return None if bare and 0x00080016 not in dataset else dataset


def _refuse_a_bomb(stream: BinaryIO, bare: bool) -> None:
    """Refuse a deflated file that unpacks to more than `_MOST_INFLATED`: pydicom does so all at once, in the memory.

    Raises
    ------
    InvalidDicomError : if it does.
    """
    read_preamble(stream, force=bare)
    meta = _read_file_meta_info(stream)
    if str(meta.get("TransferSyntaxUID", "")) == DEFLATED:
        inflate, inflated = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while not inflate.eof and (packed := inflate.unconsumed_tail or stream.read(2**16)):
            inflated += len(inflate.decompress(packed, 2**20))
            if inflated > _MOST_INFLATED:
                raise InvalidDicomError("it unpacks to more than a scan has")
    stream.seek(0)


class _PixelElement(NamedTuple):
    """The head of PixelData (7FE0,0010): its own bytes, and those of its value; `_UNDEFINED` of compressed ones."""

    head: int
    value: int

    @classmethod
    def of(cls, begin: bytes) -> _PixelElement | None:
        """From its first bytes (PS3.5 7.1.2 and 7.1.3), whatever the transfer syntax says; None of another element."""
        if begin[:4] != _PIXEL_DATA:
            return None
        explicit = begin[4:6] in (b"OB", b"OW")
        length = begin[8:12] if explicit else begin[4:8]
        return cls(12 if explicit else 8, int.from_bytes(length, "little"))


def _parse_file(file: Header, dataset: FileDataset, pixels: _PixelElement | None) -> list[Header]:
    name, header = file.path.name, _parse(file, Elements(dataset))
    cut = file.pixels_at >= file.file_bytes and file.transfer_syntax != DEFLATED
    if header.sop_class in (PET_IMAGE_STORAGE, *ENHANCED_PET_STORAGE) and cut and not header.damage:
        return [Header(file.path, damage=f"{name} ends before its pixels, it is truncated. Get the file again.")]
    if header.sop_class not in ENHANCED_PET_STORAGE or header.modality != "PT" or header.damage:
        return [header]
    frames, groups = if_sound(lambda: Elements(dataset).whole(_NUMBER_OF_FRAMES)), slices_of(dataset)
    if not groups:
        damage = f"{name} is Enhanced PET without the functional groups of its slices. Get the file again."
        return [replace(header, damage=damage)]
    if pixels is not None and pixels.value != _UNDEFINED:  # compressed ones are refused where the pixels are read
        begin = file.pixels_at + pixels.head
        file = replace(file, pixels_at=begin, file_bytes=min(file.file_bytes, begin + pixels.value))
    slices = [_parse(replace(file, frame=number), Elements(one)) for number, one in enumerate(groups)]
    wrong = _contradiction(slices, frames, pixels)
    return [replace(one, contradiction=f"{name} {wrong}. Get the file again.") for one in slices] if wrong else slices


def _contradiction(slices: list[Header], frames: int | None, pixels: _PixelElement | None) -> str:
    """In what groups, frames and pixels of an Enhanced PET do not agree: then nobody knows whose pixels are whose."""
    if len(slices) != frames:
        return f"has functional groups of {len(slices)} slices, and NumberOfFrames (0028,0008) is {frames or 'absent'}"
    first, expected = slices[0], sum(one.slice_bytes for one in slices)
    if pixels is None:
        is_native = first.transfer_syntax in (IMPLICIT, EXPLICIT)
        return "is Enhanced PET without PixelData (7FE0,0010) after its header" if is_native else ""
    # Some bytes more are padding.
    if pixels.value != _UNDEFINED and first.slice_bytes and pixels.value >= expected + first.slice_bytes:
        return f"has {pixels.value} bytes of pixels, expected {expected} of its {len(slices)} slices"
    return ""


def _foreign(path: Path, begin: bytes) -> list[Header]:
    """A file that is no DICOM: damaged, if its name or its zeros (of a copy that broke off) say that it was one."""
    named, blank = is_named_as_dicom(path.name), not any(begin)
    if not named and not (blank and is_numbered(path.name)):
        return []
    damage = f"{path.name} is no DICOM file{', it is blank' if blank else ''}. Get it again, or remove it."
    return [Header(path, damage=damage, blank=not named)]


def _has_preamble(begin: bytes) -> bool:
    """Whether a file that begins so is DICOM by its preamble (PS3.10 7.1)."""
    return begin[128:_PREAMBLE] == b"DICM"


def is_named_as_dicom(name: str) -> bool:
    """Whether a file of this name says that it is DICOM."""
    return name.lower().endswith(_DICOM_SUFFIXES)


def is_numbered(name: str) -> bool:
    """As slices are, and locks and marks are not."""
    return any(letter.isdigit() for letter in name)


def _transfer_syntax(dataset: FileDataset) -> str:
    """As the file says; without a file's preamble it may not, and then it is one of the two that all may use."""
    said = str(dataset.file_meta.get("TransferSyntaxUID", ""))
    if said or dataset.preamble is not None:
        return said
    is_implicit, is_little_endian = dataset.original_encoding
    return "" if not is_little_endian else IMPLICIT if is_implicit else EXPLICIT


def _parse(header: Header, elements: Elements) -> Header:
    name = header.path.name
    if not elements.text(0x00080016):
        return replace(header, damage=f"{name} has no SOPClassUID (0008,0016), it is incomplete. Get the file again.")
    header = replace(
        header,
        modality=elements.text(0x00080060).upper(),
        patient=elements.text(0x00100020),
        study=elements.text(0x0020000D),
        series=elements.text(0x0020000E),
        series_description=elements.undecoded(0x0008103E),
        sop_class=elements.text(0x00080016),
    )
    try:
        numbered = replace(header, series_number=elements.whole(0x00200011))
        # Raw data of the scanner says PT as well; and an Enhanced PET says of each frame what is parsed here.
        is_pet = header.modality == "PT" and (header.sop_class == PET_IMAGE_STORAGE or header.frame is not None)
        return _parse_pet(numbered, elements) if is_pet else numbered
    except MalformedValueError as error:
        return replace(header, damage=f"{error} in {name}. Get the file again, or pass another series.")


def _parse_pet(header: Header, elements: Elements) -> Header:
    return replace(
        header,
        image_type=_upper(elements.texts(0x00080008)),
        series_type=_upper(elements.texts(0x00541000)),
        body_part=_upper((elements.text(0x00180015), *(if_sound(lambda: _regions(elements)) or ()))),
        attenuation_corrected=_is_attenuation_corrected(elements),
        frame_of_reference=elements.text(0x00200052),
        frames=elements.whole(0x00280008),
        rows=elements.binary(0x00280010),
        columns=elements.binary(0x00280011),
        orientation=elements.numbers(0x00200037),
        position_mm=elements.numbers(0x00200032),
        pixel_spacing_mm=elements.numbers(0x00280030),
        slope=elements.number(0x00281053),
        intercept=elements.number(0x00281052),
        pixels=PixelFormat(
            samples=elements.binary(0x00280002),
            photometric=elements.text(0x00280004).upper(),
            bits_allocated=elements.binary(0x00280100),
            bits_stored=elements.binary(0x00280101),
            high_bit=elements.binary(0x00280102),
            representation=elements.binary(0x00280103),
            lossy=elements.text(0x00282110),
            padding=_padding(elements),
        ),
        declared_slices=elements.binary(0x00540081),
        parts=elements.binary(0x00209163),
        suv=_suv_attributes(elements),
    )


def _regions(elements: Elements) -> list[str]:
    return [item.text(0x00080104) for item in elements.items(0x00082218)]


def _suv_attributes(elements: Elements) -> SuvAttributes:
    injections, zone, zone_is_sure = _injections(elements), *_zone(elements)
    injection = injections[0] if injections else Elements(pydicom.Dataset())
    dose = if_sound(lambda: injection.number(0x00181074), math.nan)
    # In MBq by PS3.3 C.8.22.4, though many write Bq there too, as in all others.
    if dose is not None and dose < MBQ_BELOW and elements.text(0x00080016) == _ENHANCED:
        dose *= 1e6
    codes = [code for tag in (0x00540300, 0x00540304) for code in injection.items(tag)]
    names = [injection.text(0x00180031), *(code.text(tag) for code in codes for tag in (0x00080100, 0x00080104))]
    injection_time = if_sound(lambda: injection.clock(0x00181072)) if zone_is_sure else None
    has_clock = injection_time is not None
    injected = if_sound(lambda: injection.moment(0x00181078, zone, has_clock, zone_is_sure))
    has_date = _has_date(elements)

    def undated(clock: int) -> datetime | None:
        moment = None if has_date else if_sound(lambda: elements.clock(clock))
        return None if moment is None else datetime.combine(UNDATED, moment)

    return SuvAttributes(
        units=elements.text(0x00541001).upper(),
        suv_type=elements.text(0x00541006).upper(),
        decay_correction=elements.text(0x00541102).upper(),
        corrected_image=_upper(elements.texts(0x00280051)),
        manufacturer=elements.text(0x00080070).upper(),
        weight_kg=if_sound(lambda: elements.number(0x00101030), math.nan),
        height_m=if_sound(lambda: elements.number(0x00101020), math.nan),
        sex=elements.text(0x00100040).upper(),
        dose=dose,
        half_life_s=if_sound(lambda: injection.number(0x00181075), math.nan),
        radionuclide=tuple(name for name in names if name),
        injections=len(injections),
        injection_datetime=injected,
        injection_time=injection_time,
        decay_corrected_to=if_sound(lambda: elements.moment(0x00189701, zone)),
        series_start=if_sound(lambda: _on(elements, (0x00080021, 0x00080020), 0x00080031)) or undated(0x00080031),
        private_scan_start=_private_scan_start(elements, zone),
        frames=(
            Frame(
                acquisition=if_sound(lambda: _acquisition(elements, zone)) or undated(0x00080032),
                frame_reference_s=_milliseconds(if_sound(lambda: elements.number(0x00541300), math.nan)),
                average=if_sound(lambda: elements.moment(0x00189151, zone)),
                duration_s=_milliseconds(if_sound(lambda: elements.number(0x00181242), math.nan)),
                decay_factor=if_sound(lambda: elements.number(0x00541321)),
                philips_suv=_philips_factor(elements, 0x00),
                philips_activity=_philips_factor(elements, 0x09),
            ),
        ),
    )


def _injections(elements: Elements) -> list[Elements]:
    """The items of RadiopharmaceuticalInformationSequence, of those that say the same of dose and time one."""
    items = elements.items(_INJECTIONS)
    said = {tuple(item.text(tag) for tag in _OF_AN_INJECTION): item for item in reversed(items)}
    return [item for texts, item in said.items() if any(texts)] or items[:1]


def _acquisition(elements: Elements, zone: str) -> datetime | None:
    """AcquisitionDate and -Time, or AcquisitionDateTime; of the day of series or study where no other date is given."""
    return (
        elements.date_and_time(0x00080022, 0x00080032)
        or elements.moment(0x0008002A, zone)
        or _on(elements, (0x00080021, 0x00080020), 0x00080032)
    )


def _on(elements: Elements, dates: Iterable[int], clock: int) -> datetime | None:
    """A time of day on the first of some dates that is there."""
    return next(filter(None, (elements.date_and_time(date, clock) for date in dates)), None)


def _has_date(elements: Elements) -> bool:
    """Whether anything dates the scan; a placeholder such as 00010101 does not."""
    dates = (if_sound(partial(elements.date, tag)) for tag in (0x00080022, 0x00080021, 0x00080020))
    return any(dates) or bool(elements.text(0x0008002A))


def _zone(elements: Elements) -> tuple[str, bool]:
    """The offset from UTC of the scan's moments, "" where nothing says it; and whether the site's clocks showed it.

    Where TimezoneOffsetFromUTC (0008,0201) is absent or malformed, a moment of the scan may carry its own. One of zero
    may stem from a program that brings moments to UTC: then AcquisitionDate and -Time, which never have one, tell the
    site's by their distance from an AcquisitionDateTime in UTC. Without these nothing without an offset may be held
    against it.
    """
    said = elements.text(_TIME_ZONE)
    if re.fullmatch(r"[+-]\d{4}", said):  # &ZZXX (PS3.3 C.12.1); another text says none
        return said, True
    offset = next(filter(None, (elements.offset(tag) for tag in (0x00189701, 0x00189151, 0x0008002A))), "")
    if offset.strip("+-0") or not offset:
        return offset, True
    shown = if_sound(lambda: elements.date_and_time(0x00080022, 0x00080032))
    in_utc = if_sound(lambda: elements.moment(0x0008002A, "")) if elements.offset(0x0008002A) else None
    zone = _zone_between(in_utc, shown) if in_utc is not None and shown is not None else None
    return (offset, False) if zone is None else (zone, True)


def _zone_between(in_utc: datetime, local: datetime) -> str | None:
    """The offset from UTC of the zone in which a moment is `local`; None if there is no such zone."""
    apart_s = (local - in_utc).total_seconds()
    minutes = next((zone for zone in _ZONES if abs(apart_s - 60 * zone) <= CLOCK_TOLERANCE_S), None)
    if minutes is None:
        return None
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}{abs(minutes) % 60:02}"


def _padding(elements: Elements) -> tuple[int, int] | None:
    """PixelPaddingValue (0028,0120), to PixelPaddingRangeLimit (0028,0121) where there is one."""
    first = elements.binary(0x00280120)
    if first is None:
        return None
    last = elements.binary(0x00280121)
    both = [first, first if last is None else last]
    if elements.binary(0x00280103) == 1:
        bits = elements.binary(0x00280100) or 16
        both = [value - (1 << bits) if value >> (bits - 1) else value for value in both]
    return min(both), max(both)


def _is_attenuation_corrected(elements: Elements) -> bool | None:
    """ATTN in CorrectedImage, unless AttenuationCorrectionMethod or GE's own flag says that there was none.

    GE Discovery ST lists ATTN for its uncorrected series as well, and puts 0 into (0009,108C). An empty CorrectedImage
    says nothing (it is of type 2): then the method decides, which is free text, and without one that is known nobody
    knows.
    """
    corrections, method = _upper(elements.texts(0x00280051)), elements.text(0x00541101).upper()
    denied = UNCORRECTED.search(method) is not None
    flag = _private(elements, 0x0009, "GEMS_PETD_01", "GE", 0x8C)
    denied = denied or (flag is not None and if_sound(lambda: elements.binary(flag)) == 0)
    if denied or corrections:
        return "ATTN" in corrections and not denied
    return True if _METHOD.search(method) else None


def _private_scan_start(elements: Elements, zone: str) -> datetime | None:
    ge = _private(elements, 0x0009, "GEMS_PETD_01", "GE", 0x0D)
    tag = ge or _private(elements, 0x0071, "SIEMENS MED PT", "SIEMENS", 0x22)
    # No standard says what a private element holds; where it is no moment, the public ones remain.
    moment = if_sound(lambda: elements.moment(tag, zone, utc_is_local=False)) if tag else None
    return None if moment is None or moment.time() == time(0) else moment  # of midnight only the date was written


def _philips_factor(elements: Elements, last: int) -> float | None:
    tag = _private(elements, 0x7053, "Philips PET Private Group", "PHILIPS", last)
    return if_sound(lambda: elements.number(tag)) if tag else None


def _private(elements: Elements, group: int, creator: str, vendor: str, last: int) -> int | None:
    """The tag of a private element, whose last byte is `last`, in the block that its creator reserved (PS3.5 7.8.1).

    Anonymised files have lost the creators' names now and then: then it is the first block of the vendor's own files.
    """
    block = elements.private_blocks.get((group, creator.upper()))
    is_nameless = all(other != group for other, _ in elements.private_blocks)
    if is_nameless and elements.text(0x00080070).upper().startswith(vendor):
        block = _PRIVATE_BLOCKS[0]
    return None if block is None else group << 16 | block << 8 | last


def _upper(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(text.upper() for text in texts)


def _milliseconds(value: float | None) -> float | None:
    return None if value is None else value / 1000.0
