"""NIfTI-1 files: what ITK passes over in silence is refused, and what it refuses without need is mended.

ITK reads missing bytes and NaN as zeros, a voxel size of 0 as 1 mm, and takes the size from one field where another
contradicts it. It refuses axes that are off the right angle by a rounding of their decimals.
"""

from __future__ import annotations

import gzip
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from petseg_runtime.errors import InputError

_HEADER_BYTES = 348
_FIRST_VOXEL = 352
# Extensions of the header lie before the voxels; beyond this one would fill the memory.
_LAST_FIRST_VOXEL = 1e6
# Offsets of fields in the header (nifti1.h).
_DIM, _DATATYPE, _BITPIX, _PIXDIM, _VOX_OFFSET, _QFORM_CODE, _SFORM_CODE, _SROW, _MAGIC = (
    *(40, 70, 72, 76, 108),
    *(252, 254, 280, 344),
)
# Bytes of a voxel of each real datatype; others are colours or complex numbers.
_BYTES = {2: 1, 256: 1, 4: 2, 512: 2, 8: 4, 768: 4, 16: 4, 64: 8, 1024: 8, 1280: 8}
_FLOATS = {16: "f4", 64: "f8"}
_CHUNK_BYTES = 1 << 22

# Largest deviation of the axes' cosines from right angles: three decimals make 1e-3, a shear much more.
_RIGHT_ANGLE_TOLERANCE = 2e-3
# The voxel size stands in pixdim and in the sform; float32 and a few decimals agree to this.
_SAME_SIZE = 1e-3


@dataclass(frozen=True)
class _Header:
    content: bytes
    order: str  # "<" or ">"

    def values(self, form: str, offset: int) -> tuple[float, ...]:
        return struct.unpack_from(self.order + form, self.content, offset)

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """The sform, 3 x 4."""
        return np.array(self.values("12f", _SROW), np.float64).reshape(3, 4)


def check_nifti(path: Path) -> None:
    """Read a file through once and refuse it where ITK would invent voxels or their size.

    Raises
    ------
    InputError : if bytes are missing, the compression's checksum is wrong, a voxel is NaN or infinite, the header
        contradicts itself, or the axes are not at right angles.
    """
    try:
        with _open(path) as stream:
            header = _read_header(stream, path.name)
            _check_geometry(header, path.name)
            _check_voxels(header, stream, path.name)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path.name} is truncated or damaged: {error}. Get the file again.") from error
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror}.") from error


@contextmanager
def straightened(path: Path) -> Iterator[Path]:
    """A temporary copy whose axes are at exact right angles: the nearest to those in the file."""
    with _open(path) as stream, tempfile.TemporaryDirectory() as folder:
        header = _read_header(stream, path.name)
        affine = header.affine
        norms = np.linalg.norm(affine[:, :3], axis=0)
        u, _, vt = np.linalg.svd(affine[:, :3] / norms)
        affine[:, :3] = (u @ vt) * norms
        content = bytearray(header.content)
        struct.pack_into(f"{header.order}12f", content, _SROW, *affine.ravel())
        struct.pack_into(f"{header.order}h", content, _QFORM_CODE, 0)
        copy = Path(folder) / "scan.nii"
        with copy.open("wb") as target:
            target.write(content)
            shutil.copyfileobj(stream, target)
        yield copy


def _open(path: Path) -> IO[bytes]:
    """Decompresses by content, as ITK does for a .nii.gz; it does not for a .nii."""
    with path.open("rb") as stream:
        compressed = stream.read(2) == b"\x1f\x8b"
    if compressed and not path.name.lower().endswith(".gz"):
        raise InputError(f"{path.name} is compressed with gzip. Rename it to .nii.gz.")
    return gzip.open(path) if compressed else path.open("rb")  # type: ignore[return-value]


def _read_header(stream: IO[bytes], name: str) -> _Header:
    content = stream.read(_HEADER_BYTES)
    sizes = {order: struct.unpack(f"{order}i", content[:4])[0] for order in "<>"} if len(content) >= 4 else {}
    if 540 in sizes.values():
        raise InputError(f"{name} is NIfTI-2, which PETSeg does not read. Save it as NIfTI-1.")
    order = next((order for order, size in sizes.items() if size == _HEADER_BYTES), None)
    if order is None or len(content) < _HEADER_BYTES or content[_MAGIC : _MAGIC + 4] != b"n+1\0":
        raise InputError(f"{name} cannot be read as NIfTI: damaged, truncated or of another kind. Get the file again.")
    return _Header(content, order)


def _check_geometry(header: _Header, name: str) -> None:
    size_mm = np.abs(header.values("3f", _PIXDIM + 4))
    if not (np.isfinite(size_mm).all() and size_mm.min() > 0):
        raise InputError(f"{name} states a voxel size (pixdim) of {size_mm.tolist()} mm, expected positive numbers.")
    if header.values("h", _SFORM_CODE)[0] <= 0:
        return
    axes = header.affine[:, :3]
    norms = np.linalg.norm(axes, axis=0)
    if not np.allclose(norms, size_mm, rtol=_SAME_SIZE):
        raise InputError(
            f"{name} states two voxel sizes, {size_mm.round(4).tolist()} mm in pixdim and {norms.round(4).tolist()} mm "
            "in its sform. Save it anew with the right one."
        )
    cosines = axes / norms
    deviation = float(np.abs(cosines.T @ cosines - np.eye(3)).max())
    if deviation > _RIGHT_ANGLE_TOLERANCE:
        degrees = np.degrees(np.arcsin(min(1.0, deviation)))
        raise InputError(
            f"The axes of {name} are {degrees:.1f} degrees off the right angle, as with a tilted gantry. "
            "Resample it to a straight grid."
        )


def _check_voxels(header: _Header, stream: IO[bytes], name: str) -> None:
    rank, *sizes = (int(value) for value in header.values("8h", _DIM))
    kind, bits = (int(header.values("h", offset)[0]) for offset in (_DATATYPE, _BITPIX))
    if kind not in _BYTES or bits != 8 * _BYTES[kind]:
        raise InputError(f"{name} has datatype {kind} with {bits} bits a voxel, expected one real number a voxel.")
    (offset,) = header.values("f", _VOX_OFFSET)
    if not offset <= _LAST_FIRST_VOXEL:  # NaN too
        raise InputError(f"{name} has its voxels at byte {offset}, which cannot be. Get the file again.")
    stream.read(max(_FIRST_VOXEL, int(offset)) - _HEADER_BYTES)

    expected = int(np.prod([max(1, size) for size in sizes[: max(0, rank)]], dtype=np.float64)) * _BYTES[kind]
    found, odd = 0, 0
    while chunk := stream.read(_CHUNK_BYTES):  # to the end: only there gzip checks its checksum
        usable = chunk[: max(0, expected - found)]
        found += len(chunk)
        if kind in _FLOATS and len(usable) % _BYTES[kind] == 0:
            odd += int(np.count_nonzero(~np.isfinite(np.frombuffer(usable, header.order + _FLOATS[kind]))))
    if found < expected:
        raise InputError(f"{name} is truncated: {found} bytes of voxels, expected {expected}. Get the file again.")
    if odd:
        raise InputError(f"{name} holds {odd} voxels that are NaN or infinite. Repair the scan; PETSeg fills no gaps.")
