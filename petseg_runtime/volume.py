"""Volume: voxels with their place in the patient and their unit. The one currency of the runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import permutations
from operator import index
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
MaskArray = npt.NDArray[np.uint8]
Triple = tuple[float, float, float]
Shape = tuple[int, int, int]
Box = tuple[slice, slice, slice]
_Scalar = TypeVar("_Scalar", bound=np.generic)

# Largest deviation of direction @ direction.T from the identity. Headers store cosines with six or
# more decimals; a sheared grid (gantry tilt) deviates by the sine of the tilt, 1e-2 and more.
ORTHONORMAL_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Orientation:
    """How an array's axes must be permuted and flipped to run along S, P and L (canonical order `(z, y, x)`)."""

    axes: tuple[int, int, int]  # array axis that becomes canonical axis 0, 1, 2
    flips: tuple[bool, bool, bool]  # whether that axis runs against S, P, L

    def to_canonical(self, array: npt.NDArray[_Scalar]) -> npt.NDArray[_Scalar]:
        """View of an array of the scan with axes along S, P, L. Writing into it writes into the scan's array."""
        z, y, x = (slice(None, None, -1) if flip else slice(None) for flip in self.flips)
        return array.transpose(self.axes)[z, y, x]

    def in_scan(self, box: Box, shape: Shape) -> Box:
        """A box of the canonical view as one of the scan's array, which has this shape."""
        parts = [slice(0)] * 3
        for part, axis, flip in zip(box, self.axes, self.flips):
            parts[axis] = slice(shape[axis] - part.stop, shape[axis] - part.start) if flip else part
        return parts[0], parts[1], parts[2]


