"""NIfTI-1 files: ITK reads the geometry of those that pass, the voxels are read here, in one pass.

ITK reads missing bytes and NaN as zeros, a voxel size of 0 as 1 mm, and takes size and place from one field where
another contradicts it; that is refused. It refuses axes that are off the right angle by a rounding of their decimals;
that is mended. To be sure of a compressed file it must be decompressed to its end, and doing so twice would take twice
as long.
"""

from __future__ import annotations

import math
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from isal import igzip, isal_zlib

from petseg_runtime.errors import InputError
from petseg_runtime.volume import FloatArray, Shape

_HEADER_BYTES = 348
_FIRST_VOXEL = 352
# Extensions of the header lie before the voxels; beyond this one would fill the memory.
_LAST_FIRST_VOXEL = 1e6
# Offsets of fields in the header (nifti1.h).
_DIM, _DATATYPE, _BITPIX, _PIXDIM, _VOX_OFFSET, _SCALE_AND_SHIFT = 40, 70, 72, 76, 108, 112
_QFORM_CODE, _SFORM_CODE, _QUATERNION, _QOFFSET, _SROW, _MAGIC = 252, 254, 256, 268, 280, 344
# Each real datatype; others are colours or complex numbers.
_REAL = {2: "u1", 256: "i1", 4: "i2", 512: "u2", 8: "i4", 768: "u4", 16: "f4", 64: "f8", 1024: "i8", 1280: "u8"}
_MOST_DIMENSIONS = 7
# A scale or shift of less is none (as in ITK's reader). nifti1.h: "if scl_slope is nonzero", else neither counts.
_NO_SCALE = np.finfo(np.float64).eps
_CHUNK_BYTES = 1 << 22

# Largest deviation of the axes' cosines from right angles: three decimals make 1e-3, a shear much more.
_RIGHT_ANGLE_TOLERANCE = 2e-3
# The voxel size stands in pixdim and in the sform; float32 and a few decimals agree to this.
_SAME_SIZE = 1e-3
# Share of a voxel by which qform and sform may differ in where the corners lie.
_SAME_PLACE = 0.5
# And what the quaternion's rounding makes of it at the corners of a volume.
_ROUNDING_MM = 0.05
# Of the volume's extent: near half a turn the quaternion's first part, the root of what float32 leaves of 1, is off by
# the root of float32's step, and the axes by twice that.
_HALF_TURN = 2 * math.sqrt(np.finfo(np.float32).eps)
_NEAR_HALF_TURN = 1e-5


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

    @property
    def quaternion_affine(self) -> npt.NDArray[np.float64]:
        """The qform, 3 x 4 (nifti1.h, method 2)."""
        b, c, d = self.values("3f", _QUATERNION)
        squares = b * b + c * c + d * d
        if squares > 1:  # by rounding: a half turn
            b, c, d = (value / math.sqrt(squares) for value in (b, c, d))
        a = math.sqrt(max(0.0, 1 - squares))
        turn = np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
            ]
        )
        qfac, *size_mm = self.values("4f", _PIXDIM)
        size_mm[2] *= -1 if qfac < 0 else 1
        return np.column_stack([turn * size_mm, self.values("3f", _QOFFSET)])


def check_nifti(path: Path) -> bool:
    """Refuse a header of which ITK would make another size or geometry than it states.

    Returns
    -------
    Whether qform and sform state two spaces; then the sform counts, as for nibabel, and it is for `straightened`.

    Raises
    ------
    InputError : if it contradicts itself, has no real voxels, or its axes are not at right angles.
    """
    with _stream(path) as stream:
        header = _read_header(stream, path.name)
        has_two_spaces = _check_geometry(header, path.name)
        _stored_type(header, path.name)
        rank = int(header.values("h", _DIM)[0])
        if not 1 <= rank <= _MOST_DIMENSIONS:
            raise InputError(f"{path.name} states {rank} dimensions, expected three. Get the file again.")
    return has_two_spaces


