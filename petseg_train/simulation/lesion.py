"""The cervical tumour, and the bladder that lies against it.

Ranges: tumour volumes are log-normal about the paper's mean of 37 ml; tumour SUVmax 4-25 follows Kidd et al. (Cancer
2007; mean 11); the bladder's 5-60 follows Moran et al. (J Nucl Med 1999).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt, generate_binary_structure
from scipy.ndimage import label as connected_parts
from scipy.stats import norm

from petseg_runtime.volume import bounding_box
from petseg_train.simulation.canvas import SPACING_MM, Canvas, Label, ellipsoid, smooth_noise

_CERVIX = (0.0, 10.0, 6.0)
_VOXEL_ML = SPACING_MM**3 / 1000
_MEAN_ML, _SPREAD, _VOLUME_ML = 37.0, 1.0, (2.0, 300.0)
_TUMOUR_SUV, _BLADDER_SUV, _BLADDER_ML = (4.0, 25.0), (5.0, 60.0), (50.0, 500.0)
_TOUCHING_SHARE, _TOUCHING_MM = 0.45, 4.0
# FIGO stages, and how many of 100 patients have at most this one. The paper names IB1 to IVB1; most are IIB.
_STAGES = (("IB1", 10), ("IB2", 22), ("IIA", 30), ("IIB", 70), ("IIIB", 88), ("IVA", 93), ("IVB", 100))


@dataclass(frozen=True)
class Lesion:
    """What was painted for a patient's tumour and bladder; volumes in ml, uptake in SUV (the bladder's in the mean)."""

    volume_ml: float
    stage: str
    suv_max: float
    necrosis_ml: float
    bladder_ml: float
    bladder_suv: float
    bladder_gap_mm: float

    @property
    def touches_bladder(self) -> bool:
        return self.bladder_gap_mm <= _TOUCHING_MM


def draw_urine(median_suv: float, rng: np.random.Generator) -> float:
    """Uptake of a patient's urine, in the bladder's range; the median is the centre's."""
    return float(np.clip(rng.lognormal(np.log(median_suv), 0.7), *_BLADDER_SUV))


def paint_lesion(canvas: Canvas, urine_suv: float, rng: np.random.Generator) -> Lesion:
    """Grow the tumour from the cervix, and lay the bladder before it."""
    median = _MEAN_ML / np.exp(_SPREAD**2 / 2)
    volume = float(np.clip(rng.lognormal(np.log(median), _SPREAD), *_VOLUME_ML))
    suv_max = float(np.clip(rng.lognormal(np.log(11), 0.45), *_TUMOUR_SUV))
    tumour = _grow(canvas, volume, rng)
    necrosis = _paint_tumour(canvas, tumour, suv_max, rng)
    bladder = _paint_bladder(canvas, tumour, urine_suv, rng)
    return Lesion(
        volume_ml=float(tumour.sum()) * _VOXEL_ML,
        stage=_stage(volume, median, rng),
        suv_max=suv_max,
        necrosis_ml=float(necrosis.sum()) * _VOXEL_ML,
        bladder_ml=float(bladder.sum()) * _VOXEL_ML,
        bladder_suv=urine_suv,
        bladder_gap_mm=_gap_mm(tumour, bladder),
    )


def _grow(canvas: Canvas, volume_ml: float, rng: np.random.Generator) -> np.ndarray:
    """The voxels that a growth of this volume fills: an irregular body that spares bone, one connected part."""
    z, y, x = canvas.coordinates
    radius = (3 * volume_ml * 1000 / (4 * np.pi)) ** (1 / 3)
    axes = np.exp(rng.normal(0, 0.18, 3)) * (1.0, 0.9, 1.1)
    drift = np.array([rng.normal(0, 4), rng.normal(0, 3), rng.normal(4, 5) + 0.3 * radius])
    centre = np.array(_CERVIX) + drift
    distance = np.sqrt(
        ((x - centre[0]) / axes[0]) ** 2 + ((y - centre[1]) / axes[1]) ** 2 + ((z - centre[2]) / axes[2]) ** 2
    )
    level = distance + radius * (
        0.22 * smooth_noise(canvas.shape, max(10.0, 1.1 * radius), rng)
        + 0.10 * smooth_noise(canvas.shape, max(6.0, 0.4 * radius), rng)
    )
    level[np.isin(canvas.labels, (Label.BONE, Label.AIR, Label.KIDNEY))] = np.inf
    count = max(1, round(volume_ml / _VOXEL_ML))
    grown = level <= np.partition(level, count, axis=None)[count]
    return largest_part(grown, neighbours=1)


