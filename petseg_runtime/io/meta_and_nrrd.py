"""MHA and NRRD files: what ITK passes over in silence is refused.

ITK takes an absent voxel size for 1 mm and any unit for mm, and goes on with whatever a damaged compressed stream gave.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import IO

from petseg_runtime.errors import InputError

_CHUNK_BYTES = 1 << 22
_MAX_HEADER_LINES = 500


def check_mha(path: Path) -> None:
    """Refuse an MHA file without voxel size, or whose compressed voxels are damaged.

    Raises
    ------
    InputError : if so, or if it cannot be read.
    """
    with _opened(path) as stream:
        fields = {}
        for _ in range(_MAX_HEADER_LINES):
            key, _, value = stream.readline().decode("latin-1").partition("=")
            fields[key.strip().lower()] = value.strip()
            if key.strip().lower() == "elementdatafile":
                break
        if fields.get("elementdatafile", "").upper() != "LOCAL":
            raise InputError(f"{path.name} keeps its voxels in another file, or is no MHA. Save it as one .mha file.")
        _require_numbers(fields.get("elementspacing") or fields.get("elementsize"), "ElementSpacing", path.name)
        if fields.get("compresseddata", "").lower() == "true":
            _check_stream(stream, zlib.decompressobj(), path.name)


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
        units = fields.get("space units", "").replace('"', "").split()
        if any(unit.lower() not in ("mm", "millimeter", "millimeters") for unit in units):
            raise InputError(f"{path.name} is in {units[0]}, expected mm. Save it in mm.")
        if fields.get("encoding", "").lower() in ("gzip", "gz"):
            _check_stream(stream, zlib.decompressobj(zlib.MAX_WBITS | 16), path.name)


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror}.") from error


def _require_numbers(value: str | None, field: str, name: str) -> None:
    """ITK reads what is absent, and `nan`, as 1 mm."""
    if not value or "nan" in value.lower() or "inf" in value.lower():
        raise InputError(f"{name} does not state its voxel size ({field}). Save it with one.")


def _check_stream(stream: IO[bytes], decompressor: zlib._Decompress, name: str) -> None:
    try:
        while not decompressor.eof and (chunk := stream.read(_CHUNK_BYTES)):
            decompressor.decompress(chunk)
    except zlib.error as error:
        raise InputError(f"The voxels of {name} are damaged: {error}. Get the file again.") from error
    if not decompressor.eof:
        raise InputError(f"{name} is truncated: its compressed voxels do not end. Get the file again.")
