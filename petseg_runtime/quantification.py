"""What a nuclear-medicine report says of a mask: volumes, uptake and extent, per lesion and per scan. Pure NumPy."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from petseg_runtime.volume import FloatArray, Geometry, Triple, Unit, Volume

# Radius of the sphere of 1 cm³ that SUVpeak averages over.
PEAK_RADIUS_MM = 10 * (3 / (4 * np.pi)) ** (1 / 3)
# The thresholds of clinical practice that an MTV is compared with.
RELATIVE_THRESHOLD, SUV_THRESHOLD = 0.41, 2.5

_PAIRS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class RegionStatistics:
    """Quantities of one region of a scan. An empty region has zero volume and no uptake (None).

    Attributes
    ----------
    mtv_ml : metabolic tumour volume: number of voxels times the volume of one, in ml.
    suv_max, suv_mean : largest and mean SUVbw (g/ml) of the region's voxels; None unless the scan is in SUVbw.
    suv_peak : the largest mean SUVbw of a sphere of 1 cm³ centred on a voxel of the region; it averages the scan's
        voxels whose centres it holds, in the region or not (Wahl et al., J Nucl Med 50:122S, 2009; IBSI 0F91). None
        too where the voxels are so large that it holds one centre only, and would be suv_max.
    tlg_g : total lesion glycolysis, suv_mean x mtv_ml, in g; None unless the scan is in SUVbw.
    mtv_41_ml : volume of a lesion's voxels at or above 41 % of its largest value (Boellaard et al., EJNMMI 42:328,
        2015), for comparison; of the whole tumour the sum over its lesions.
    mtv_suv25_ml : volume of the region's voxels at or above SUVbw 2.5, for comparison; None unless in SUVbw.
    edge_mm : least distance from a voxel of the region to the outermost layer of the scan, in mm; 0 where the region
        reaches it, and may go on beyond.
    mean_probability : mean probability of the region's voxels; None where none was given.
    intensity_max, intensity_mean, intensity_peak : as the SUVs, in the scan's own unit, whatever it is.
    """

    mtv_ml: float
    suv_max: float | None
    suv_mean: float | None
    suv_peak: float | None
    tlg_g: float | None
    mtv_41_ml: float
    mtv_suv25_ml: float | None
    edge_mm: float | None
    mean_probability: float | None
    intensity_max: float | None
    intensity_mean: float | None
    intensity_peak: float | None


@dataclass(frozen=True)
class LesionStatistics(RegionStatistics):
    """Quantities of one lesion.

    Attributes
    ----------
    label : its number in the lesion label map, from the largest down.
    centroid_lps_mm : mean position `(L, P, S)` of its voxels.
    diameter_mm : largest distance between two points of its surface, which runs halfway between voxel centres inside
        and outside (IBSI L0JK, maximum 3D diameter).
    """

    label: int
    centroid_lps_mm: Triple
    diameter_mm: float


@dataclass(frozen=True)
class ScanStatistics:
    """Quantities of a scan: its unit, its own largest value, the whole tumour and each lesion.

    `dmax_mm` is the largest distance between the centroids of two lesions (Cottereau et al., J Nucl Med 61:40, 2020);
    None where there are fewer than two.
    """

    unit: Unit
    scan_max: float
    lesion_count: int
    dmax_mm: float | None
    tumour: RegionStatistics
    lesions: tuple[LesionStatistics, ...]


def quantify(
    volume: Volume, lesion_labels: npt.NDArray[np.integer], probabilities: FloatArray | None = None
) -> ScanStatistics:
    """Measure a scan inside its lesions.

    Parameters
    ----------
    lesion_labels : whole numbers `(z, y, x)` on the scan's grid, 0 outside, 1 to n inside the n lesions.
    probabilities : float32 `(z, y, x)`, likewise.

    Raises
    ------
    ValueError : if the labels or probabilities are not on the scan's grid, or a number between 1 and n has no voxel.
    """
    for name, array in (("labels", lesion_labels), ("probabilities", probabilities)):
        if array is not None and array.shape != volume.array.shape:
            raise ValueError(f"{name} are {array.shape}, the scan is {volume.array.shape}")
    # np.argwhere takes seven times as long on whole numbers
    index = np.column_stack(np.unravel_index(np.flatnonzero(lesion_labels != 0), lesion_labels.shape))
    labels = lesion_labels[tuple(index.T)]
    index = index[np.argsort(labels, kind="stable")]
    counts = np.bincount(labels, minlength=1)[1:]
    if not counts.all():
        raise ValueError(f"labels go up to {len(counts)}, but there is no {int(counts.argmin()) + 1}")
    ends = np.cumsum(counts)
    peaks: list[float | None] = []
    lesions = []
    for label, end in enumerate(ends, start=1):
        own = slice(ends[label - 2] if label > 1 else 0, end)
        peaks.append(_peak(volume, index[own]))
        region = _region(volume, index[own], peaks[-1], probabilities)
        left, posterior, superior = volume.geometry.to_lps_mm(index[own].mean(axis=0)).tolist()
        diameter_mm = _diameter_mm(index[own], volume.geometry)
        lesions.append(
            LesionStatistics(
                **vars(region), label=label, centroid_lps_mm=(left, posterior, superior), diameter_mm=diameter_mm
            )
        )
    dmax_mm = _farthest_mm(np.array([lesion.centroid_lps_mm for lesion in lesions])) if len(lesions) > 1 else None
    tumour = replace(
        _region(volume, index, max((peak for peak in peaks if peak is not None), default=None), probabilities),
        mtv_41_ml=sum((lesion.mtv_41_ml for lesion in lesions), 0.0),
    )
    return ScanStatistics(volume.unit, float(volume.array.max()), len(lesions), dmax_mm, tumour, tuple(lesions))


def _region(
    volume: Volume,
    index: npt.NDArray[np.intp],
    peak: float | None,
    probabilities: FloatArray | None,
) -> RegionStatistics:
    values = volume.array[tuple(index.T)].astype(np.float64)
    voxel_ml, is_suv = volume.geometry.voxel_volume_ml, volume.unit is Unit.SUVBW
    mtv_ml = len(values) * voxel_ml
    largest, mean = (float(values.max()), float(values.mean())) if len(values) else (None, None)
    to_edge_mm = np.minimum(index, np.array(volume.array.shape) - 1 - index) * np.array(volume.geometry.spacing_mm)
    sure = None if probabilities is None or not len(values) else float(probabilities[tuple(index.T)].mean(dtype=float))
    return RegionStatistics(
        mtv_ml=mtv_ml,
        suv_max=largest if is_suv else None,
        suv_mean=mean if is_suv else None,
        suv_peak=peak if is_suv else None,
        tlg_g=mtv_ml * (mean or 0.0) if is_suv else None,
        mtv_41_ml=float((values >= RELATIVE_THRESHOLD * (largest or 0.0)).sum()) * voxel_ml,
        mtv_suv25_ml=float((values >= SUV_THRESHOLD).sum()) * voxel_ml if is_suv else None,
        edge_mm=float(to_edge_mm.min()) if len(values) else None,
        mean_probability=sure,
        intensity_max=largest,
        intensity_mean=mean,
        intensity_peak=peak,
    )


def _peak(volume: Volume, index: npt.NDArray[np.intp]) -> float | None:
    """The largest mean of a 1 cm³ sphere round one of the voxels `(n, 3)`, over what of it lies in the scan.

    None where such a sphere holds the centre of no other voxel.
    """
    spacing_mm = np.array(volume.geometry.spacing_mm)
    reach = np.floor(PEAK_RADIUS_MM / spacing_mm).astype(np.intp)
    steps = np.argwhere(np.ones(2 * reach + 1)) - reach
    steps = steps[((steps * spacing_mm) ** 2).sum(axis=1) <= PEAK_RADIUS_MM**2]
    if len(steps) == 1:
        return None
    # The sphere is a bundle of rows along x, and the sum of each a difference of two running sums: on fine grids the
    # sphere has thousands of voxels. What of a row lies beyond the scan does not count.
    rows = {(dz, dy): half for dz, dy, half in steps.tolist()}  # the last step of a row is its farthest
    low, high = index.min(axis=0) - reach, index.max(axis=0) + reach + 1
    inside = tuple(slice(max(0, a), min(n, b)) for a, b, n in zip(low, high, volume.array.shape))
    values = volume.array[inside]
    running = np.zeros((*values.shape[:2], values.shape[2] + 1))
    np.cumsum(values, axis=2, dtype=np.float64, out=running[:, :, 1:])
    total, count = np.zeros(len(index)), np.zeros(len(index))
    z, y, x = (index - [part.start for part in inside]).T
    for (dz, dy), half in rows.items():
        there = (z + dz >= 0) & (z + dz < values.shape[0]) & (y + dy >= 0) & (y + dy < values.shape[1])
        first = np.clip(x[there] - half, 0, values.shape[2])
        end = np.clip(x[there] + half + 1, 0, values.shape[2])
        total[there] += running[z[there] + dz, y[there] + dy, end] - running[z[there] + dz, y[there] + dy, first]
        count[there] += end - first
    return float((total / count).max())


def _diameter_mm(index: npt.NDArray[np.intp], geometry: Geometry) -> float:
    """Largest distance between two points halfway between a voxel of the region and a neighbour outside it."""
    low = index.min(axis=0) - 1
    region = np.zeros(index.max(axis=0) + 2 - low, dtype=bool)
    region[tuple((index - low).T)] = True
    points = []
    for axis in range(3):
        before, after = (np.moveaxis(region, axis, 0)[part] for part in (slice(None, -1), slice(1, None)))
        crossing = np.argwhere(np.moveaxis(before != after, 0, axis)).astype(np.float64)
        crossing[:, axis] += 0.5
        points.append(crossing)
    surface_mm = np.concatenate(points) * np.array(geometry.spacing_mm)
    for axis in range(3):
        surface_mm = _hulls_of_slices(surface_mm, axis)
    return _farthest_mm(surface_mm)


def _hulls_of_slices(points: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float64]:
    """Of points `(n, 3)`, the corners of the convex hull of each slice along `axis`: the farthest two are such."""
    along = (axis, (axis + 1) % 3, (axis + 2) % 3)
    points = points[np.lexsort([points[:, other] for other in reversed(along)])]
    starts = np.flatnonzero(np.diff(points[:, axis], prepend=-np.inf))
    corners = []
    for part in np.split(points, starts[1:]):
        ordered = part.tolist()
        corners += _half_hull(ordered, along[1], along[2]) + _half_hull(ordered[::-1], along[1], along[2])
    return np.array(corners)


def _half_hull(points: list[list[float]], a: int, b: int) -> list[list[float]]:
    """One side of the hull of `points`, sorted in the plane of coordinates `a` and `b` (Andrew's monotone chain)."""
    hull: list[list[float]] = []
    for point in points:
        while len(hull) > 1:
            first, last = hull[-2:]
            if (last[a] - first[a]) * (point[b] - first[b]) > (last[b] - first[b]) * (point[a] - first[a]):
                break
            hull.pop()
        hull.append(point)
    return hull


def _farthest_mm(points_mm: npt.NDArray[np.float64]) -> float:
    """Largest distance between two of the points `(n, 3)`."""
    squares = (points_mm**2).sum(axis=1)
    rows = max(1, _PAIRS_AT_ONCE // len(points_mm))
    largest = 0.0
    for first in range(0, len(points_mm), rows):
        some = slice(first, first + rows)
        apart = squares[some, None] + squares - 2 * points_mm[some] @ points_mm.T
        largest = max(largest, float(apart.max()))
    return float(np.sqrt(largest))
