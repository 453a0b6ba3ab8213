"""THE definition of the network's input, called by training and by the runtime alike.

Reorient to the patient's axes, find the body, crop to it, resample, normalise over the body: and the
way back to the scan's own grid. Every number that steers this stands in the model's manifest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from petseg_runtime.errors import InputError, MemoryBudgetError
from petseg_runtime.itk import itk_direction, itk_image
from petseg_runtime.manifest import PreprocessingSpec
from petseg_runtime.volume import Box, FloatArray, Geometry, MaskArray, Shape, Triple, Unit, Volume, bounding_box

# Raised whenever `preprocess` makes something else of a scan, so that nothing takes what was kept of before for it.
VERSION = 2
# The body's threshold and its median define each other; this many rounds settle them on every scan seen.
_THRESHOLD_ROUNDS = 20
# By what share the later thresholds mostly fall below the first at most; to sort a little more than the body takes less
# time than to select it twice.
_SLACK = 0.5
# In SUV: more than this in the median is no body, which has 0.3 to 1.5; a search from the second on finds it.
MAX_BODY_SUV = 3.0
_BELOW_TISSUE_SUV = 0.5
# Without a unit: what share of a scan that is darker than the body may itself be the body.
_ANOTHER_BODY = 0.1
# A bladder, a tumour, a vial: what is larger and hot is rather a body in another unit.
_MAX_ORGAN_ML = 1000.0
# A body of fewer voxels than this gives no meaningful mean and standard deviation.
_MIN_BODY_VOXELS = 64
# To here masks hardly change (DSC 0.95 to 0.99 with those of the straight scan); at 15 they do.
TILTED_DEGREES = 5.0
# Ten patients of two metres at 4 x 4 x 2 mm; each float32 copy takes 1.2 GB.
MAX_NETWORK_VOXELS = 300_000_000


@dataclass(frozen=True)
class Frame:
    """The way between the scan's own grid and the network's grid.

    The scan's axes are permuted and flipped so that they run along S, P and L, cropped to `box` (in canonical
    voxels), and resampled so that the outer faces of both grids' first voxels coincide. A scan that is turned against
    these axes by more than `TILTED_DEGREES` is first resampled onto a grid that is not: patients lie straight in
    training. No step loses the scan's geometry, so a mask comes back voxel for voxel.
    """

    geometry: Geometry  # of the scan
    straight: Geometry  # the same, or that of the grid that the scan was straightened onto
    box: Box
    spacing_mm: Triple  # of the network's grid
    shape: Shape  # of the network's grid


@dataclass(frozen=True)
class NetworkInput:
    """Normalised voxels `(z, y, x)` on the network's grid, and the way back.

    `air` is no activity on the same scale, and body is what lies above `body_level`; its median, in the scan's unit, is
    `body_median`. Something hot, or air, may pass for it where it is `doubtful`. `cut_off` is the share of the scan's
    sides that is body, 0 where it holds the patient at full width.
    """

    array: FloatArray
    air: float
    frame: Frame
    body_level: float
    body_median: float
    doubtful: bool
    cut_off: float


def preprocess(volume: Volume, spec: PreprocessingSpec, max_voxels: int = MAX_NETWORK_VOXELS) -> NetworkInput:
    """Turn a scan into the network's input.

    Parameters
    ----------
    volume : scan in any unit that is proportional to activity; the z-score removes the unit.
    max_voxels : on the network's grid, that the memory budget has room for.

    Raises
    ------
    InputError : if the scan holds no body (all zero, constant, or too few voxels above the threshold), or NaN.
    MemoryBudgetError : if it has more than `max_voxels`, or is far larger than a patient.
    """
    geometry = straight = volume.geometry
    if not np.isfinite(volume.array).all():
        raise InputError("The volume holds NaN or infinite voxels. Repair the scan; PETSeg fills no gaps.")
    canonical = geometry.orientation.to_canonical(volume.array)
    threshold, doubtful = body_threshold_of(volume, spec.body_threshold)
    box = body_box(canonical > threshold, geometry.canonical_spacing_mm, spec.body_margin_mm)
    cut_off = _cut_off_share(canonical, box, threshold)
    if geometry.tilt_degrees > TILTED_DEGREES:
        straight = geometry.part(geometry.orientation.in_scan(box, geometry.shape)).straight()
        _check_room(straight.shape, "Straightened", max_voxels)
        canonical = onto(volume.array, geometry, straight)
        box = body_box(canonical > threshold, straight.spacing_mm, spec.body_margin_mm)
    cropped = np.ascontiguousarray(canonical[box])
    shape = _resampled_shape(cropped.shape, straight.canonical_spacing_mm, spec.spacing_mm)
    _check_room(shape, "On the network's grid", max_voxels)
    array = np.empty(shape, dtype=np.float32)
    _resample(cropped, straight.canonical_spacing_mm, spec.spacing_mm, array)
    mean, std = normalise(array, threshold, spec)
    frame = Frame(geometry, straight, box, spec.spacing_mm, shape)
    median = threshold / spec.body_threshold
    return NetworkInput(array, -mean / std, frame, (threshold - mean) / std, median, doubtful, cut_off)


def _check_room(shape: Shape, where: str, max_voxels: int) -> None:
    """Refuse a grid of too many voxels before it is allocated.

    Raises
    ------
    MemoryBudgetError : if it has more than `max_voxels`, or is far larger than a patient.
    """
    voxels = math.prod(shape)
    if voxels > MAX_NETWORK_VOXELS:
        raise MemoryBudgetError(
            f"{where} the scan has {' x '.join(map(str, shape))} voxels, more than {MAX_NETWORK_VOXELS:.0e}. Check its "
            "voxel size, or cut it."
        )
    if voxels > max_voxels:
        raise MemoryBudgetError(
            f"{where} the scan has {' x '.join(map(str, shape))} voxels, and the memory budget is enough for "
            f"{max_voxels:.2g}. Raise it, or cut the scan."
        )


def _cut_off_share(canonical: FloatArray, box: Box, threshold: float) -> float:
    """Of the scan's faces to the patient's sides, front and back, within the body's box, the largest share of body.

    A whole scan has air there. At head and feet every scan ends in the body.
    """
    largest = 0.0
    for axis in (1, 2):
        across = box[:axis] + box[axis + 1 :]
        for face in (0, -1):
            largest = max(largest, float((np.moveaxis(canonical, axis, 0)[face][across] > threshold).mean()))
    return largest


def normalise(array: FloatArray, threshold: float, spec: PreprocessingSpec) -> tuple[float, float]:
    """Turn activity into its z-score over the body, in place; returns the body's mean and standard deviation.

    Parameters
    ----------
    threshold : above it is body, see `body_threshold`.
    spec : whose ceiling, if it has one, holds first.

    Raises
    ------
    InputError : if there are too few voxels above it, or they are all alike.
    """
    if spec.ceiling:  # in medians of the body, of which the threshold is a share
        np.minimum(array, np.float32(spec.ceiling * threshold / spec.body_threshold), out=array)
    body = array[array > threshold].astype(np.float64)
    mean, std = (float(body.mean()), float(body.std())) if body.size else (0.0, 0.0)
    if body.size < _MIN_BODY_VOXELS or not std > 0:
        raise InputError(
            f"The scan holds no body: {body.size} voxels with distinct uptake above air. Pass the PET of a patient."
        )
    array -= np.float32(mean)
    array /= np.float32(std)
    return mean, std


def resample_mask(mask: MaskArray, frame: Frame) -> MaskArray:
    """Bring a mask of the scan onto the network's grid: linear, cut at 0.5, as the paper does."""
    tilted = frame.straight != frame.geometry
    whole = onto(mask.astype(np.float32), frame.geometry, frame.straight) if tilted else mask
    cropped = frame.straight.orientation.to_canonical(whole)[frame.box].astype(np.float32)
    resampled = np.empty(frame.shape, dtype=np.float32)
    _resample(cropped, frame.straight.canonical_spacing_mm, frame.spacing_mm, resampled)
    return (resampled >= 0.5).astype(np.uint8)


