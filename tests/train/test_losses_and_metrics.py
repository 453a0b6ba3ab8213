"""Loss and metrics by hand, and against MONAI."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import arrays
from monai.metrics import compute_dice

from petseg_train.losses import soft_dice_loss
from petseg_train.metrics import dice, hausdorff95_mm, leakage, precision, recall, surface_dice


def logits(probabilities: list[float]) -> torch.Tensor:
    return torch.logit(torch.tensor(probabilities)).reshape(1, 1, 1, 1, -1)


def masks(values: list[float]) -> torch.Tensor:
    return torch.tensor(values).reshape(1, 1, 1, 1, -1)


def test_equation_1_by_hand() -> None:
    # y = (1, 0, 1), p = (0.5, 0.5, 0.9): 1 - (2 (0.5 + 0.9) + 1) / (2 + 0.25 + 0.25 + 0.81 + 1)
    expected = 1 - (2 * 1.4 + 1) / (2 + 1.31 + 1)
    assert soft_dice_loss()(logits([0.5, 0.5, 0.9]), masks([1.0, 0.0, 1.0])).item() == pytest.approx(expected, abs=1e-6)


def test_an_empty_window_rightly_left_empty_costs_nothing() -> None:
    assert soft_dice_loss()(torch.full((1, 1, 4, 4, 4), -50.0), torch.zeros(1, 1, 4, 4, 4)).item() == pytest.approx(0)


def test_the_batch_is_a_mean_of_examples_not_one_pool_of_voxels() -> None:
    one, other = logits([0.9, 0.1]), logits([0.2, 0.6])
    truth = masks([1.0, 0.0])
    loss = soft_dice_loss()
    together = loss(torch.cat([one, other]), torch.cat([truth, truth]))
    assert together.item() == pytest.approx((loss(one, truth).item() + loss(other, truth).item()) / 2, abs=1e-6)


def test_cross_entropy_comes_on_top() -> None:
    truth, predicted = masks([1.0, 0.0]), [0.8, 0.3]
    entropy = -(np.log(0.8) + np.log(0.7)) / 2
    plain, mixed = soft_dice_loss()(logits(predicted), truth), soft_dice_loss(0.5)(logits(predicted), truth)
    assert mixed.item() - plain.item() == pytest.approx(0.5 * entropy, abs=1e-6)


A = np.array([1, 1, 1, 0, 0, 0, 0, 0], bool).reshape(2, 2, 2)
B = np.array([0, 1, 1, 1, 1, 0, 0, 0], bool).reshape(2, 2, 2)
NONE = np.zeros((2, 2, 2), bool)


def test_metrics_by_hand() -> None:
    assert dice(A, B) == pytest.approx(2 * 2 / 7)
    assert precision(A, B) == pytest.approx(2 / 3)
    assert recall(A, B) == pytest.approx(2 / 4)


@pytest.mark.parametrize("metric", [dice, precision, recall])
def test_empty_masks_have_the_documented_values(metric) -> None:
    assert metric(NONE, NONE) == 1.0
    assert metric(A, NONE) == 0.0
    assert metric(NONE, A) == 0.0


@pytest.mark.parametrize("metric", [dice, precision, recall])
def test_masks_on_different_grids_are_refused(metric) -> None:
    with pytest.raises(ValueError, match="one grid"):
        metric(A, B[:1])


@given(arrays(bool, (3, 4, 5)), arrays(bool, (3, 4, 5)))
def test_dsc_is_the_harmonic_mean_of_precision_and_recall_and_monais(one: np.ndarray, other: np.ndarray) -> None:
    p, r = precision(one, other), recall(one, other)
    assert dice(one, other) == pytest.approx(2 * p * r / (p + r) if p + r else 0.0)  # the paper's equation 2
    tensors = [torch.from_numpy(mask).float()[None, None] for mask in (one, other)]
    assert dice(one, other) == pytest.approx(compute_dice(*tensors, ignore_empty=False).item(), abs=1e-6)


def test_every_voxel_of_a_large_scan_counts() -> None:
    # 2**24 + 1 is the first whole number that float32 does not have.
    size = 2**24 + 1
    mask = np.ones((1, 1, size), bool)
    all_but_one = mask.copy()
    all_but_one[..., 0] = False
    assert recall(all_but_one, mask) == pytest.approx((size - 1) / size, abs=1e-12)


def block(z: slice, y: slice, x: slice) -> np.ndarray:
    mask = np.zeros((12, 16, 16), dtype=bool)
    mask[z, y, x] = True
    return mask


BLOCK = block(slice(3, 7), slice(4, 9), slice(5, 10))
EMPTY = np.zeros_like(BLOCK)


def test_a_mask_shifted_along_x_is_that_far_away() -> None:
    """Two voxels of 4 mm apart: every point of the shifted faces is 8 mm away, and more than 5 % of the points are."""
    shifted = block(slice(3, 7), slice(4, 9), slice(7, 12))
    assert hausdorff95_mm(BLOCK, shifted, (2.0, 4.0, 4.0)) == pytest.approx(8.0)
    assert surface_dice(BLOCK, shifted, (2.0, 4.0, 4.0), 8.0) == 1.0
    assert 0 < surface_dice(BLOCK, shifted, (2.0, 4.0, 4.0), 3.9) < 1


def test_surfaces_of_empty_masks() -> None:
    spacing = (2.0, 4.0, 4.0)
    assert hausdorff95_mm(EMPTY, EMPTY, spacing) == 0.0
    assert hausdorff95_mm(BLOCK, EMPTY, spacing) == hausdorff95_mm(EMPTY, BLOCK, spacing) == float("inf")
    assert surface_dice(EMPTY, EMPTY, spacing, 4.0) == 1.0
    assert surface_dice(BLOCK, EMPTY, spacing, 4.0) == surface_dice(EMPTY, BLOCK, spacing, 4.0) == 0.0


def test_leakage_is_the_share_of_the_prediction_in_the_organ() -> None:
    bladder = block(slice(3, 7), slice(4, 9), slice(9, 14))  # the last of the block's five columns
    assert leakage(BLOCK, bladder) == pytest.approx(0.2)
    assert leakage(EMPTY, bladder) == 0.0
