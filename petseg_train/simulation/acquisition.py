"""From uptake to an image: what a scanner measures, and how its software reconstructs it.

Two dimensions: each slice is measured and reconstructed from its own lines. Modelled are blur by the detectors, time of
flight, attenuation, scatter and randoms, Poisson counts, and OSEM with the centre's settings. Left out are parallax,
motion, and the seams between bed positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from petseg_runtime.volume import FloatArray
from petseg_train.simulation.canvas import PLANE, SPACING_MM, Canvas, Label
from petseg_train.simulation.centres import Scanner
from petseg_train.simulation.projection import FIELD_OF_VIEW_MM, Projector, sigma

# Linear attenuation at 511 keV in 1/mm (Hubbell and Seltzer, NIST): soft tissue; trabecular bone with its cortex; lung,
# of a third of the density.
_MU_SOFT, _MU_BONE, _MU_LUNG = 0.0096, 0.0125, 0.003
_SCATTER_MM = 120.0  # FWHM of the scatter's blur
_SCATTER_ERROR = 0.1  # relative error of the scanner's estimate of it


@dataclass(frozen=True)
class Scan:
    """Settings of one scan.

    Attributes
    ----------
    bed_s : time for a bed position.
    becquerel_per_ml : activity concentration of SUV 1 at the time of the scan.
    z_mm : positions of the slices' centres, upwards.
    """

    scanner: Scanner
    bed_s: float
    becquerel_per_ml: float
    z_mm: FloatArray


def acquire(canvas: Canvas, scan: Scan, rng: np.random.Generator) -> FloatArray:
    """The reconstructed image in SUV `(z, y, x)`, x to the left and y to the back, on `matrix` pixels a side."""
    scanner = scan.scanner
    measuring, reconstructing = _projectors(scanner)
    uptake, mu = _slices(canvas, canvas.uptake, scan), _slices(canvas, _attenuation(canvas), scan)
    counts_per_integral = (
        scan.becquerel_per_ml * scanner.sensitivity * scan.bed_s / measuring.angles
        * scanner.voxel_mm[0] * scanner.voxel_mm[1] / 1000  # mm3 in a ml
    )  # fmt: skip
    trues, transmission = [], []
    for angle in range(measuring.angles):
        through = np.exp(-measuring.forward(mu, angle).sum(axis=0))
        transmission.append((counts_per_integral * through).astype(np.float32))
        trues.append(measuring.forward(uptake, angle) * transmission[-1])
    sinogram = np.stack(trues)  # (angle, time bin, bin, slice)
    scatter = _scatter(sinogram, scanner)
    randoms = np.full_like(scatter, scanner.randoms_fraction * float(sinogram.mean() + scatter.mean()))
    counts = rng.poisson(sinogram + scatter + randoms).astype(np.float32)
    expected = scatter * np.float32(1 + rng.normal(0, _SCATTER_ERROR)) + randoms
    image = _osem(counts, expected, np.stack(transmission), reconstructing, scan)
    return _on_matrix(_filtered(image, scanner), scanner.matrix)


def first_pixel_mm(scanner: Scanner) -> float:
    """Place of the image's first pixel: what is reconstructed lies in the middle of the matrix, to half a pixel."""
    side = round(FIELD_OF_VIEW_MM / scanner.voxel_mm[0])
    return -((side - 1) / 2 + (scanner.matrix - side) // 2) * scanner.voxel_mm[0]


@lru_cache(maxsize=2)  # the patients of a centre come one after the other
def _projectors(scanner: Scanner) -> tuple[Projector, Projector]:
    """Of the fine grid, for the measurement, and of the image's own, for the reconstruction."""
    bin_mm = scanner.voxel_mm[0]
    angles = scanner.subsets * max(1, round(160 / scanner.subsets))
    fine = Projector(PLANE, SPACING_MM, bin_mm, angles, scanner.tof_mm)
    side = round(FIELD_OF_VIEW_MM / bin_mm)
    return fine, Projector((side, side), bin_mm, bin_mm, angles, scanner.tof_mm)


def _slices(canvas: Canvas, values: FloatArray, scan: Scan) -> FloatArray:
    """`values` as the scanner's slices see them, blurred by the detectors, `(y * x, slice)`."""
    blurred = gaussian_filter(values, sigma(scan.scanner.resolution_mm) / SPACING_MM, truncate=3)
    at = (scan.z_mm - canvas.axes[0][0]) / SPACING_MM
    below = np.clip(np.floor(at).astype(int), 0, len(blurred) - 2)
    share = (at - below)[:, None, None].astype(np.float32)
    slices = (1 - share) * blurred[below] + share * blurred[below + 1]
    return np.ascontiguousarray(slices.reshape(len(slices), -1).T)


def _attenuation(canvas: Canvas) -> FloatArray:
    mu = np.where(canvas.labels == Label.BONE, np.float32(_MU_BONE), np.float32(_MU_SOFT))
    mu[canvas.labels == Label.LUNG] = _MU_LUNG
    mu[canvas.labels == Label.AIR] = 0
    return mu


def _scatter(trues: FloatArray, scanner: Scanner) -> FloatArray:
    """Scattered coincidences: the trues, blurred widely across the bins and, half as widely, across the slices.

    So smooth a thing is found on a grid of a quarter of the bins and slices.
    """
    share = scanner.scatter_fraction / (1 - scanner.scatter_fraction)
    pooled = torch.nn.functional.avg_pool2d(torch.from_numpy(trues), 4, ceil_mode=True, count_include_pad=False)
    across = sigma(_SCATTER_MM) / 4
    sigmas = (0, 0, across / scanner.voxel_mm[0], across / 2 / scanner.voxel_mm[1])
    blurred = torch.from_numpy(share * gaussian_filter(pooled.numpy(), sigmas, truncate=2.5))
    return torch.nn.functional.interpolate(blurred, size=trues.shape[2:], mode="bilinear").numpy()


def _osem(
    counts: FloatArray, background: FloatArray, transmission: FloatArray, projector: Projector, scan: Scan
) -> FloatArray:
    """Ordered-subset expectation maximisation with attenuation in the model, `(y, x, slice)`.

    With resolution modelling the detectors' blur is part of the model; with blobs, the image is a blurred sum of basis
    functions, whose amplitudes are what is found.
    """
    scanner, side = scan.scanner, projector.bins
    width = scanner.blob_mm or (scanner.resolution_mm if scanner.psf else 0.0)

    def blur(image: FloatArray) -> FloatArray:
        if not width:
            return image
        sigmas = [sigma(width) / step for step in (scanner.voxel_mm[0], scanner.voxel_mm[0], scanner.voxel_mm[1])]
        blurred: FloatArray = gaussian_filter(image.reshape(side, side, -1), sigmas, truncate=2.5)
        return blurred.reshape(image.shape)

    subsets = [range(first, projector.angles, scanner.subsets) for first in range(scanner.subsets)]
    ones = np.ones((len(projector.time_bins), 1, 1), dtype=np.float32)
    sensitivities = []
    for subset in subsets:
        sensitivity = sum(projector.backward(transmission[angle] * ones, angle) for angle in subset)
        sensitivities.append(np.maximum(blur(np.asarray(sensitivity)), 1e-6))
    image = np.ones((side * side, counts.shape[3]), dtype=np.float32)
    for _ in range(scanner.iterations):
        for subset, sensitivity in zip(subsets, sensitivities):
            blurred = blur(image)
            correction = np.zeros_like(image)
            for angle in subset:
                model = projector.forward(blurred, angle) * transmission[angle] + background[angle]
                ratio = counts[angle] / np.maximum(model, 1e-9) * transmission[angle]
                correction += projector.backward(ratio, angle)
            image *= blur(correction) / sensitivity
    found = blur(image) if scanner.blob_mm else image
    return found.reshape(side, side, -1)


def _filtered(image: FloatArray, scanner: Scanner) -> FloatArray:
    in_plane, between = scanner.filter_mm
    sigmas = [sigma(in_plane) / scanner.voxel_mm[0]] * 2 + [sigma(between) / scanner.voxel_mm[1]]
    filtered: FloatArray = gaussian_filter(image, sigmas)
    return filtered


def _on_matrix(image: FloatArray, matrix: int) -> FloatArray:
    """`(y, x, slice)` in the middle of the scanner's full matrix, as `(slice, y, x)`; zero around it."""
    side = image.shape[0]
    before = (matrix - side) // 2
    full = np.zeros((image.shape[2], matrix, matrix), dtype=np.float32)
    full[:, before : before + side, before : before + side] = np.moveaxis(image, 2, 0)
    return full