def largest_part(mask: np.ndarray, neighbours: int) -> npt.NDArray[np.bool_]:
    """The largest connected part; voxels touch by faces (`neighbours` = 1), also by edges (2) or by corners (3)."""
    parts, count = connected_parts(mask, generate_binary_structure(3, neighbours))
    return np.asarray(parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]) if count else mask > 0)


def _paint_tumour(canvas: Canvas, tumour: np.ndarray, suv_max: float, rng: np.random.Generator) -> np.ndarray:
    """Heterogeneous uptake whose highest is `suv_max`; a large tumour may have a necrotic core, which is returned."""
    texture = smooth_noise(canvas.shape, 16.0, rng) + 0.5 * smooth_noise(canvas.shape, 7.0, rng)
    contrast = rng.uniform(0.1, 0.3)
    values = 1 + contrast * texture[tumour]
    canvas.labels[tumour] = Label.TUMOUR
    canvas.uptake[tumour] = suv_max * np.maximum(values / values.max(), 0.25)
    necrosis = np.zeros_like(tumour)
    if tumour.sum() * _VOXEL_ML > 25 and rng.random() < 0.35:
        box = bounding_box(tumour, (2, 2, 2))
        depth = distance_transform_edt(tumour[box]) * SPACING_MM + 4 * smooth_noise(canvas.shape, 12.0, rng)[box]
        count = int(tumour.sum() * rng.uniform(0.03, 0.2))
        necrosis[box] = tumour[box] & (depth >= np.partition(depth[tumour[box]], -count)[-count])
        canvas.labels[necrosis] = Label.NECROSIS
        canvas.uptake[necrosis] = rng.uniform(0.8, 2.5)
    return necrosis


def _paint_bladder(canvas: Canvas, tumour: np.ndarray, urine_suv: float, rng: np.random.Generator) -> np.ndarray:
    """An ellipsoid of urine before the tumour, moulded round it where they meet, less a wall of 1.5-3 mm."""
    volume = float(np.clip(rng.lognormal(np.log(140), 0.6), *_BLADDER_ML))
    gap = rng.uniform(-9, -1) if rng.random() < _TOUCHING_SHARE else rng.uniform(3, 18)
    y_tumour = np.flatnonzero(tumour.any(axis=(0, 2)))
    front = float(canvas.axes[1][y_tumour[0]]) - gap
    radius = (3 * volume * 1000 / (4 * np.pi)) ** (1 / 3)
    depth = max(12.0, min(0.9 * radius, (front + 95) / 2))  # the pubic bone and the belly wall hold it back
    side, height = np.sqrt(radius**3 / depth) * np.array([1.1, 1 / 1.1])
    centre = (rng.normal(0, 5), front - depth, -34 + height)
    # `inside` bends shapes with the canvas, so the bladder stays a little off its plain place, as organs do.
    shape = ellipsoid(centre, (side, depth, height), tilt_deg=rng.normal(0, 8))
    box, filled = canvas.inside(shape, centre, 1.3 * max(side, height, depth))
    away_mm = distance_transform_edt(~tumour[box]) * SPACING_MM if tumour[box].any() else np.full(filled.shape, 99.0)
    filled &= (away_mm > rng.uniform(1.5, 3.0)) & ~np.isin(canvas.labels[box], (Label.AIR, Label.BONE))
    settled = 1 + 0.006 * np.clip(canvas.coordinates[1][box] - centre[1], -40, 40)  # heavier urine lies at the back
    canvas.labels[box][filled] = Label.BLADDER
    canvas.uptake[box][filled] = (urine_suv * settled)[filled]
    bladder = np.zeros_like(tumour)
    bladder[box] = filled
    return bladder


def _stage(volume_ml: float, median_ml: float, rng: np.random.Generator) -> str:
    """A FIGO stage that rises with the volume, with the shares of `_STAGES`."""
    score = (np.log(volume_ml / median_ml) / _SPREAD + rng.normal()) / np.sqrt(2)
    return next(stage for stage, share in _STAGES if 100 * norm.cdf(score) <= share or share == 100)


def _gap_mm(tumour: np.ndarray, bladder: np.ndarray) -> float:
    """Shortest distance between their voxels' centres; `nan` without a bladder."""
    if not bladder.any():
        return float("nan")
    box = bounding_box(tumour | bladder)
    return float(distance_transform_edt(~bladder[box])[tumour[box]].min()) * SPACING_MM