class Unit(StrEnum):
    """What a voxel's number means."""

    SUVBW = "suvbw"  # body-weight standardised uptake value, g/ml
    BQML = "bqml"  # activity concentration, Bq/ml
    UNKNOWN = "unknown"  # the file does not say, as with every NIfTI


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of a `(z, y, x)` array lie in the patient.

    Attributes
    ----------
    shape : number of voxels along each array axis `(z, y, x)`.
    spacing_mm : distance between voxel centres along each array axis `(z, y, x)`, in mm.
    origin_lps_mm : position `(L, P, S)` of the centre of voxel `[0, 0, 0]`, in mm.
    direction_lps : 3 x 3, row-major; column `i` is the unit vector `(L, P, S)` along array axis `i`.

    Raises
    ------
    ValueError : if there are not three sizes, spacings or coordinates, one of the former is not positive, or the
        directions are not orthonormal.
    """

    shape: Shape
    spacing_mm: Triple
    origin_lps_mm: Triple = (0.0, 0.0, 0.0)
    direction_lps: tuple[Triple, Triple, Triple] = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))

    def __post_init__(self) -> None:
        for name, kind in (("shape", index), ("spacing_mm", float), ("origin_lps_mm", float)):
            try:
                values = tuple(map(kind, getattr(self, name)))  # whatever NumPy or a list held
            except TypeError as error:
                raise ValueError(f"{name} is {getattr(self, name)}, expected three numbers") from error
            if len(values) != 3:
                raise ValueError(f"{name} is {values}, expected three numbers")
            object.__setattr__(self, name, values)
        if min(self.shape) < 1:
            raise ValueError(f"shape is {self.shape}, expected at least one voxel along each axis")
        if not (np.isfinite(self.spacing_mm).all() and min(self.spacing_mm) > 0):
            raise ValueError(f"spacing is {self.spacing_mm} mm, expected three positive numbers")
        if not np.isfinite(self.origin_lps_mm).all():
            raise ValueError(f"origin is {self.origin_lps_mm} mm, expected three finite numbers")
        direction = np.asarray(self.direction_lps, dtype=np.float64)
        object.__setattr__(self, "direction_lps", tuple(map(tuple, direction.tolist())))
        if not np.allclose(direction @ direction.T, np.eye(3), rtol=0, atol=ORTHONORMAL_TOLERANCE):
            raise ValueError(f"direction {direction.round(4).tolist()} is not orthonormal")

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in ml (1 ml = 1000 mm³)."""
        return float(np.prod(self.spacing_mm)) / 1000.0

    @property
    def orientation(self) -> Orientation:
        """The array axes nearest to S, P and L, all different: exact for axial scans, nearest for oblique ones."""
        cosines = np.asarray(self.direction_lps)[::-1]  # rows S, P, L; columns array axes
        a, b, c = max(permutations(range(3)), key=lambda axes: abs(cosines[(0, 1, 2), axes]).sum())
        return Orientation((a, b, c), (bool(cosines[0, a] < 0), bool(cosines[1, b] < 0), bool(cosines[2, c] < 0)))

    @property
    def canonical_spacing_mm(self) -> Triple:
        """Spacing along canonical axes S, P, L."""
        a, b, c = self.orientation.axes
        return self.spacing_mm[a], self.spacing_mm[b], self.spacing_mm[c]

    @property
    def tilt_degrees(self) -> float:
        """How far the array axis that lies farthest off S, P or L is turned against it; 0 for an axial scan."""
        cosines = np.abs(np.asarray(self.direction_lps)[::-1][(0, 1, 2), self.orientation.axes])
        return float(np.degrees(np.arccos(min(1.0, cosines.min()))))

    def part(self, box: Box) -> Geometry:
        """Of the voxels in a box of the array."""
        z, y, x = (part.stop - part.start for part in box)
        left, behind, above = self.to_lps_mm([part.start for part in box]).tolist()
        return replace(self, shape=(z, y, x), origin_lps_mm=(left, behind, above))

    def straight(self) -> Geometry:
        """The grid along S, P and L, of this one's voxel sizes, that holds all of this one."""
        ends = np.array(list(np.ndindex(2, 2, 2))) * self.shape - 0.5  # the outer corners
        corners_spl = self.to_lps_mm(ends)[:, ::-1]
        low, high = corners_spl.min(axis=0), corners_spl.max(axis=0)
        spacing_mm = np.array(self.canonical_spacing_mm)
        z, y, x = np.ceil((high - low) / spacing_mm - 1e-3).astype(int).tolist()
        return Geometry((z, y, x), self.canonical_spacing_mm, tuple((low + spacing_mm / 2)[::-1].tolist()))

    def to_lps_mm(self, index_zyx: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """World position `(..., 3)` in `(L, P, S)` mm of the array index `(..., 3)` in `(z, y, x)`."""
        scaled = np.asarray(index_zyx, dtype=np.float64) * np.asarray(self.spacing_mm)
        lps_mm: npt.NDArray[np.float64] = scaled @ np.asarray(self.direction_lps).T + np.asarray(self.origin_lps_mm)
        return lps_mm


@dataclass(frozen=True)
class Volume:
    """A scan: float32 voxels `(z, y, x)`, their geometry and their unit.

    `notes` says in plain sentences what was decided while reading (which series was taken, where the
    SUV factor came from), for the user and for the record of the run; `warnings` what to check before its numbers
    are used. `source` names the DICOM files of the slices in the order of axis z, for results that refer to them.
    """

    array: FloatArray
    geometry: Geometry
    unit: Unit = Unit.UNKNOWN
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    source: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.array.dtype != np.float32:
            raise ValueError(f"array is {self.array.dtype}, expected float32")
        object.__setattr__(self, "unit", Unit(self.unit))  # "suvbw" as well as Unit.SUVBW; else a ValueError
        if self.array.shape != self.geometry.shape:
            raise ValueError(f"array is {self.array.shape}, its geometry says {self.geometry.shape}")


def bounding_box(mask: npt.NDArray[Any], margin: Sequence[int] = (0, 0, 0)) -> Box:
    """The smallest box that holds all nonzero voxels of `mask` `(z, y, x)`, `margin` voxels wider where there is room.

    Raises
    ------
    IndexError : if the mask is empty.
    """
    box = []
    for axis, wider in enumerate(margin):
        filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(max(0, int(filled[0]) - wider), min(mask.shape[axis], int(filled[-1]) + 1 + wider)))
    return box[0], box[1], box[2]
