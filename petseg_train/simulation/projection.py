"""Parallel-beam projection of a stack of slices, with time of flight.

A line integral is taken in two steps: the image is turned so that the lines run along its rows (one sparse matrix of
bilinear weights an angle), and each row is summed into time-of-flight bins (a small dense matrix). The back-projection
is the exact adjoint, so OSEM converges to what was measured.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.stats import norm

from petseg_runtime.volume import FloatArray

FIELD_OF_VIEW_MM = 460.0
_SIGMA_PER_FWHM = 1 / np.sqrt(8 * np.log(2))


def sigma(fwhm: float) -> float:
    """Standard deviation of a Gaussian of that full width at half maximum."""
    return fwhm * float(_SIGMA_PER_FWHM)


class Projector:
    """Projects images whose pixels `(y, x)` are `pixel_mm` wide onto detector bins of `bin_mm`.

    Parameters
    ----------
    shape, pixel_mm : grid of the image, centred on the axis of rotation.
    bin_mm : width of a detector bin, and step along the lines.
    angles : number of angles over 180 degrees.
    tof_mm : FWHM of the time-of-flight localisation, None without.
    """

    def __init__(
        self, shape: tuple[int, int], pixel_mm: float, bin_mm: float, angles: int, tof_mm: float | None
    ) -> None:
        self.bins, self.bin_mm, self.angles = round(FIELD_OF_VIEW_MM / bin_mm), bin_mm, angles
        self.rotations = [
            _rotation(shape, pixel_mm, self.bins, bin_mm, np.pi * angle / angles) for angle in range(angles)
        ]
        self.time_bins = _time_bins(self.bins, bin_mm, tof_mm)

    def forward(self, image: FloatArray, angle: int) -> FloatArray:
        """Line integrals in mm, `(time bin, bin, slice)`, of an image `(y * x, slice)`."""
        turned = (self.rotations[angle] @ image).reshape(self.bins, -1)
        return (self.bin_mm * (self.time_bins @ turned)).reshape(len(self.time_bins), self.bins, -1)

    def backward(self, sinogram: FloatArray, angle: int) -> FloatArray:
        """The adjoint of `forward`."""
        spread = self.bin_mm * (self.time_bins.T @ sinogram.reshape(len(self.time_bins), -1))
        image: FloatArray = self.rotations[angle].T @ spread.reshape(self.bins * self.bins, -1)
        return image


def _rotation(shape: tuple[int, int], pixel_mm: float, bins: int, bin_mm: float, angle: float) -> csr_array:
    """Bilinear samples of the image on the turned grid `(along the line, across)`, as a matrix.

    Where bins are wider than pixels, each is the mean of several lines, so that no pixel is missed.
    """
    lines = max(1, round(bin_mm / pixel_mm))
    along = (np.arange(bins) - (bins - 1) / 2) * bin_mm
    across = (np.arange(bins * lines) - (bins * lines - 1) / 2) * bin_mm / lines
    v, u = np.meshgrid(along, across, indexing="ij")
    y = (u * np.sin(angle) + v * np.cos(angle)) / pixel_mm + (shape[0] - 1) / 2
    x = (u * np.cos(angle) - v * np.sin(angle)) / pixel_mm + (shape[1] - 1) / 2
    row = (np.arange(bins)[:, None] * bins + np.arange(bins * lines) // lines).ravel()
    y, x = y.ravel(), x.ravel()
    y0, x0 = np.floor(y).astype(int), np.floor(x).astype(int)
    rows, columns, weights = [], [], []
    for dy in (0, 1):
        for dx in (0, 1):
            weight = np.abs(1 - dy - (y - y0)) * np.abs(1 - dx - (x - x0)) / lines
            yy, xx = y0 + dy, x0 + dx
            kept = (yy >= 0) & (yy < shape[0]) & (xx >= 0) & (xx < shape[1]) & (weight > 0)
            rows.append(row[kept])
            columns.append(yy[kept] * shape[1] + xx[kept])
            weights.append(weight[kept])
    entries = (np.concatenate(weights).astype(np.float32), (np.concatenate(rows), np.concatenate(columns)))
    matrix = csr_array(entries, shape=(bins * bins, shape[0] * shape[1]))
    matrix.indices, matrix.indptr = matrix.indices.astype(np.int32), matrix.indptr.astype(np.int32)
    return matrix


def _time_bins(bins: int, bin_mm: float, tof_mm: float | None) -> npt.NDArray[np.float32]:
    """Share of each place along a line that is measured in each time bin, `(time bin, place)`; columns sum to 1."""
    if tof_mm is None:
        return np.ones((1, bins), dtype=np.float32)
    width = 2 * sigma(tof_mm)
    count = int(np.ceil(FIELD_OF_VIEW_MM / width))
    edges = (np.arange(1, count) - count / 2) * width
    along = (np.arange(bins) - (bins - 1) / 2) * bin_mm
    below = norm.cdf((edges[:, None] - along) / sigma(tof_mm))
    padded = np.vstack([np.zeros(bins), below, np.ones(bins)])
    return np.diff(padded, axis=0).astype(np.float32)