def restore(probabilities: FloatArray, frame: Frame) -> FloatArray:
    """Bring probabilities from the network's grid back onto the scan's own grid; zero outside the body box."""
    scan = np.zeros(frame.straight.shape, dtype=np.float32)
    canonical = frame.straight.orientation.to_canonical(scan)  # a view: writing into it fills the scan
    _resample(probabilities, frame.spacing_mm, frame.straight.canonical_spacing_mm, canonical[frame.box])
    return onto(scan, frame.straight, frame.geometry)


def body_threshold_of(volume: Volume, share: float) -> tuple[float, bool]:
    """Intensity that parts body from air, in the scan's own unit, see `body_threshold`; and whether it is doubtful.

    In a scan that was cut around a tumour, a full bladder beside it lifts the mean above all tissue, and what exceeds
    the mean is bladder only. So where a small body is brighter than any tissue, it is looked for once more from below.
    An unknown unit counts as SUV. Where it is another one, tissue may lie where the bladder would in SUV, and air where
    tissue would: then nothing in the scan tells which is found, unless there is nothing else to be found in it.
    """
    array, in_suv, most = volume.array, volume.unit is Unit.SUVBW, share * MAX_BODY_SUV
    threshold = body_threshold(array, share)
    if in_suv and threshold <= most:
        return threshold, False
    body = int(np.count_nonzero(array > threshold))
    if body * volume.geometry.voxel_volume_ml > _MAX_ORGAN_ML:
        return threshold, in_suv
    if volume.unit is Unit.BQML:
        return threshold, True
    if threshold <= most:
        return threshold, array.size - body > _ANOTHER_BODY * array.size
    lower = body_threshold(array, share, _BELOW_TISSUE_SUV)
    found = lower <= most
    return (lower if found else threshold), not (found and in_suv)


