"""MHA and NRRD files: what ITK passes over in silence is refused.

ITK takes an absent voxel size for 1 mm, an absent origin for 0 and any unit for mm, fills what is missing of an MHA's
voxels with whatever the memory held, and ends the process where a header's number of dimensions is none, or where a
line is longer than its messages have room for.
"""

from __future__ import annotations

import math
import re
import zlib
from pathlib import Path
from typing import IO

from petseg_runtime.errors import InputError
from petseg_runtime.io.plausible import MAX_VOXELS

_CHUNK_BYTES = 1 << 22
_MAX_HEADER_LINES = 500
# MetaIO keeps a text of its own in 255 bytes and writes on beyond; axes are many digits, and what others put there, as
# ITK does what it knows of a DICOM file, is read as it is.
_LONGEST_MHA_TEXT, _LONGEST_MHA_AXES, _LONGEST_MHA_LINE = 254, 1000, 4000
_MHA_NAMES = frozenset(
    (
        *("Comment", "ObjectType", "ObjectSubType", "TransformType", "NDims", "Name", "ID", "ParentID", "Color"),
        *("CompressedData", "CompressedDataSize", "CompressionLevel", "BinaryData", "ElementByteOrderMSB"),
        *("BinaryDataByteOrderMSB", "Position", "Origin", "Offset", "CenterOfRotation", "DistanceUnits", "Modality"),
        *("AnatomicalOrientation", "ElementSpacing", "DimSize", "HeaderSize", "SequenceID", "ElementMin", "ElementMax"),
        *("ElementNumberOfChannels", "ElementSize", "ElementNBits", "ElementToIntensityFunctionSlope"),
        *("ElementToIntensityFunctionOffset", "ElementType", "ElementDataFile", "AcquisitionDate"),
    )
)
# Bytes of each real type of an MHA; MetaIO writes a long of four.
_ELEMENT_BYTES = {
    **{"MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4},
    **{"MET_LONG": 4, "MET_ULONG": 4, "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_FLOAT": 4, "MET_DOUBLE": 8},
}
# By which an MHA lies in space: as many numbers as dimensions, and as many squared.
_SPACING, _ORIGIN = ("ElementSpacing", "ElementSize"), ("Offset", "Position", "Origin")
_AXES = ("TransformMatrix", "Orientation", "Rotation")

_NRRD_MAGIC = (b"NRRD00.01", b"NRRD0001", b"NRRD0002", b"NRRD0003", b"NRRD0004", b"NRRD0005")
_MAX_NRRD_HEADER_BYTES = 1 << 20
# Longer, ITK's message on a field that it does not understand ends the process; content is taken as it is.
_LONGEST_NRRD_FIELD = 500
# Teem's names of the fields (enumsNrrd.c), each also without its blank.
_NRRD_FIELDS = {
    spelling: field
    for field in (
        *("content", "number", "type", "block size", "dimension", "space", "space dimension", "sizes", "spacings"),
        *("thicknesses", "axis mins", "axis maxs", "space directions", "centers", "centerings", "kinds", "labels"),
        *("units", "min", "max", "old min", "old max", "endian", "encoding", "line skip", "byte skip", "sample units"),
        *("space units", "space origin", "measurement frame", "data file"),
    )
    for spelling in (field, field.replace(" ", ""))
}
# Bytes of each real type of an NRRD, by all its names.
_NRRD_TYPE_BYTES = {
    name: size
    for size, names in (
        (1, "signed char, int8, int8_t, uchar, unsigned char, uint8, uint8_t"),
        (2, "short, short int, signed short, signed short int, int16, int16_t"),
        (2, "ushort, unsigned short, unsigned short int, uint16, uint16_t"),
        (4, "int, signed int, int32, int32_t, uint, unsigned int, uint32, uint32_t, float"),
        (8, "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t"),
        (8, "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t, double"),
    )
    for name in names.split(", ")
}
# The patient's spaces, in full and in short; in others nobody knows where left is. With time, ITK takes RAS and LAS for
# LPS, left for right.
_NRRD_SPACES = (
    *("left-posterior-superior", "right-anterior-superior", "left-anterior-superior", "lps", "ras", "las"),
    *("left-posterior-superior-time", "lpst"),
)


def check_mha(path: Path) -> None:
    """Refuse an MHA file without voxel size, origin or axes, or without exactly the voxels that its header states.

    Raises
    ------
    InputError : if so, or if it cannot be read.
    """
    with _opened(path) as stream:
        fields = _mha_fields(stream, path.name)
        if fields.get("ElementDataFile", "").upper() != "LOCAL":
            raise InputError(f"{path.name} keeps its voxels in another file, or is no MHA. Save it as one .mha file.")
        expected = _stated_bytes(fields, path.name)
        _require_numbers(fields.get("ElementSpacing") or fields.get("ElementSize"), "ElementSpacing", path.name)
        _check_place(fields, path.name)
        unit = fields.get("DistanceUnits", "mm")
        if unit.lower() not in ("mm", "?", ""):
            raise InputError(f"{path.name} is in {unit}, expected mm. Save it in mm.")
        if _numbers(fields, "ElementToIntensityFunctionSlope", path.name, 1.0)[0] != 1.0 or any(
            _numbers(fields, "ElementToIntensityFunctionOffset", path.name, 0.0)
        ):
            raise InputError(f"{path.name} scales its voxels (ElementToIntensityFunction). Save it with the values.")
        compressed = _is_true(fields.get("CompressedData", "false"))
        taken = _check_voxels(stream, zlib.decompressobj() if compressed else None, expected, path)
        stated = _numbers(fields, "CompressedDataSize", path.name, math.nan)[0]
        if compressed and stated != taken:
            said = "none" if math.isnan(stated) else f"{stated:g}"
            raise InputError(
                f"{path.name} has {taken} bytes of compressed voxels and states {said} (CompressedDataSize). "
                "Save it anew."
            )


def _mha_fields(stream: IO[bytes], name: str) -> dict[str, str]:
    """The fields of an MHA's header; the stream is left where the voxels begin."""
    fields: dict[str, str] = {}
    for _ in range(_MAX_HEADER_LINES):
        line = stream.readline(_LONGEST_MHA_LINE + 1).decode("latin-1")
        key, _, value = line.partition("=")
        key = key.strip()  # MetaIO takes a name as it is written
        of_text = _LONGEST_MHA_TEXT if key in _MHA_NAMES else _LONGEST_MHA_LINE
        longest = _LONGEST_MHA_AXES if key in _AXES else of_text
        if len(line) > longest:
            shown = key if longest < _LONGEST_MHA_LINE else "A header line"
            raise InputError(
                f"{shown} of {name} has more than {longest} characters, or it is no MHA. Save it anew without it."
            )
        fields[key] = value.strip()
        if key == "ElementDataFile":
            break
    return fields


def _check_place(fields: dict[str, str], name: str) -> None:
    """Refuse an MHA that does not say how the patient lies in it: ITK takes absent axes for the patient's, from 0."""
    rank = int(fields["NDims"])
    for field, count in (*((field, rank) for field in _SPACING + _ORIGIN), *((field, rank**2) for field in _AXES)):
        if field in fields and len(_numbers(fields, field, name)) != count:
            raise InputError(f"{name} has a {field} of other than {count} numbers. Get the file again.")
    for names in (_AXES, _ORIGIN):
        if not any(field in fields for field in names):
            raise InputError(
                f"{name} does not say how the patient lies in it: {names[0]} is absent. Save it with that."
            )


def _stated_bytes(fields: dict[str, str], name: str) -> int:
    """Bytes of the voxels that an MHA's header states."""
    try:
        rank, sides = int(fields.get("NDims", "")), [int(side) for side in fields.get("DimSize", "").split()]
    except ValueError:
        rank, sides = 0, []
    if rank not in (2, 3, 4) or len(sides) != rank or min(sides) < 1:
        raise InputError(
            f"{name} has NDims {fields.get('NDims', 'absent')} and DimSize {fields.get('DimSize', 'absent')}, expected "
            "three dimensions. Get the file again."
        )
    kind, channels = fields.get("ElementType", "absent"), _numbers(fields, "ElementNumberOfChannels", name, 1.0)[0]
    if kind not in _ELEMENT_BYTES or channels != 1:
        raise InputError(f"{name} has ElementType {kind} and {channels:g} numbers a voxel, expected one real number.")
    if not _is_true(fields.get("BinaryData", "true")) or fields.get("HeaderSize", "0") not in ("0", "-1"):
        raise InputError(f"{name} keeps its voxels as text, or apart from its header. Save it anew as binary .mha.")
    return _voxel_bytes(sides, _ELEMENT_BYTES[kind], name)


def _is_true(value: str) -> bool:
    """As MetaIO reads it: by the first letter."""
    return value[:1].lower() in ("t", "y", "1")


def _numbers(fields: dict[str, str], field: str, name: str, otherwise: float = 0.0) -> tuple[float, ...]:
    """The finite numbers of a field; `otherwise` where it is absent."""
    if field not in fields:
        return (otherwise,)
    try:
        values = tuple(float(value) for value in fields[field].split())
    except ValueError:
        values = ()
    if not values or not all(map(math.isfinite, values)):
        raise InputError(f"{name} has a {field} that is no number. Get the file again.")
    return values


def check_nrrd(path: Path) -> None:
    """Refuse an NRRD file without voxel size in mm, origin or space, or without exactly the voxels of its header.

    Raises
    ------
    InputError : if so, or if it cannot be read.
    """
    with _opened(path) as stream:
        fields = _nrrd_fields(stream, path.name)
        if "data file" in fields:
            raise InputError(f"{path.name} keeps its voxels in another file. Save it as one .nrrd file.")
        expected = _nrrd_bytes(fields, path.name)
        _check_nrrd_place(fields, path.name)
        inflate = None if fields["encoding"].lower() == "raw" else zlib.decompressobj(zlib.MAX_WBITS | 16)
        if fields.get("byte skip") == "-1":  # they are the file's end
            stream.seek(max(stream.tell(), path.stat().st_size - expected))
        _check_voxels(stream, inflate, expected, path)


def _nrrd_fields(stream: IO[bytes], name: str) -> dict[str, str]:
    """The fields of an NRRD's header, told from its comments and `key:=value` as Teem does.

    The stream is left where the voxels begin: after the first empty line.
    """
    first, *lines = stream.read(_MAX_NRRD_HEADER_BYTES).splitlines(keepends=True) or [b""]
    if first.rstrip() not in _NRRD_MAGIC:
        raise InputError(f"{name} cannot be read as NRRD: damaged or of another kind. Get the file again.")
    fields: dict[str, str] = {}
    begin = len(first)
    for line in lines:
        begin += len(line)
        text = line.decode("latin-1").rstrip("\r\n")
        if not text:
            stream.seek(begin)
            return fields
        key, colon, value = text.partition(": ")
        field = _NRRD_FIELDS.get(key.lower()) if colon else None
        if "\0" in text or not (field or text.startswith("#") or ":=" in key):
            raise InputError(f"{name} has a header line that is no field of an NRRD. Get the file again.")
        if field and field != "content" and len(text) > _LONGEST_NRRD_FIELD:
            raise InputError(
                f"{name} has {field} of {len(text)} characters, expected {_LONGEST_NRRD_FIELD} at most. Save it anew."
            )
        if field:
            fields[field] = value.strip()
    raise InputError(
        f"{name} has no empty line after its header, expected one within {_MAX_NRRD_HEADER_BYTES} bytes. Save it anew."
    )


def _nrrd_bytes(fields: dict[str, str], name: str) -> int:
    """Bytes of the voxels that an NRRD's header states, if they can be counted."""
    sizes, kind, encoding = (fields.get(field, "absent") for field in ("sizes", "type", "encoding"))
    if not all(size.isascii() and size.isdigit() for size in sizes.split()):
        raise InputError(f"{name} has sizes {sizes}, expected whole numbers. Get the file again.")
    if kind.lower() not in _NRRD_TYPE_BYTES:
        raise InputError(f"{name} has type {kind}, expected one real number a voxel. Save it as float.")
    if encoding.lower() not in ("raw", "gzip", "gz"):
        raise InputError(f"{name} has encoding {encoding}, expected raw or gzip. Save it with gzip.")
    skips = (fields.get("line skip", "0"), fields.get("byte skip", "0"))
    if skips != ("0", "0") and (skips, encoding.lower()) != (("0", "-1"), "raw"):
        raise InputError(f"{name} keeps its voxels apart from its header (line skip, byte skip). Save it anew.")
    return _voxel_bytes([int(size) for size in sizes.split()], _NRRD_TYPE_BYTES[kind.lower()], name)


def _check_nrrd_place(fields: dict[str, str], name: str) -> None:
    """Refuse an NRRD that does not say how the patient lies in it: ITK takes what it does not say for 1 mm, from 0."""
    directions = fields.get("space directions", "")
    _require_numbers(directions, "space directions", name)
    sides = fields["sizes"].split()
    for direction, side in zip(re.findall(r"none|\([^)]*\)", directions), sides, strict=False):  # ITK counts them
        if direction == "none" and int(side) > 1:
            raise InputError(
                f"{name} has {side} numbers a voxel, expected one, or does not state its voxel size: space directions "
                f"has none for an axis of {side}. Save one scan with its voxel size."
            )
    space, origin = fields.get("space", "absent"), fields.get("space origin", "absent")
    if space.lower() not in _NRRD_SPACES:
        raise InputError(
            f"{name} does not say how the patient lies in it, as PETSeg reads it: space is {space}, expected "
            "left-posterior-superior, RAS or LAS. Save it with one."
        )
    if not origin.startswith("("):
        raise InputError(
            f"{name} does not say how the patient lies in it: space origin is {origin}. Save it with that."
        )
    units = f"{fields.get('space units', '')} {fields.get('units', '')}".replace('"', "").split()
    if any(unit.lower() not in ("mm", "millimeter", "millimeters") for unit in units):
        raise InputError(f"{name} is in {units[0]}, expected mm. Save it in mm.")


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror}.") from error