def read_nifti_voxels(path: Path, shape: Shape) -> FloatArray:
    """The voxels `(z, y, x)` of a file that `check_nifti` passes, times its scale plus its shift, as float32.

    Parameters
    ----------
    shape : what the header says, as the caller has checked: so many voxels are allocated.

    Raises
    ------
    InputError : if bytes are missing or too many, the compression's checksum is wrong, or a voxel is NaN or infinite.
    """
    with _stream(path) as stream:
        header = _read_header(stream, path.name)
        (offset,) = header.values("f", _VOX_OFFSET)
        if not 0 <= offset <= _LAST_FIRST_VOXEL:  # NaN too
            raise InputError(f"{path.name} has its voxels at byte {offset}, which cannot be. Get the file again.")
        stream.read(max(_FIRST_VOXEL, int(offset)) - _HEADER_BYTES)
        return _read_voxels(header, stream, shape, path.name)


def holds_voxels(path: Path, voxel_bytes: int) -> bool:
    """Whether a file that was just written holds so many bytes of voxels: ITK says nothing where the disk is full.

    The stream is read to its end, where gzip checks its checksum.
    """
    try:
        with _stream(path) as stream:
            header = _read_header(stream, path.name)
            (offset,) = header.values("f", _VOX_OFFSET)
            found = len(header.content) + sum(len(chunk) for chunk in iter(lambda: stream.read(_CHUNK_BYTES), b""))
    except InputError:
        return False
    return found == offset + voxel_bytes


@contextmanager
def straightened(path: Path) -> Iterator[Path]:
    """A temporary file with the header, whose axes are at exact right angles: the nearest to those in the file."""
    with _stream(path) as stream, tempfile.TemporaryDirectory() as folder:
        header = _read_header(stream, path.name)
        affine = header.affine
        norms = np.linalg.norm(affine[:, :3], axis=0)
        u, _, vt = np.linalg.svd(affine[:, :3] / norms)
        affine[:, :3] = (u @ vt) * norms
        content = bytearray(header.content)
        struct.pack_into(f"{header.order}12f", content, _SROW, *affine.ravel())
        struct.pack_into(f"{header.order}h", content, _QFORM_CODE, 0)
        copy = Path(folder) / "header.nii"
        copy.write_bytes(content + bytes(_FIRST_VOXEL - _HEADER_BYTES))
        yield copy


@contextmanager
def _stream(path: Path) -> Iterator[IO[bytes]]:
    """The file, decompressed.

    Raises
    ------
    InputError : also for what goes wrong while it is read.
    """
    try:
        with _open(path) as stream:
            yield stream
    except (EOFError, isal_zlib.error, igzip.BadGzipFile) as error:  # type: ignore[misc]  # wrong in isal's stubs
        raise InputError(f"{path.name} is truncated or damaged: {error}. Get the file again.") from error
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror}.") from error


def _open(path: Path) -> IO[bytes]:
    """Decompresses by content, as ITK does for a .nii.gz; it does not for a .nii."""
    with path.open("rb") as stream:
        compressed = stream.read(2) == b"\x1f\x8b"
    if compressed and not path.name.lower().endswith(".gz"):
        raise InputError(f"{path.name} is compressed with gzip. Rename it to .nii.gz.")
    return igzip.open(path) if compressed else path.open("rb")  # type: ignore[no-untyped-call]  # isal's has no types


def _read_header(stream: IO[bytes], name: str) -> _Header:
    content = stream.read(_HEADER_BYTES)
    sizes = {order: struct.unpack(f"{order}i", content[:4])[0] for order in "<>"} if len(content) >= 4 else {}
    if 540 in sizes.values():
        raise InputError(f"{name} is NIfTI-2, which PETSeg does not read. Save it as NIfTI-1.")
    order = next((order for order, size in sizes.items() if size == _HEADER_BYTES), None)
    if order is None or len(content) < _HEADER_BYTES or content[_MAGIC : _MAGIC + 4] != b"n+1\0":
        raise InputError(f"{name} cannot be read as NIfTI: damaged, truncated or of another kind. Get the file again.")
    return _Header(content, order)


