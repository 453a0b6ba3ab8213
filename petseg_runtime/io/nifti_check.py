"""What ITK passes over in silence in a NIfTI file: missing bytes (it reads zeros) and NaN (likewise)."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from petseg_runtime.errors import InputError

# NIfTI-1 header (nifti1.h): offsets of dim, datatype, bitpix, vox_offset. NIfTI-2 (nifti2.h) has its own.
_NIFTI1 = {"header": 348, "dim": (40, "8h"), "datatype": (70, "h"), "bitpix": (72, "h"), "vox_offset": (108, "f")}
_NIFTI2 = {"header": 540, "dim": (16, "8q"), "datatype": (12, "h"), "bitpix": (14, "h"), "vox_offset": (168, "q")}
_FLOATS = {16: "f4", 64: "f8"}
_CHUNK_BYTES = 1 << 22


def check_nifti(path: Path) -> None:
    """Read the file through once and refuse it where ITK would invent voxels.

    Raises
    ------
    InputError : if bytes are missing, the compression's checksum is wrong, or a voxel is NaN or infinite.
    """
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opener(path, "rb") as stream:
            _check(stream, path.name)  # type: ignore[arg-type]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path.name} is truncated or damaged: {error}. Get the file again.") from error
    except (OSError, struct.error) as error:
        raise InputError(f"{path.name} cannot be read: {error}. Get the file again.") from error


def _check(stream: BinaryIO, name: str) -> None:
    start = stream.read(4)
    for order in "<>":
        layout = {348: _NIFTI1, 540: _NIFTI2}.get(struct.unpack(f"{order}i", start)[0])
        if layout is not None:
            break
    else:
        return  # no NIfTI header at all: ITK refuses it
    header = start + stream.read(int(layout["header"]) - 4)  # type: ignore[call-overload]
    values = {
        key: struct.unpack_from(order + layout[key][1], header, layout[key][0])  # type: ignore[index]
        for key in ("dim", "datatype", "bitpix", "vox_offset")
    }
    rank, *sizes = values["dim"]
    voxels = int(np.prod(sizes[: max(0, rank)], dtype=np.float64))
    expected = voxels * values["bitpix"][0] // 8
    stream.read(int(values["vox_offset"][0]) - len(header))

    kind = _FLOATS.get(values["datatype"][0])
    found, odd = 0, 0
    for chunk in _chunks(stream):
        usable = chunk[: max(0, expected - found)]
        found += len(chunk)
        if kind is not None and len(usable) % int(kind[1]) == 0:
            odd += int(np.count_nonzero(~np.isfinite(np.frombuffer(usable, order + kind))))
    if found < expected:
        raise InputError(f"{name} is truncated: {found} bytes of voxels, expected {expected}. Get the file again.")
    if odd:
        raise InputError(
            f"{name} holds {odd} voxels that are NaN or infinite. Repair the scan; PETSeg does not fill gaps in it."
        )


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    """The rest of the stream, to its end: only there gzip checks its checksum."""
    while chunk := stream.read(_CHUNK_BYTES):
        yield chunk
