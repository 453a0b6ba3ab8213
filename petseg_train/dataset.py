"""Random patches for training, cut the way the runtime cuts its windows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from petseg_runtime.errors import InputError
from petseg_runtime.manifest import PreprocessingSpec
from petseg_runtime.preprocessing import body_box, body_threshold, normalise
from petseg_runtime.sliding_window import fitted_window
from petseg_runtime.volume import Box, FloatArray, MaskArray, Triple, bounding_box
from petseg_train.augmentation import Shape, augment_intensity, draw_spatial_transform, extract_patch
from petseg_train.cohort import TrainingCase
from petseg_train.config import TrainingConfig

# What a scan that was cut around its tumour keeps on each side, as in the real patients of the model's training.
CROP_MARGIN_MM = (10.0, 50.0)
# The shortest stretch that a scan is cut to.
STRETCH_MM = 150.0
# How far a tumour's uptake above its surroundings is turned down or up.
UPTAKE_SCALE = (0.7, 3.0)
# How far activity spills over a tumour's edge: the standard deviation of a clinical PET's blur, some 7 mm of FWHM.
SPILL_MM = 3.0


class PatchSampler(Sampler[tuple[int, int]]):
    """Keys `(epoch, batch)` in a random order, each process of a distributed run its share.

    All randomness of a batch follows from `(seed, epoch, batch)`. So a run that was killed and resumed sees what
    an uninterrupted one sees, whatever the number of workers.
    """

    def __init__(self, length: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.length, self.seed, self.rank, self.world_size = length, seed, rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length // self.world_size  # the same for each process: gradients are exchanged every step

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # A generator, which draws at its first key: Lightning asks for it before it sets the epoch of a resumed run.
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        for batch in order[self.rank :: self.world_size][: len(self)]:
            yield self.epoch, int(batch)


class PatchDataset(Dataset[dict[str, Tensor]]):
    """A batch of augmented patches for each key `(epoch, batch)`, of cases that take turns, as the config says.

    With `centres_take_turns` the centres do, a batch each, and in each centre its cases: a centre of few cases counts
    as much as one of many, as where real patients are trained on beside many more simulated ones. A cohort that only
    trains (`petseg_train.training.fit`) takes a turn as a centre does.

    The patches of a batch are of one size, which holds the largest of its cases: PyTorch computes a lone small patch
    without oneDNN in 32 bits on a CPU, at a third of the speed.

    With probability `tumour_share` the patch holds a tumour voxel, at a random place in it; with `bright_share` one
    outside the tumour that is brighter than its mean, as bladder and brain are, which is what a network marks in error;
    otherwise it lies anywhere that a window can lie, and may hold no tumour, a body edge, or mostly air.

    With probability `uptake_share` the tumour gets another uptake (`with_other_uptake`). Then, with probability
    `crop_share`, the scan is cut around its tumour (`cut_around_tumour`), with `stretch_share` to a part of its length
    (`cut_to_a_stretch`).
    """

    def __init__(self, cases: Sequence[TrainingCase], config: TrainingConfig) -> None:
        self.cases, self.config = list(cases), config
        groups: dict[str, list[int]] = {}
        for index, case in enumerate(self.cases):
            groups.setdefault(case.turn if config.centres_take_turns else "", []).append(index)
        self._turns = list(groups.values())
        self.batches_per_epoch = (config.patches_per_epoch or len(self.cases)) // config.batch_size

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        """`image` and `mask`, float32 `(patches, z, y, x)`."""
        epoch, batch = key
        rng = np.random.default_rng([self.config.seed, epoch, batch])
        cases = [self._perhaps_changed(self.cases[number], rng) for number in self.cases_of(epoch, batch)]
        window = self._draw_window(cases, rng)
        images, masks = zip(*(self._draw_patch(case, window, rng) for case in cases))
        return {"image": torch.stack(images), "mask": torch.stack(masks)}

    def cases_of(self, epoch: int, batch: int) -> list[int]:
        """The cases that a key's patches show: they take turns, in an order drawn anew once all had theirs."""
        turn, group = divmod(epoch * len(self) + batch, len(self._turns))
        cases, first = self._turns[group], turn * self.config.batch_size
        numbers = []
        for place in range(first, first + self.config.batch_size):
            begun, position = divmod(place, len(cases))
            order = np.random.default_rng([self.config.seed, group, begun]).permutation(len(cases))
            numbers.append(cases[order[position]])
        return numbers

    def _draw_patch(self, case: TrainingCase, patch: Shape, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Image and mask `(z, y, x)` of a case."""
        spacing_mm, augmentation = self.config.preprocessing.spacing_mm, self.config.augmentation
        z, y, x = (side * step for side, step in zip(patch, spacing_mm))
        transform = draw_spatial_transform(augmentation, (z, y, x), rng)
        start = self._draw_start(case, patch, rng)
        image, mask = torch.from_numpy(case.image), torch.from_numpy(case.mask).float()
        image, mask = extract_patch(image, mask, start, patch, spacing_mm, transform, case.air)
        return augment_intensity(image, augmentation, rng), mask

    def _perhaps_changed(self, case: TrainingCase, rng: np.random.Generator) -> TrainingCase:
        # Nothing is drawn for what is not asked for, so that what is drawn after it stays what it was without.
        config, preprocessing = self.config, self.config.preprocessing
        if config.uptake_share and rng.random() < config.uptake_share:
            case = with_other_uptake(case, preprocessing, rng)
        if not config.crop_share and not config.stretch_share:
            return case
        chance = rng.random()
        if chance < config.crop_share:
            return cut_around_tumour(case, preprocessing, rng)
        if chance < config.crop_share + config.stretch_share:
            return cut_to_a_stretch(case, preprocessing, rng)
        return case

    def _draw_window(self, cases: Sequence[TrainingCase], rng: np.random.Generator) -> Shape:
        """The window for a batch, along each axis with chance 1/2 as if up to a patch of air lay around the scans.

        Where windows fit the body, the air in one depends on where the body is taken to end. The instance norm sees
        that air, so the training shows any amount of it.
        """
        patch_size, multiple = self.config.patch_size, self.config.fit_multiple
        if not multiple:
            return patch_size
        around = rng.integers(0, patch_size, endpoint=True) * (rng.random(3) < 0.5)
        largest = np.max([case.image.shape for case in cases], axis=0)
        return fitted_window(patch_size, multiple, tuple((largest + around).tolist()))

    def _draw_start(self, case: TrainingCase, window: Shape, rng: np.random.Generator) -> Shape:
        voxels = self._voxels_to_show(case, rng.random())
        patch = np.array(window)
        room = np.array(case.image.shape) - patch
        # Up to a quarter of a window outside the scan, half as far as the test of window invariance shifts its grids.
        lowest, highest = np.minimum(room, 0) - patch // 4, np.maximum(room, 0) + patch // 4
        if len(voxels):
            start = np.clip(voxels[rng.integers(len(voxels))] - rng.integers(0, patch), lowest, highest)
        else:
            start = rng.integers(lowest, highest + 1)
        return int(start[0]), int(start[1]), int(start[2])

    def _voxels_to_show(self, case: TrainingCase, chance: float) -> npt.NDArray[np.intp]:
        """Voxels `(n, 3)` of which the patch is to hold one; none where it may lie anywhere."""
        tumour_share, bright_share = self.config.tumour_share, self.config.bright_share
        if chance < tumour_share:
            return np.argwhere(case.mask)
        tumour = case.mask > 0
        if chance < tumour_share + bright_share and tumour.any():
            return np.argwhere((case.image > case.image[tumour].mean()) & ~tumour)
        return np.empty((0, 3), dtype=np.intp)


def cut_around_tumour(case: TrainingCase, preprocessing: PreprocessingSpec, rng: np.random.Generator) -> TrainingCase:
    """The case as it would be if its scan had been cut around the tumour, each side 10 to 50 mm from it.

    Public collections and exports from radiotherapy planning come like that. The network's input then ends where
    tissue goes on, and is normalised over what is left of the body; both are learned from whole scans by this.
    A case without tumour comes back as it is.
    """
    voxels = np.argwhere(case.mask)
    if not len(voxels):
        return case
    margin = np.round(rng.uniform(*CROP_MARGIN_MM, size=(2, 3)) / preprocessing.spacing_mm).astype(int)
    first = np.maximum(voxels.min(axis=0) - margin[0], 0)
    z, y, x = (slice(start, end) for start, end in zip(first, voxels.max(axis=0) + 1 + margin[1]))
    return _cut(case, (z, y, x), preprocessing)


def cut_to_a_stretch(case: TrainingCase, preprocessing: PreprocessingSpec, rng: np.random.Generator) -> TrainingCase:
    """The case as if the scan had covered a random part of its length, of `STRETCH_MM` at least.

    Where a scan begins and ends differs from one clinic to the next, and what it holds shifts the z-score of all of it.
    """
    slices = len(case.image)
    count = int(rng.integers(min(slices, round(STRETCH_MM / preprocessing.spacing_mm[0])), slices, endpoint=True))
    first = int(rng.integers(0, slices - count, endpoint=True))
    return _cut(case, (slice(first, first + count), slice(None), slice(None)), preprocessing)


def with_other_uptake(case: TrainingCase, preprocessing: PreprocessingSpec, rng: np.random.Generator) -> TrainingCase:
    """The case as if its tumour took up 0.7 to 3 times as much above its surroundings, evenly in its logarithm.

    Outline and texture stay, and with them the truth. Which tumours are brighter than a bladder, and which hardly
    brighter than muscle, is chance, and a few real patients do not show all of it. The scan is normalised anew: a hot
    tumour in a small scan shifts the z-score of all of it. A case without tumour comes back as it is.
    """
    if not case.mask.any():
        return case
    activity = case.image - np.float32(case.air)  # proportional to it, and zero in air
    scale = np.exp(rng.uniform(*np.log(UPTAKE_SCALE)))
    _scale_uptake(activity, case.mask > 0, float(scale), preprocessing.spacing_mm)
    return _normalised(case, activity, case.mask, case.body_level - case.air, preprocessing)


def _scale_uptake(activity: FloatArray, tumour: npt.NDArray[np.bool_], scale: float, spacing_mm: Triple) -> None:
    """Multiply, in place, what a tumour takes up above its surroundings; it spills over as in a PET."""
    near = bounding_box(tumour, [math.ceil(4 * SPILL_MM / step) for step in spacing_mm])
    inside, shown = tumour[near], activity[near]
    distance_mm = distance_transform_edt(~inside, sampling=spacing_mm)
    around = (distance_mm > 2 * SPILL_MM) & (distance_mm <= 4 * SPILL_MM)
    surroundings = np.median(shown[around]) if around.any() else 0.0
    # What is brighter than the tumour beyond its edge is not of it, but perhaps a bladder.
    uptake = np.clip(np.where(inside, shown, np.minimum(shown, shown[inside].mean())) - surroundings, 0, None)
    share = np.exp(-0.5 * (distance_mm / SPILL_MM) ** 2)  # 1 in the tumour
    shown += ((scale - 1) * share * uptake).astype(np.float32)


def _cut(case: TrainingCase, box: Box, preprocessing: PreprocessingSpec) -> TrainingCase:
    """A part of the case as the runtime sees it: cut to its body, and normalised over that, see `_normalised`."""
    activity = case.image[box] - np.float32(case.air)  # proportional to it, and zero in air
    # In a small part a bladder may lift the mean above all tissue, so the search for the body starts below tissue.
    median = (case.body_level - case.air) / preprocessing.body_threshold
    threshold = body_threshold(activity, preprocessing.body_threshold, median / 2)
    body = body_box(activity > threshold, preprocessing.spacing_mm, preprocessing.body_margin_mm)
    return _normalised(
        case, np.ascontiguousarray(activity[body]), np.ascontiguousarray(case.mask[box][body]), threshold, preprocessing
    )


def _normalised(
    case: TrainingCase, activity: FloatArray, mask: MaskArray, threshold: float, preprocessing: PreprocessingSpec
) -> TrainingCase:
    """The case with another activity, which is normalised in place, and mask.

    The case itself comes back where there is nothing left to normalise over.
    """
    try:
        mean, std = normalise(activity, threshold, preprocessing)
    except InputError:
        return case
    return replace(case, image=activity, mask=mask, air=-mean / std, body_level=(threshold - mean) / std)
