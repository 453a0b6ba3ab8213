"""Patches: reproducible from seed, epoch and batch, shared between processes, as varied as the runtime's windows."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch

from petseg_runtime.manifest import PreprocessingSpec
from petseg_runtime.preprocessing import NetworkInput, body_threshold, preprocess, resample_mask
from petseg_runtime.volume import Geometry, Unit, Volume
from petseg_train.augmentation import Augmentation
from petseg_train.cohort import TrainingCase
from petseg_train.config import TrainingConfig
from petseg_train.dataset import (
    PatchDataset,
    PatchSampler,
    cut_around_tumour,
    cut_to_a_stretch,
    with_other_uptake,
)

PREPROCESSING = PreprocessingSpec(spacing_mm=(2.0, 4.0, 4.0), body_threshold=0.2, body_margin_mm=20.0)
PLAIN = Augmentation(probability=0.0)


def case(shape: tuple[int, int, int] = (24, 20, 28)) -> TrainingCase:
    rng = np.random.default_rng(0)
    image = rng.normal(size=shape).astype(np.float32)
    mask = np.zeros(shape, np.uint8)
    mask[10:14, 8:12, -10:-6] = 1
    image[mask > 0] = 9.0
    return TrainingCase("one", image, mask, air=-3.0, body_level=-2.5)


def case_of(whole: NetworkInput, mask: np.ndarray) -> TrainingCase:
    resampled = resample_mask(mask, whole.frame)
    return TrainingCase("one", whole.array.copy(), resampled, whole.air, whole.body_level, "centre")


def volume(array: np.ndarray) -> Volume:
    z, y, x = array.shape
    return Volume(array, Geometry((z, y, x), PREPROCESSING.spacing_mm))


def patches_of(*cases: TrainingCase, **changes: Any) -> PatchDataset:
    """Patches of 16 x 16 x 16, one a batch, that are not augmented, unless the changes say so."""
    plain = TrainingConfig(
        preprocessing=PREPROCESSING, augmentation=PLAIN, patch_size=(16, 16, 16), batch_size=1, seed=7
    )
    return PatchDataset(cases, replace(plain, **changes))


def dataset(**changes: Any) -> PatchDataset:
    return patches_of(case(), case((40, 18, 18)), **{"augmentation": Augmentation(), **changes})


def test_a_batch_follows_from_seed_epoch_and_number() -> None:
    one, other = dataset(), dataset()
    torch.testing.assert_close(one[3, 1]["image"], other[3, 1]["image"], rtol=0, atol=0)
    assert not torch.equal(one[3, 1]["image"], one[4, 1]["image"])
    assert not torch.equal(one[3, 1]["image"], dataset(seed=8)[3, 1]["image"])


def test_the_length_of_an_epoch_does_not_depend_on_the_cases_which_take_turns() -> None:
    assert len(dataset()) == 2
    patches = dataset(patches_per_epoch=3)
    assert len(patches) == 3
    drawn = [number for epoch in range(2) for batch in range(3) for number in patches.cases_of(epoch, batch)]
    assert [sorted(drawn[first : first + 2]) for first in (0, 2, 4)] == [[0, 1]] * 3


def test_a_batch_holds_patches_of_one_size_that_fit_the_largest_of_its_cases() -> None:
    both = dataset(augmentation=PLAIN, patch_size=(64, 64, 64), fit_multiple=8, batch_size=2)
    assert len(both) == 1
    sizes = set()
    for epoch in range(40):
        batch = both[epoch, 0]
        patches, *size = batch["image"].shape
        assert patches == 2
        assert batch["mask"].shape == batch["image"].shape
        sizes.add(tuple(size))
    # the cases have 24 x 20 x 28 and 40 x 18 x 18 voxels
    assert min(sizes) == (40, 24, 32)
    assert max(sizes) == (64, 64, 64)


def test_each_case_has_its_turn_before_one_has_another_in_an_order_of_its_own() -> None:
    cases = [replace(case(), name=str(number)) for number in range(5)]
    patches = patches_of(*cases, patches_per_epoch=10, batch_size=2)
    drawn = [number for epoch in range(4) for batch in range(5) for number in patches.cases_of(epoch, batch)]
    orders = [tuple(drawn[first : first + 5]) for first in range(0, 40, 5)]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    assert len(set(orders)) > 4


def test_shapes_and_types() -> None:
    sample = dataset()[0, 0]
    for key in ("image", "mask"):
        assert sample[key].shape == (1, 16, 16, 16)
        assert sample[key].dtype == torch.float32
    assert set(sample["mask"].unique().tolist()) <= {0.0, 1.0}


def test_a_patch_is_as_wide_as_the_body_or_the_body_with_air_around_it() -> None:
    for only, fitted in ((case(), [24, 24, 32]), (case((40, 18, 18)), [40, 24, 24])):
        patches = patches_of(only, augmentation=Augmentation(), patch_size=(64, 64, 64), fit_multiple=8)
        sides = np.array([patches[epoch, 0]["image"].shape[1:] for epoch in range(100)])
        assert sides.min(axis=0).tolist() == fitted
        assert sides.max(axis=0).tolist() == [64, 64, 64]
        assert not (sides % 8).any()
        assert ((sides == fitted).mean(axis=0) > 0.35).all()  # half of the patches, and a few with little air


def test_patches_hold_tumour_as_often_as_asked() -> None:
    always = dataset(augmentation=PLAIN, tumour_share=1.0)
    assert all(always[epoch, 0]["mask"].sum() > 0 for epoch in range(60))
    anywhere = dataset(augmentation=PLAIN, tumour_share=0.0)
    held = [bool(anywhere[epoch, 0]["mask"].sum() > 0) for epoch in range(200)]
    assert 0.05 < np.mean(held) < 0.9


def test_the_tumour_lies_anywhere_in_the_patch() -> None:
    always = dataset(augmentation=PLAIN, tumour_share=1.0)
    centres = np.array([np.argwhere(always[epoch, 0]["mask"][0].numpy()).mean(axis=0) for epoch in range(200)])
    assert (centres.min(axis=0) < 4).all()
    assert (centres.max(axis=0) > 11).all()


def test_patches_hold_bright_voxels_outside_the_tumour_as_often_as_asked() -> None:
    quiet = case((80, 32, 32))
    image = quiet.image.copy()
    image[70:73, 4:7, 4:7] = 2 * quiet.image[quiet.mask > 0].mean()  # as a brain, far from the tumour
    of = replace(quiet, image=image)
    brightest = float(image[71, 5, 5])

    def share_of_bright(**shares: float) -> float:
        patches = patches_of(of, **shares)
        return float(np.mean([float(patches[epoch, 0]["image"].max()) == brightest for epoch in range(200)]))

    assert share_of_bright(tumour_share=0.0, bright_share=1.0) == 1.0
    assert share_of_bright(tumour_share=1.0) == 0.0
    assert 0.4 < share_of_bright(tumour_share=0.5, bright_share=0.5) < 0.6
    without_tumour = replace(of, mask=np.zeros_like(of.mask))
    patches = patches_of(without_tumour, tumour_share=0.0, bright_share=1.0)
    assert patches[0, 0]["mask"].sum() == 0


def test_some_patches_reach_into_the_air() -> None:
    anywhere = dataset(augmentation=PLAIN, tumour_share=0.0)
    air = [float((anywhere[epoch, 0]["image"] == -3.0).float().mean()) for epoch in range(200)]
    assert max(air) > 0.25
    assert min(air) == 0.0


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_share_an_epoch_without_overlap(world_size: int) -> None:
    samplers = [PatchSampler(10, 7, rank, world_size) for rank in range(world_size)]
    for sampler in samplers:
        sampler.set_epoch(5)
    keys = [list(sampler) for sampler in samplers]
    assert {len(share) for share in keys} == {10 // world_size}
    seen = [index for share in keys for _, index in share]
    assert len(seen) == len(set(seen))
    assert {epoch for share in keys for epoch, _ in share} == {5}


def test_every_epoch_has_its_own_order() -> None:
    sampler = PatchSampler(50, 7)
    first = [index for _, index in sampler]
    sampler.set_epoch(1)
    assert sorted(first) == sorted(index for _, index in sampler) == list(range(50))
    assert first != [index for _, index in sampler]


def test_centres_may_take_turns_whatever_their_size() -> None:
    cases = [replace(case(), name=str(number), turn="small" if number == 0 else "large") for number in range(4)]
    plain = patches_of(*cases, patches_per_epoch=24)
    assert Counter(number for batch in range(24) for number in plain.cases_of(0, batch)) == dict.fromkeys(range(4), 6)
    balanced = patches_of(*cases, patches_per_epoch=24, batch_size=2, centres_take_turns=True)
    drawn = [balanced.cases_of(0, batch) for batch in range(12)]
    assert drawn[::2] == [[0, 0]] * 6
    assert Counter(chain.from_iterable(drawn[1::2])) == {1: 4, 2: 4, 3: 4}
    assert balanced.cases_of(1, 0) == [0, 0]


def test_a_scan_cut_around_its_tumour_is_normalised_as_the_runtime_would_the_cut_file() -> None:
    """Preprocessing the cut scan itself is the independent way to the same voxels."""
    rng = np.random.default_rng(0)
    activity = np.zeros((90, 60, 64), np.float32)  # on the network's grid already
    activity[:, 5:55, 6:58] = rng.lognormal(0.0, 0.7, (90, 50, 52))
    activity[60:70, 20:40, 20:45] = 6.0  # a bladder, some of it beyond the cut
    mask = np.zeros(activity.shape, np.uint8)
    mask[40:50, 24:34, 28:36] = 1
    activity[mask > 0] = rng.uniform(3.0, 5.0, int(mask.sum()))
    whole = preprocess(volume(activity), PREPROCESSING)
    case = case_of(whole, mask)
    margins_mm = []
    for seed in range(20):
        cut = cut_around_tumour(case, PREPROCESSING, np.random.default_rng(seed))
        assert cut.mask.sum() == mask.sum()
        assert cut.turn == "centre"
        first = np.argwhere(cut.mask).min(axis=0)
        margins_mm += [*(first * PREPROCESSING.spacing_mm), *((cut.mask.shape - first - (10, 10, 8)) * (2.0, 4.0, 4.0))]
        box = tuple(slice(a, a + n) for a, n in zip(np.array([40, 24, 28]) - first, cut.image.shape))
        expected = preprocess(volume(activity[box]), PREPROCESSING)
        np.testing.assert_allclose(cut.image, expected.array, atol=1e-4)
        assert cut.air == pytest.approx(expected.air, abs=1e-4)
    assert min(margins_mm) >= 8
    assert max(margins_mm) <= 52
    assert np.ptp(margins_mm) > 30


def test_a_share_of_the_patches_comes_from_scans_cut_around_the_tumour(monkeypatch: pytest.MonkeyPatch) -> None:
    # The tumour's box is 4 x 4 x 4 voxels; 50 mm around it are 54 x 28 x 28 at most.
    large = replace(case((160, 80, 80)), name="large")
    for share in (0.0, 0.5, 1.0):
        patches = patches_of(large, patch_size=(160, 80, 80), fit_multiple=2, crop_share=share)
        monkeypatch.setattr(patches, "_draw_window", lambda cases, _: cases[0].image.shape)
        cut = [patches[epoch, 0]["image"].shape[1] <= 54 for epoch in range(60)]
        assert np.mean(cut) == pytest.approx(share, abs=0.2 if share == 0.5 else 0.0)


def test_a_case_without_tumour_is_not_cut() -> None:
    healthy = replace(case(), mask=np.zeros((24, 20, 28), np.uint8))
    assert cut_around_tumour(healthy, PREPROCESSING, np.random.default_rng(0)) is healthy


def test_a_stretch_of_a_narrow_part_is_as_narrow_as_the_runtime_cuts_it() -> None:
    """A body of a wide trunk and a narrow head."""
    rng = np.random.default_rng(0)
    activity = np.zeros((200, 60, 60), np.float32)
    activity[:60, 5:55, 5:55] = rng.lognormal(0.0, 0.2, (60, 50, 50))
    activity[60:, 22:38, 22:38] = rng.lognormal(0.0, 0.2, (140, 16, 16))
    whole = preprocess(volume(activity), PREPROCESSING)
    case = case_of(whole, np.zeros(activity.shape, np.uint8))
    cuts = [cut_to_a_stretch(case, PREPROCESSING, np.random.default_rng(seed)) for seed in range(40)]
    assert {cut.image.shape[1:] for cut in cuts} == {
        (60, 60),
        preprocess(volume(activity[110:]), PREPROCESSING).array.shape[1:],
    }
    assert all(cut.image.shape == cut.mask.shape for cut in cuts)


def test_a_scan_cut_to_a_stretch_is_normalised_as_the_runtime_would_the_cut_file() -> None:
    rng = np.random.default_rng(0)
    activity = np.zeros((200, 30, 32), np.float32)
    activity[:, 5:25, 5:27] = rng.lognormal(0.0, 0.2, (200, 20, 22)) * np.linspace(1, 3, 200)[:, None, None]
    mask = np.zeros(activity.shape, np.uint8)
    mask[40:50, 14:18, 14:18] = 1
    whole = preprocess(volume(activity), PREPROCESSING)
    case = case_of(whole, mask)
    stretches = set()
    for seed in range(20):
        cut = cut_to_a_stretch(case, PREPROCESSING, np.random.default_rng(seed))
        first_slice = cut.image[0] - cut.air  # tells where the stretch begins, whatever its scale
        alike = [np.corrcoef(first_slice.ravel(), activity[z].ravel())[0, 1] for z in range(200)]
        stretch = slice(int(np.argmax(alike)), int(np.argmax(alike)) + len(cut.image))
        expected = preprocess(volume(activity[stretch]), PREPROCESSING)
        np.testing.assert_allclose(cut.image, expected.array, atol=1e-4)
        np.testing.assert_array_equal(cut.mask, mask[stretch])
        assert 75 <= len(cut.image) <= 200
        stretches.add((stretch.start, stretch.stop))
    assert len(stretches) > 10


def test_another_uptake_scales_what_the_tumour_takes_up_above_its_surroundings_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    activity = np.zeros((80, 40, 40), np.float32)
    activity[:, 4:36, 4:36] = rng.uniform(0.9, 1.1, (80, 32, 32))
    bladder, tumour = np.s_[40:60, 12:20, 22:30], np.s_[40:52, 12:20, 14:20]  # 8 mm lie between them
    activity[bladder] = 12.0
    mask = np.zeros(activity.shape, np.uint8)
    mask[tumour] = 1
    activity[tumour] = rng.uniform(3.0, 5.0, activity[tumour].shape)
    whole = preprocess(volume(activity), PREPROCESSING)
    before = case_of(whole, mask)
    scales = []
    for seed in range(40):
        after = with_other_uptake(before, PREPROCESSING, np.random.default_rng(seed))
        np.testing.assert_array_equal(before.image, whole.array)
        np.testing.assert_array_equal(after.mask, before.mask)
        changed, was = after.image - after.air, before.image - before.air  # activity, each on a scale of its own
        changed *= was[:20].max() / changed[:20].max()  # one scale for both: nothing changed far from the tumour
        np.testing.assert_allclose(changed[:20], was[:20], rtol=1e-3, atol=1e-4)
        surroundings = np.median(was[was > 0])
        scale = (changed[tumour] - surroundings) / (was[tumour] - surroundings)
        assert np.ptp(scale) < 0.05 * scale.mean()
        scales.append(float(scale.mean()))
        tumour_added = np.abs(changed - was)[tumour].mean()
        assert np.abs(changed - was)[bladder].max() < 0.1 * tumour_added
        expected = preprocess(volume(changed), PREPROCESSING)
        np.testing.assert_allclose(after.image, expected.array, atol=2e-3)
        assert after.air == pytest.approx(expected.air, abs=2e-3)
    assert 0.65 < min(scales) < 0.9
    assert 2.3 < max(scales) < 3.1


def test_a_bladder_that_touches_the_tumour_does_not_take_up_more_with_it() -> None:
    activity = np.zeros((60, 40, 40), np.float32)
    activity[:, 4:36, 4:36] = np.random.default_rng(0).uniform(0.9, 1.1, (60, 32, 32))
    bladder, tumour = np.s_[30:40, 12:20, 20:28], np.s_[30:40, 12:20, 14:20]
    activity[bladder], activity[tumour] = 12.0, 4.0
    mask = np.zeros(activity.shape, np.uint8)
    mask[tumour] = 1
    before = case_of(preprocess(volume(activity), PREPROCESSING), mask)
    for seed in range(10):
        after = with_other_uptake(before, PREPROCESSING, np.random.default_rng(seed))
        changed = after.image - after.air
        changed /= np.median(changed[:5, 4:36, 4:36])  # in units of the tissue at the feet
        factor = (changed[tumour].mean() - 1) / 3
        # Of the 3 above tissue exp(-(4 mm / 3 mm)^2 / 2) = 0.41 spill into the bladder's first voxel; were the
        # bladder's own 11 scaled instead, it would be 3.7 times as much.
        added = (changed - activity)[bladder]
        assert np.abs(added).max() == pytest.approx(abs(factor - 1) * 3 * 0.41, rel=0.1, abs=0.02)


def test_a_scan_cut_around_a_tumour_at_a_full_bladder_still_has_its_whole_body() -> None:
    """Its mean lies above all tissue; the runtime looks from below in such scans in SUV."""
    rng = np.random.default_rng(0)
    activity = np.zeros((110, 60, 64), np.float32)
    activity[:, 5:55, 6:58] = rng.lognormal(-0.4, 0.3, (110, 50, 52))
    activity[40:56, 14:28, 24:40] = 60.0
    mask = np.zeros(activity.shape, np.uint8)
    mask[44:52, 29:34, 28:36] = 1
    activity[mask > 0] = 5.0
    whole = preprocess(volume(activity), PREPROCESSING)
    case = case_of(whole, mask)
    from_the_mean = 0
    for seed in range(10):
        cut = cut_around_tumour(case, PREPROCESSING, np.random.default_rng(seed))
        first = np.argwhere(cut.mask).min(axis=0)
        box = tuple(slice(a, a + n) for a, n in zip(np.array([44, 29, 28]) - first, cut.image.shape))
        expected = preprocess(replace(volume(activity[box]), unit=Unit.SUVBW), PREPROCESSING)
        np.testing.assert_allclose(cut.image, expected.array, atol=1e-4)
        assert cut.air == pytest.approx(expected.air, abs=1e-4)
        assert cut.body_level == pytest.approx(expected.body_level, abs=1e-4)
        from_the_mean += body_threshold(activity[box], 0.2) > 5
    assert from_the_mean > 2


def test_a_share_of_the_patches_shows_another_uptake() -> None:
    plain = case((40, 32, 32))
    same = []
    for share in (0.0, 0.5, 1.0):
        patches = patches_of(plain, patch_size=(40, 32, 32), fit_multiple=4, tumour_share=1.0, uptake_share=share)
        held = (patches[epoch, 0] for epoch in range(60))
        same.append(np.mean([float(one["image"][one["mask"] > 0].max()) == 9.0 for one in held]))
    assert same[0] == 1.0
    assert 0.3 < same[1] < 0.7
    assert same[2] == 0.0


def test_a_case_without_tumour_has_no_uptake_to_change() -> None:
    healthy = replace(case(), mask=np.zeros((24, 20, 28), np.uint8))
    assert with_other_uptake(healthy, PREPROCESSING, np.random.default_rng(0)) is healthy
