"""FLAB: fuzzy locally adaptive Bayesian segmentation of a tumour inside a volume of interest (VOI).

Hatt et al., IEEE Trans Med Imaging 28(6):881-893, 2009; for heterogeneous tumours with three classes Hatt et al., Int J
Radiat Oncol Biol Phys 77(1):301-308, 2010.

Each voxel has a hidden level: one of the hard classes (background, uptake), or a mixture of two of them, the fuzzy
levels of partial volume. The measured values of a level are Gaussian, with mean and variance mixed from those of its
two hard classes. The prior of a level is local: its share in the 3 x 3 x 3 cube round the voxel. Stochastic
expectation maximisation draws a realisation of the levels, and finds means, variances and priors from it anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.cluster.vq import kmeans2
from scipy.ndimage import uniform_filter

from petseg_runtime.errors import InputError
from petseg_runtime.volume import FloatArray, MaskArray, bounding_box

_FUZZY = (1 / 3, 2 / 3)
_CUBE = 3
_BURN_IN, _AVERAGED, _LONGEST = 10, 10, 120
_SETTLED = 0.01  # of the contrast: the means of two successive stretches of iterations differ by less
_LARGEST = 1e15  # whose square, in float32, is a number
_PSEUDO_COUNT = 0.5  # of a voxel, shared by all levels in a cube, so that a level may come back to a place


@dataclass(frozen=True)
class _Level:
    """`share` of hard class `high`, and the rest of hard class `low`; a hard class itself where they are the same."""

    low: int
    high: int
    share: float


def flab(
    image: FloatArray,
    voi: npt.NDArray[np.bool_],
    rng: np.random.Generator,
    classes: int = 2,
    start: Sequence[float] | None = None,
) -> MaskArray:
    """Mask of the tumour in the VOI; the same generator state gives the same mask.

    Parameters
    ----------
    image : uptake in any linear unit, `(z, y, x)`.
    voi : where the tumour and some background lie, and no other uptake (the bladder) does; the same shape.
    classes : 2, or 3 for a heterogeneous tumour (background, low uptake, high uptake).
    start : first means of the hard classes, rising, in the image's unit; default by K-means.

    Returns
    -------
    uint8 `(z, y, x)`: 1 at the hard class of uptake and the fuzzy level nearest to it; with three classes, both
    classes of uptake, all that is mixed from them, and what is mixed from one of them and one third of background.

    Raises
    ------
    InputError : if the VOI is empty, lies on another grid, or holds one value only or what is no number; or if `start`
        does not rise, or goes beyond the values in the VOI.
    """
    if image.shape != voi.shape:
        raise InputError(f"The VOI has the shape {voi.shape}, expected the image's {image.shape}.")
    if classes not in (2, 3):
        raise InputError(f"FLAB was asked for {classes} classes, expected 2 or 3.")
    inside = voi.astype(bool)
    if not (np.abs(image[inside]) < _LARGEST).all():
        raise InputError(f"The VOI holds values that are not numbers below {_LARGEST:g}. Pass a scan in SUV or Bq/ml.")
    if len(np.unique(image[inside])) < 2 * classes:
        raise InputError("The VOI holds too few different values for FLAB. Draw it round the tumour with a margin.")
    box = bounding_box(inside)
    mask = np.zeros(image.shape, dtype=np.uint8)
    mask[box] = _segment(image[box].astype(np.float32), inside[box], rng, classes, start)
    return mask


def _segment(
    image: FloatArray,
    inside: npt.NDArray[np.bool_],
    rng: np.random.Generator,
    classes: int,
    start: Sequence[float] | None,
) -> npt.NDArray[np.bool_]:
    levels = [_Level(one, one, 0.0) for one in range(classes)]
    levels += [_Level(low, high, share) for low, high in combinations(range(classes), 2) for share in _FUZZY]
    values = image[inside]
    means, deviations = _first_classes(values, classes, start)
    floor = 1e-3 * float(values.max() - values.min())
    voxels_in_cube = uniform_filter(inside.astype(np.float32), _CUBE, mode="constant")[inside]
    priors = np.full((len(levels), len(values)), 1 / len(levels), dtype=np.float32)
    history: list[npt.NDArray[np.float64]] = []
    while len(history) < _LONGEST and not _settled(history, classes):
        drawn = _draw(_posteriors(values, priors, levels, means, deviations), rng)
        for one in range(classes):
            voxels = values[drawn == one]
            if len(voxels) > 1:
                means[one], deviations[one] = voxels.mean(), max(float(voxels.std()), floor)
        priors = _local_shares(drawn, len(levels), inside, voxels_in_cube)
        history.append(np.concatenate([means, deviations]))
    means, deviations = np.split(np.mean(history[-_AVERAGED:], axis=0), 2)
    decided = np.argmax(_posteriors(values, priors, levels, means, deviations), axis=0)
    rank = np.argsort(np.argsort(means))  # draws may swap the classes
    found = np.zeros(inside.shape, dtype=bool)
    found[inside] = np.array([_is_uptake(level, rank) for level in levels])[decided]
    return found


def _is_uptake(level: _Level, rank: npt.NDArray[np.int64]) -> bool:
    """Whether a level belongs to the tumour: no more than a third of it is background."""
    background = (1 - level.share) * (rank[level.low] == 0) + level.share * (rank[level.high] == 0)
    return bool(background < 0.5)


def _first_classes(
    values: FloatArray, classes: int, start: Sequence[float] | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Means and standard deviations of the hard classes, rising, from K-means or from the nearest of given means."""
    sample = values.astype(np.float64)
    if start is None:
        first = np.quantile(sample, (np.arange(classes) + 0.5) / classes)
        first[-1] = np.quantile(sample, 0.98)
        centres, _ = kmeans2(sample[:, None], first[:, None], minit="matrix", missing="warn")
        means = np.sort(centres[:, 0])
    else:
        means = np.array(start, dtype=np.float64)
        low, high = float(sample.min()), float(sample.max())
        if len(means) != classes or not (np.diff(means) > 0).all() or not low <= means[0] <= means[-1] <= high:
            raise InputError(
                f"FLAB's starting means are {list(start)}, expected {classes} rising values as the VOI has, from "
                f"{low:.4g} to {high:.4g}."
            )
    nearest = np.abs(sample - means[:, None]).argmin(axis=0)
    spread = float(sample.std())
    deviations = [sample[nearest == one].std() if (nearest == one).sum() > 1 else spread for one in range(classes)]
    return means, np.maximum(deviations, 1e-3 * spread)