def _require_numbers(value: str | None, field: str, name: str) -> None:
    """ITK reads what is absent, and `nan`, as 1 mm."""
    if not value or "nan" in value.lower() or "inf" in value.lower():
        raise InputError(f"{name} does not state its voxel size ({field}). Save it with one.")


def _voxel_bytes(sides: list[int], element_bytes: int, name: str) -> int:
    """Bytes of so many voxels; more than a PET has are refused, as to inflate them would take hours."""
    if math.prod(sides) > MAX_VOXELS:
        raise InputError(f"{name} claims {' x '.join(map(str, sides))} voxels, more than a PET scan can have.")
    return math.prod(sides) * element_bytes


def _check_voxels(stream: IO[bytes], inflate: zlib._Decompress | None, expected: int, path: Path) -> int:
    """Refuse other than exactly the expected bytes from here to the file's end; how many they are in the file."""
    stored = path.stat().st_size - stream.tell()
    found, taken = _inflated(stream, inflate, expected, path.name) if inflate else (stored, stored)
    if found < expected:
        raise InputError(f"{path.name} is truncated: {found} bytes of voxels, expected {expected}. Get the file again.")
    if found > expected:
        raise InputError(
            f"{path.name} contradicts itself: {found} bytes of voxels or more, expected {expected}. Get the file again."
        )
    if taken < stored:
        raise InputError(
            f"{path.name} contradicts itself: {stored - taken} bytes after its voxels, expected none. Save it anew."
        )
    return taken


def _inflated(stream: IO[bytes], inflate: zlib._Decompress, expected: int, name: str) -> tuple[int, int]:
    """Bytes in the stream that begins here, decompressed and as they are; no further than beyond the expected."""
    begin, found = stream.tell(), 0
    try:
        while not inflate.eof and found <= expected:
            packed = inflate.unconsumed_tail or stream.read(_CHUNK_BYTES)
            if not packed:
                raise InputError(f"{name} is truncated: its compressed voxels do not end. Get the file again.")
            found += len(inflate.decompress(packed, _CHUNK_BYTES))
    except zlib.error as error:
        raise InputError(f"The voxels of {name} are damaged: {error}. Get the file again.") from error
    if inflate.unused_data.startswith(b"\x1f\x8b"):
        raise InputError(f"{name} has its voxels in several gzip members, expected one. Save it anew.")
    return found, stream.tell() - begin - len(inflate.unused_data)
