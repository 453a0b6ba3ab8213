"""MHA and NRRD files: what ITK passes over in silence is refused.

ITK takes an absent voxel size for 1 mm and any unit for mm, fills what is missing of an MHA's voxels with whatever the
memory held, and ends the process where a header's number of dimensions is none.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import IO

from petseg_runtime.errors import InputError

_CHUNK_BYTES = 1 << 22
_MAX_HEADER_LINES = 500
# Bytes of each real type of an MHA; MetaIO writes a long of four.
_ELEMENT_BYTES = {
    **{"MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4},
    **{"MET_LONG": 4, "MET_ULONG": 4, "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_FLOAT": 4, "MET_DOUBLE": 8},
}
# The patient's spaces of an NRRD, in full and in short; in others nobody knows where left is.
_SPACES = tuple(
    name + time
    for name in ("left-posterior-superior", "right-anterior-superior", "left-anterior-superior", "lps", "ras", "las")
    for time in ("", "-time" if "-" in name else "t")
)
# By which an MHA lies in space: as many numbers as dimensions, and as many squared.
_PLACE = ("ElementSpacing", "ElementSize", "Offset", "Position", "Origin")
_AXES = ("TransformMatrix", "Orientation", "Rotation")


def check_mha(path: Path) -> None:
    """Refuse an MHA file without voxel size or axes, or without exactly the voxels that its header states.

    Raises
    ------
    InputError : if so, or if it cannot be read.
    """
    with _opened(path) as stream:
        fields = {}
        for _ in range(_MAX_HEADER_LINES):
            key, _, value = stream.readline().decode("latin-1").partition("=")
            fields[key.strip()] = value.strip()  # MetaIO takes a name as it is written
            if key.strip() == "ElementDataFile":
                break
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
        _check_voxels(stream, fields, expected, path)


def _check_place(fields: dict[str, str], name: str) -> None:
    """Refuse an MHA that does not say how the patient lies in it: ITK takes absent axes for the patient's own."""
    rank = int(fields["NDims"])
    for field, count in (*((field, rank) for field in _PLACE), *((field, rank**2) for field in _AXES)):
        if field in fields and len(_numbers(fields, field, name)) != count:
            raise InputError(f"{name} has a {field} of other than {count} numbers. Get the file again.")
    if not any(field in fields for field in _AXES):
        raise InputError(
            f"{name} does not say how the patient lies in it: TransformMatrix is absent. Save it with that."
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
    return math.prod(sides) * _ELEMENT_BYTES[kind]


def _check_voxels(stream: IO[bytes], fields: dict[str, str], expected: int, path: Path) -> None:
    begin = stream.tell()
    if not _is_true(fields.get("CompressedData", "false")):
        found = path.stat().st_size - begin
    else:
        found, taken = _check_stream(stream, zlib.decompressobj(), path.name, begin)
        stated = _numbers(fields, "CompressedDataSize", path.name, math.nan)[0]
        if stated != taken:
            raise InputError(
                f"{path.name} has {taken} bytes of compressed voxels and states {stated:g} (CompressedDataSize). "
                "Save it anew."
            )
    if found != expected:
        wrong = "is truncated" if found < expected else "contradicts itself"
        raise InputError(f"{path.name} {wrong}: {found} bytes of voxels, expected {expected}. Get the file again.")


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
    """Refuse an NRRD file without voxel size in mm, or whose compressed voxels are damaged.

    Raises
    ------
    InputError : if so, or if it cannot be read.
    """
    with _opened(path) as stream:
        if not stream.readline().startswith(b"NRRD"):
            raise InputError(f"{path.name} cannot be read as NRRD: damaged or of another kind. Get the file again.")
        fields = {}
        for _ in range(_MAX_HEADER_LINES):
            line = stream.readline().decode("latin-1").strip()
            if not line:
                break
            key, _, value = line.partition(":")
            fields[key.strip().lower()] = value.strip()
        if "data file" in fields or "datafile" in fields:
            raise InputError(f"{path.name} keeps its voxels in another file. Save it as one .nrrd file.")
        _require_numbers(fields.get("space directions") or fields.get("spacings"), "space directions", path.name)
        if fields.get("space", "").lower() not in _SPACES:
            raise InputError(
                f"{path.name} does not say how the patient lies in it: space is {fields.get('space', 'absent')}, "
                "expected left-posterior-superior or the like. Save it with that."
            )
        units = f"{fields.get('space units', '')} {fields.get('units', '')}".replace('"', "").split()
        if any(unit.lower() not in ("mm", "millimeter", "millimeters") for unit in units):
            raise InputError(f"{path.name} is in {units[0]}, expected mm. Save it in mm.")
        if fields.get("encoding", "").lower() in ("gzip", "gz"):
            _check_stream(stream, zlib.decompressobj(zlib.MAX_WBITS | 16), path.name, stream.tell())


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror}.") from error


def _require_numbers(value: str | None, field: str, name: str) -> None:
    """ITK reads what is absent, and `nan`, as 1 mm."""
    if not value or "nan" in value.lower() or "inf" in value.lower():
        raise InputError(f"{name} does not state its voxel size ({field}). Save it with one.")


def _check_stream(stream: IO[bytes], decompressor: zlib._Decompress, name: str, begin: int) -> tuple[int, int]:
    """Bytes in the stream that begins here, decompressed and as they are."""
    found = 0
    try:
        while not decompressor.eof and (chunk := stream.read(_CHUNK_BYTES)):
            found += len(decompressor.decompress(chunk))
    except zlib.error as error:
        raise InputError(f"The voxels of {name} are damaged: {error}. Get the file again.") from error
    if not decompressor.eof:
        raise InputError(f"{name} is truncated: its compressed voxels do not end. Get the file again.")
    return found, stream.tell() - begin - len(decompressor.unused_data)