def _posteriors(
    values: FloatArray,
    priors: FloatArray,
    levels: Sequence[_Level],
    means: npt.NDArray[np.float64],
    deviations: npt.NDArray[np.float64],
) -> FloatArray:
    """Probability of each level at each voxel, `(level, voxel)`."""
    logs = np.empty_like(priors)
    for index, level in enumerate(levels):
        mean = (1 - level.share) * means[level.low] + level.share * means[level.high]
        variance = (1 - level.share) ** 2 * deviations[level.low] ** 2 + level.share**2 * deviations[level.high] ** 2
        logs[index] = np.log(priors[index]) - 0.5 * np.log(variance) - (values - mean) ** 2 / (2 * variance)
    posteriors: FloatArray = np.exp(logs - logs.max(axis=0))
    posteriors /= posteriors.sum(axis=0)
    return posteriors


def _draw(posteriors: FloatArray, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """A level for each voxel, drawn from its posterior."""
    below = np.cumsum(posteriors, axis=0)[:-1]
    drawn: npt.NDArray[np.int64] = (rng.random(posteriors.shape[1], dtype=np.float32) > below).sum(axis=0)
    return drawn


def _local_shares(
    drawn: npt.NDArray[np.int64], levels: int, inside: npt.NDArray[np.bool_], voxels_in_cube: FloatArray
) -> FloatArray:
    """Share of each level in the cube round each voxel, of the voxels inside the VOI, `(level, voxel)`."""
    shares = np.empty((levels, len(drawn)), dtype=np.float32)
    pseudo = _PSEUDO_COUNT / _CUBE**3
    for level in range(levels):
        here = np.zeros(inside.shape, dtype=np.float32)
        here[inside] = drawn == level
        shares[level] = uniform_filter(here, _CUBE, mode="constant")[inside]
    return (np.maximum(shares, 0) + pseudo / levels) / (voxels_in_cube + pseudo)


def _settled(history: Sequence[npt.NDArray[np.float64]], classes: int) -> bool:
    if len(history) < _BURN_IN + 2 * _AVERAGED:
        return False
    last, before = np.mean(history[-_AVERAGED:], axis=0), np.mean(history[-2 * _AVERAGED : -_AVERAGED], axis=0)
    contrast = np.ptp(last[:classes])
    return bool(np.abs(last - before).max() < _SETTLED * contrast)