def _check_geometry(header: _Header, name: str) -> bool:
    """Refuse a header that contradicts itself; whether it states two spaces."""
    size_mm = np.abs(header.values("3f", _PIXDIM + 4))
    if not (np.isfinite(size_mm).all() and size_mm.min() > 0):
        raise InputError(f"{name} states a voxel size (pixdim) of {size_mm.tolist()} mm, expected positive numbers.")
    qform, sform = (header.values("h", code)[0] for code in (_QFORM_CODE, _SFORM_CODE))
    placed = (*(header.values("6f", _QUATERNION) if qform > 0 else ()), *(header.affine[:, 3] if sform > 0 else ()))
    if not np.isfinite(placed).all():
        raise InputError(f"{name} does not say where it lies: its qform or sform holds NaN. Get the file again.")
    if qform <= 0 and sform <= 0:  # programs take one orientation or another
        raise InputError(
            f"{name} does not say how the patient lies in it (qform_code and sform_code). Save it with that."
        )
    if sform <= 0:
        return False
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
    if qform > 0:
        corners = np.array([(*where, 1) for where in np.ndindex(2, 2, 2)]) * (*header.values("3h", _DIM + 2), 1)
        apart_mm = np.linalg.norm((header.affine - header.quaternion_affine) @ corners.T, axis=0).max()
        if apart_mm > _SAME_PLACE * size_mm.min() and qform == sform:
            raise InputError(
                f"{name} says twice where it lies, in its qform and its sform, {apart_mm:.1f} mm apart, and programs "
                "take one or the other. Save it anew with the right one."
            )
        b, c, d = header.values("3f", _QUATERNION)
        loose = _HALF_TURN if 1 - (b * b + c * c + d * d) < _NEAR_HALF_TURN else 0.0
        return bool(apart_mm > max(_ROUNDING_MM, loose * np.linalg.norm(corners[-1, :3] * size_mm)))
    return False


def _stored_type(header: _Header, name: str) -> np.dtype[Any]:
    kind, bits = (int(header.values("h", offset)[0]) for offset in (_DATATYPE, _BITPIX))
    stored = np.dtype(header.order + _REAL[kind]) if kind in _REAL else None
    if stored is None or bits != 8 * stored.itemsize:
        raise InputError(f"{name} has datatype {kind} with {bits} bits a voxel, expected one real number a voxel.")
    return stored


def _read_voxels(header: _Header, stream: IO[bytes], shape: Shape, name: str) -> FloatArray:
    stored = _stored_type(header, name)
    scale, shift = header.values("2f", _SCALE_AND_SHIFT)
    if not math.isfinite(scale) or abs(scale) < _NO_SCALE:
        scale, shift = 1.0, 0.0
    if not math.isfinite(shift):
        raise InputError(f"{name} has a scl_inter that is no number beside a scl_slope. Get the file again.")
    scaled = abs(scale - 1) > _NO_SCALE or abs(shift) > _NO_SCALE

    expected = math.prod(shape)
    voxels, found, odd, has_more = np.empty(expected, np.float32), 0, 0, False
    while chunk := stream.read(_CHUNK_BYTES):  # to the end: only there gzip checks its checksum
        values = np.frombuffer(chunk, stored, len(chunk) // stored.itemsize)[: expected - found]
        read = voxels[found : found + len(values)]
        with np.errstate(over="ignore"):  # is infinite then, and refused
            read[:] = values * np.float64(scale) + shift if scaled else values
        odd += int(np.count_nonzero(~np.isfinite(read)))
        found += len(values)
        # Zeros fill a last block.
        has_more = has_more or (found == expected and any(chunk[len(values) * stored.itemsize :]))
    if has_more:
        raise InputError(f"{name} contradicts itself: it holds more than its {expected} voxels. Get the file again.")
    if found < expected:
        raise InputError(f"{name} is truncated: it has {found} voxels, expected {expected}. Get the file again.")
    if odd:
        raise InputError(f"{name} holds {odd} voxels that are NaN or infinite. Repair the scan; PETSeg fills no gaps.")
    return voxels.reshape(shape)