def body_threshold(array: FloatArray, share: float, start: float | None = None) -> float:
    """Intensity that parts body from air, in the unit of `array`.

    The fixed point of "body is what exceeds `share` of the body's median", from `start`; default the mean, which in a
    whole scan lies above the noise in air and below most tissue. The median keeps hot organs from moving it.
    """
    threshold = float(array.mean(dtype=np.float64)) if start is None else start
    level, values = np.inf, array[:0].ravel()  # what lies above the level, sorted: the body of every threshold above it
    for _ in range(_THRESHOLD_ROUNDS):
        if threshold < level:
            level = threshold - _SLACK * abs(threshold)
            values = np.sort(array[array > level])
        body = values[np.searchsorted(values, np.float32(threshold), side="right") :]
        if body.size == 0:
            break
        median = body[(body.size - 1) // 2 : body.size // 2 + 1].mean()
        previous, threshold = threshold, share * float(median)
        if abs(threshold - previous) <= 1e-3 * abs(previous):
            break
    return threshold


def body_box(body: npt.NDArray[np.bool_], spacing_mm: Triple, margin_mm: float) -> Box:
    """Bounding box of the body with a margin, within the scan; what is thinner than three voxels is noise."""
    core = body
    for axis in range(3):
        core = _eroded(core, axis)
    margin = [int(np.ceil(margin_mm / step)) for step in spacing_mm]
    if not core.any():
        return bounding_box(np.ones_like(body))
    return bounding_box(core, [wider + 1 for wider in margin])  # one voxel was eroded


def _eroded(mask: npt.NDArray[np.bool_], axis: int) -> npt.NDArray[np.bool_]:
    """Voxels whose neighbours along `axis` are in the mask as well; the body goes on beyond the scan."""
    eroded = mask.copy()
    inner, outer = np.moveaxis(eroded, axis, 0), np.moveaxis(mask, axis, 0)
    inner[1:] &= outer[:-1]
    inner[:-1] &= outer[1:]
    return eroded


def onto(array: FloatArray, grid: Geometry, other: Geometry) -> FloatArray:
    """An array of a grid on another, by linear interpolation; zero beyond the first. As it is where both are one."""
    if grid == other:
        return array
    image = itk_image(array, grid)
    resampler = sitk.ResampleImageFilter()
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.SetSize(other.shape[::-1])
    resampler.SetOutputSpacing(other.spacing_mm[::-1])
    resampler.SetOutputOrigin(other.origin_lps_mm)
    resampler.SetOutputDirection(itk_direction(other))
    resampler.SetOutputPixelType(sitk.sitkFloat32)
    return np.asarray(sitk.GetArrayFromImage(resampler.Execute(image)))


def _resampled_shape(shape: tuple[int, ...], spacing_mm: Triple, new_spacing_mm: Triple) -> Shape:
    z, y, x = (max(1, round(n * old / new)) for n, old, new in zip(shape, spacing_mm, new_spacing_mm))
    return z, y, x


def _resample(array: FloatArray, spacing_mm: Triple, new_spacing_mm: Triple, onto: FloatArray) -> None:
    """Fill `onto` by linear interpolation; beyond the last centres of `array`, with the edge value.

    Both grids have the same outer corner. What is filled may be a view, so no volume is held in memory for nothing.
    """
    if array.shape == onto.shape and np.allclose(spacing_mm, new_spacing_mm, rtol=1e-6):
        onto[...] = array
        return
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing_mm[::-1])
    image.SetOrigin([spacing / 2 for spacing in spacing_mm[::-1]])
    resampler = sitk.ResampleImageFilter()
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.SetUseNearestNeighborExtrapolator(True)
    resampler.SetOutputSpacing(new_spacing_mm[::-1])
    resampler.SetOutputOrigin([spacing / 2 for spacing in new_spacing_mm[::-1]])
    resampler.SetSize(onto.shape[::-1])
    resampler.SetOutputPixelType(sitk.sitkFloat32)
    resampled = resampler.Execute(image)
    onto[...] = sitk.GetArrayViewFromImage(resampled)  # which has to live as long as the view
