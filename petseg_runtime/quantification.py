"""What a nuclear-medicine report says of a mask: volumes and uptake, per lesion and per scan. Pure NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from petseg_runtime.volume import Triple, Unit, Volume


@dataclass(frozen=True)
class RegionStatistics:
    """Quantities of one region of a scan. An empty region has zero volume and no uptake (None).

    Attributes
    ----------
    mtv_ml : metabolic tumour volume: number of voxels times the volume of one, in ml.
    suv_max, suv_mean : largest and mean SUVbw (g/ml) of the region's voxels; None unless the scan is in SUVbw.
    tlg_g : total lesion glycolysis, suv_mean x mtv_ml, in g; None unless the scan is in SUVbw.
    intensity_max, intensity_mean : the same in the scan's own unit, whatever it is.
    """

    mtv_ml: float
    suv_max: float | None
    suv_mean: float | None
    tlg_g: float | None
    intensity_max: float | None
    intensity_mean: float | None


@dataclass(frozen=True)
class LesionStatistics(RegionStatistics):
    """Quantities of one lesion; `label` is its number in the lesion label map, from the largest down.

    `centroid_lps_mm` is the mean position `(L, P, S)` of its voxels.
    """

    label: int
    centroid_lps_mm: Triple


@dataclass(frozen=True)
class ScanStatistics:
    """Quantities of a scan: its unit, its own largest value, the whole tumour and each lesion."""

    unit: Unit
    scan_max: float
    lesion_count: int
    tumour: RegionStatistics
    lesions: tuple[LesionStatistics, ...]


def quantify(volume: Volume, lesion_labels: npt.NDArray[np.integer]) -> ScanStatistics:
    """Measure a scan inside its lesions.

    Parameters
    ----------
    lesion_labels : whole numbers `(z, y, x)` on the scan's grid, 0 outside, 1 to n inside the n lesions.

    Raises
    ------
    ValueError : if the labels are not on the scan's grid.
    """
    if lesion_labels.shape != volume.array.shape:
        raise ValueError(f"labels are {lesion_labels.shape}, the scan is {volume.array.shape}")
    index = np.argwhere(lesion_labels)
    labels = lesion_labels[tuple(index.T)]
    values = volume.array[tuple(index.T)].astype(np.float64)
    count = int(labels.max(initial=0))
    lesions = []
    for label in range(1, count + 1):
        inside = labels == label
        region = _region(values[inside], volume)
        left, posterior, superior = volume.geometry.to_lps_mm(index[inside].mean(axis=0)).tolist()
        lesions.append(LesionStatistics(**vars(region), label=label, centroid_lps_mm=(left, posterior, superior)))
    return ScanStatistics(volume.unit, float(volume.array.max()), count, _region(values, volume), tuple(lesions))


def _region(values: npt.NDArray[np.float64], volume: Volume) -> RegionStatistics:
    mtv_ml = values.size * volume.geometry.voxel_volume_ml
    largest, mean = (float(values.max()), float(values.mean())) if values.size else (None, None)
    if volume.unit is not Unit.SUVBW:
        return RegionStatistics(mtv_ml, None, None, None, largest, mean)
    return RegionStatistics(mtv_ml, largest, mean, mtv_ml * (mean or 0.0), largest, mean)
