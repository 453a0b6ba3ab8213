"""Patches: reproducible from seed, epoch and index, shared between processes, as varied as the runtime's windows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from petseg_train.augmentation import Augmentation
from petseg_train.cohort import TrainingCase
from petseg_train.dataset import PatchDataset, PatchSampler

SPACING_MM = (2.0, 4.0, 4.0)
PLAIN = Augmentation(probability=0.0)


def case(shape: tuple[int, int, int] = (24, 20, 28)) -> TrainingCase:
    rng = np.random.default_rng(0)
    image = rng.normal(size=shape).astype(np.float32)
    mask = np.zeros(shape, np.uint8)
    mask[10:14, 8:12, 18:22] = 1
    image[mask > 0] = 9.0
    return TrainingCase("one", image, mask, air=-3.0)


def dataset(**changes: object) -> PatchDataset:
    settings = {"augmentation": Augmentation(), "seed": 7, **changes}
    return PatchDataset([case(), case((40, 18, 18))], (16, 16, 16), SPACING_MM, **settings)  # type: ignore[arg-type]


def test_a_patch_follows_from_seed_epoch_and_index() -> None:
    one, other = dataset(), dataset()
    torch.testing.assert_close(one[3, 1]["image"], other[3, 1]["image"], rtol=0, atol=0)
    assert not torch.equal(one[3, 1]["image"], one[4, 1]["image"])
    assert not torch.equal(one[3, 1]["image"], dataset(seed=8)[3, 1]["image"])


def test_the_length_of_an_epoch_does_not_depend_on_the_cases_which_take_turns() -> None:
    assert len(dataset()) == 2
    patches = dataset(patches_per_epoch=3)
    assert len(patches) == 3
    drawn = [patches.case_of(epoch, index) for epoch in range(2) for index in range(3)]
    assert drawn == [0, 1, 0, 1, 0, 1]


def test_shapes_and_types() -> None:
    sample = dataset()[0, 0]
    for key in ("image", "mask"):
        assert sample[key].shape == (1, 16, 16, 16)
        assert sample[key].dtype == torch.float32
    assert set(sample["mask"].unique().tolist()) <= {0.0, 1.0}


def test_a_patch_is_as_wide_as_the_body_or_the_body_with_air_around_it() -> None:
    patches = PatchDataset([case(), case((40, 18, 18))], (64, 64, 64), SPACING_MM, Augmentation(), 7, fit_multiple=8)
    for index, fitted in ((0, [24, 24, 32]), (1, [40, 24, 24])):
        sides = np.array([patches[epoch, index]["image"].shape[1:] for epoch in range(100)])
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
    cases = [replace(case(), name=str(number), centre="small" if number == 0 else "large") for number in range(4)]
    plain = PatchDataset(cases, (16, 16, 16), SPACING_MM, PLAIN, 0, 8)
    assert [plain.case_of(0, index) for index in range(8)] == [0, 1, 2, 3, 0, 1, 2, 3]
    balanced = PatchDataset(cases, (16, 16, 16), SPACING_MM, PLAIN, 0, 8, centres_take_turns=True)
    assert [balanced.case_of(0, index) for index in range(8)] == [0, 1, 0, 2, 0, 3, 0, 1]
    assert balanced.case_of(1, 0) == 0


def test_the_windows_of_a_pair_show_the_same_voxels_where_both_lie() -> None:
    """Augmentation and noise too: what differs between them is only where they end."""
    patches = dataset(pairs=True, augmentation=Augmentation(probability=1.0))
    moved = set()
    for epoch in range(20):
        pair = patches[epoch, 0]
        assert pair["image"].shape == pair["mask"].shape == (2, 16, 16, 16)
        step = pair["start"][1] - pair["start"][0]
        moved.update(step.abs().tolist())
        seen = [
            pair["image"][number][tuple(slice(max(0, sign * n), 16 + min(0, sign * n)) for n in step.tolist())]
            for number, sign in ((0, 1), (1, -1))
        ]
        torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=0)
    assert moved == {0, 1, 2, 3, 4}  # up to a quarter of 16
