"""A label map and an uptake map to paint organs on, in coordinates that no two patients share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter

from petseg_runtime.volume import FloatArray

Point = tuple[float, float, float]
# A shape: its level set at coordinates (z, y, x) in mm, below 1 inside.
Shape = Callable[[FloatArray, FloatArray, FloatArray], FloatArray]

SPACING_MM = 2.0
_HALF_DEPTH_MM, _HALF_WIDTH_MM = 160.0, 230.0
PLANE = (int(2 * _HALF_DEPTH_MM / SPACING_MM), int(2 * _HALF_WIDTH_MM / SPACING_MM))  # voxels (y, x) of every canvas
_WARP_MM = 22.0  # an organ's warped outline stays within this of its plain one


class Label(IntEnum):
    """Tissues of the label map."""

    AIR = 0
    FAT = 1
    MUSCLE = 2
    BONE = 3
    BOWEL = 4
    VESSEL = 5
    LIVER = 6
    SPLEEN = 7
    KIDNEY = 8
    UTERUS = 9
    OVARY = 10
    RECTUM = 11
    NODE = 12
    URINE = 13
    BLADDER = 14
    TUMOUR = 15
    NECROSIS = 16
    LUNG = 17
    HEART = 18
    BRAIN = 19


class Canvas:
    """Labels and uptake (SUV) on a grid of 2 mm, arrays `(z, y, x)`.

    Coordinates are in mm: x to the patient's left and y to the back from the body's axis, z to the head from the
    cervix. With `rng` they are warped by a smooth random field, so each organ painted as a plain shape comes out
    irregular, and neighbouring organs bend together; without it they are straight, as for a phantom.
    """

    def __init__(self, z_mm: tuple[float, float], rng: np.random.Generator | None = None) -> None:
        depth_mm, width_mm = (-_HALF_DEPTH_MM, _HALF_DEPTH_MM), (-_HALF_WIDTH_MM, _HALF_WIDTH_MM)
        axes = [
            np.arange(low + SPACING_MM / 2, high, SPACING_MM, dtype=np.float32)
            for low, high in (z_mm, depth_mm, width_mm)
        ]
        self.axes = axes
        self.shape = (len(axes[0]), len(axes[1]), len(axes[2]))
        self.labels: npt.NDArray[np.uint8] = np.zeros(self.shape, dtype=np.uint8)
        self.uptake: FloatArray = np.zeros(self.shape, dtype=np.float32)
        self.coordinates: list[FloatArray] = list(np.meshgrid(*axes, indexing="ij"))
        if rng is not None:
            for coordinate in self.coordinates:
                warp = 6.0 * smooth_noise(self.shape, 35.0, rng) + 1.5 * smooth_noise(self.shape, 12.0, rng)
                np.add(coordinate, np.clip(warp, -_WARP_MM, _WARP_MM), out=coordinate)

    def inside(self, shape: Shape, centre: Point, reach_mm: float) -> tuple[tuple[slice, ...], npt.NDArray[np.bool_]]:
        """The voxels inside `shape`, as a box of the grid and a mask in it, within `reach_mm` of `centre` (x, y, z)."""
        box = []
        for axis, middle in zip(self.axes, centre[::-1]):
            low = np.searchsorted(axis, middle - reach_mm - _WARP_MM)
            box.append(slice(int(low), max(int(low), int(np.searchsorted(axis, middle + reach_mm + _WARP_MM)))))
        z, y, x = (coordinate[tuple(box)] for coordinate in self.coordinates)
        return tuple(box), shape(z, y, x) < 1

    def paint(
        self,
        shape: Shape,
        centre: Point,
        reach_mm: float,
        label: Label,
        suv: float,
        over: Sequence[Label] | None = None,
    ) -> None:
        """Paint a shape; `over` names the tissues that it may cover (default: all)."""
        box, mask = self.inside(shape, centre, reach_mm)
        if over is not None:
            mask &= np.isin(self.labels[box], over)
        self.labels[box][mask] = label
        self.uptake[box][mask] = suv

    def ball(
        self, centre: Point, radius_mm: float, label: Label, suv: float, over: Sequence[Label] | None = None
    ) -> None:
        """Paint a ball."""
        self.paint(ellipsoid(centre, (radius_mm,) * 3), centre, radius_mm, label, suv, over)

    def tube(
        self,
        points: npt.ArrayLike,
        radius_mm: float,
        label: Label,
        suv: float | npt.NDArray[np.float64],
        over: Sequence[Label] | None = None,
    ) -> None:
        """Paint a tube along points `(n, 3)` in (x, y, z); an array of uptakes is spread over its length."""
        path = resample(np.asarray(points, dtype=float), radius_mm / 2)
        along = np.linspace(0, 1, len(path))
        values = np.interp(along, np.linspace(0, 1, np.size(suv)), np.atleast_1d(suv))
        for centre, value in zip(path, values):
            self.ball((centre[0], centre[1], centre[2]), radius_mm, label, float(value), over)


def ellipsoid(centre: Point, radii_mm: Point, tilt_deg: float = 0.0, roll_deg: float = 0.0) -> Shape:
    """An ellipsoid; `centre` and `radii_mm` in (x, y, z), tilted about x, then rolled about y."""
    tilt, roll = np.deg2rad(tilt_deg), np.deg2rad(roll_deg)

    def level(z: FloatArray, y: FloatArray, x: FloatArray) -> FloatArray:
        dx, dy, dz = x - centre[0], y - centre[1], z - centre[2]
        dy, dz = dy * np.cos(tilt) + dz * np.sin(tilt), dz * np.cos(tilt) - dy * np.sin(tilt)
        dx, dz = dx * np.cos(roll) + dz * np.sin(roll), dz * np.cos(roll) - dx * np.sin(roll)
        squared: FloatArray = (dx / radii_mm[0]) ** 2 + (dy / radii_mm[1]) ** 2 + (dz / radii_mm[2]) ** 2
        return squared

    return level


def resample(points: npt.NDArray[np.float64], step_mm: float) -> npt.NDArray[np.float64]:
    """Points every `step_mm` along the line through `points` `(n, 3)`."""
    lengths = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    at = np.linspace(0, lengths[-1], max(2, round(lengths[-1] / step_mm) + 1))
    return np.stack([np.interp(at, lengths, points[:, axis]) for axis in range(3)], axis=1)


def smooth_noise(shape: tuple[int, int, int], scale_mm: float, rng: np.random.Generator) -> FloatArray:
    """Gaussian noise, blurred to the scale and brought to unit variance, on a grid of `SPACING_MM`."""
    step = max(1.0, scale_mm / SPACING_MM / 3)  # drawn on a coarse grid, where the blur is three voxels wide
    coarse = [int(np.ceil(n / step)) + 1 for n in shape]
    noise = gaussian_filter(rng.standard_normal(coarse).astype(np.float32), 1.5, mode="wrap")
    noise /= noise.std()
    fine = torch.nn.functional.interpolate(torch.from_numpy(noise)[None, None], size=shape, mode="trilinear")
    return fine[0, 0].numpy()
