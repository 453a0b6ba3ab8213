"""Each augmentation of the paper: its range, its probability, and that image and mask stay together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from petseg_train.augmentation import (
    Augmentation,
    SpatialTransform,
    augment_intensity,
    draw_spatial_transform,
    extract_patch,
)

SPACING_MM = (2.0, 4.0, 4.0)
PATCH = (16, 16, 16)
PATCH_MM = (32.0, 64.0, 64.0)
ALWAYS = Augmentation(probability=1.0)
NEVER_SPATIAL = Augmentation(probability=0.0)
IDENTITY = SpatialTransform(np.eye(3), None)


def ball(
    centre_mm: tuple[float, float, float], radius_mm: float, shape: tuple[int, int, int] = (40, 40, 40)
) -> torch.Tensor:
    axes = [np.arange(n) * step - centre for n, step, centre in zip(shape, SPACING_MM, centre_mm)]
    squared = axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2
    return torch.from_numpy((squared <= radius_mm**2).astype(np.float32))


def test_each_spatial_operation_happens_on_its_own_with_p_one_fifth() -> None:
    rng = np.random.default_rng(0)
    draws = [draw_spatial_transform(Augmentation(), PATCH_MM, rng) for _ in range(4000)]
    assert np.mean([draw is None for draw in draws]) == pytest.approx(0.8**4, abs=0.025)
    drawn = [draw for draw in draws if draw is not None]
    elastic = sum(draw.displacement_mm is not None for draw in drawn) / len(draws)
    mirrored = sum(np.linalg.det(draw.matrix) < 0 for draw in drawn) / len(draws)
    scaled = sum(abs(abs(np.linalg.det(draw.matrix)) - 1) > 1e-9 for draw in drawn) / len(draws)
    assert elastic == pytest.approx(0.2, abs=0.025)
    assert scaled == pytest.approx(0.2, abs=0.025)
    assert mirrored == pytest.approx(0.2 * 2 / 3, abs=0.025)  # y, x, or both; mirroring both is a rotation


def test_mirroring_is_in_the_axial_plane_and_rotation_is_5_to_15_degrees() -> None:
    rng = np.random.default_rng(1)
    only_rotation = replace(ALWAYS, scale=(1.0, 1.0))
    for _ in range(300):
        transform = draw_spatial_transform(only_rotation, PATCH_MM, rng)
        assert transform is not None
        matrix = transform.matrix
        # Undo the mirroring, which is a diagonal of signs with +1 along z: what remains is a rotation by angles about
        # one to three axes, each of 5 to 15 degrees, so in all by 5 to 27.
        signs = np.array([[1, -1, 1], [1, 1, -1], [1, -1, -1]])
        angles = [np.degrees(np.arccos(np.clip((np.trace(np.diag(s) @ matrix) - 1) / 2, -1, 1))) for s in signs]
        assert 4.9 < min(angles) < 27


def test_scaling_is_by_0_8_to_1_2() -> None:
    rng = np.random.default_rng(2)
    volumes = [abs(np.linalg.det(draw_spatial_transform(ALWAYS, PATCH_MM, rng).matrix)) for _ in range(300)]
    factors = np.array(volumes) ** (-1 / 3)
    assert 0.8 <= factors.min() < 0.85
    assert 1.15 < factors.max() <= 1.2


@settings(max_examples=25, deadline=None)
@given(start=st.tuples(*[st.integers(-20, 44)] * 3), seed=st.integers(0, 99))
def test_cutting_and_resampling_agree_where_nothing_is_transformed(start: tuple[int, int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = torch.from_numpy(rng.normal(size=(24, 20, 28)).astype(np.float32))
    mask = (image > 0.5).float()
    cut = extract_patch(image, mask, start, PATCH, SPACING_MM, None, -1.5)
    resampled = extract_patch(image, mask, start, PATCH, SPACING_MM, IDENTITY, -1.5)
    torch.testing.assert_close(cut[0], resampled[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(cut[1], resampled[1])


def test_outside_the_scan_is_air_and_no_tumour() -> None:
    image, tumour = torch.ones(8, 8, 8), torch.ones(8, 8, 8)
    patch, mask = extract_patch(image, tumour, (-8, 0, 0), PATCH, SPACING_MM, None, -2.0)
    assert (patch[:8] == -2.0).all()
    assert (mask[:8] == 0).all()
    assert (patch[8:, :8, :8] == 1.0).all()
    assert mask.sum() == 8**3


def test_a_rotation_keeps_a_ball_a_ball_in_millimetres() -> None:
    # 90 degrees about x turn z into y, whose voxels are twice as long: only in millimetres does the ball stay round.
    tumour = ball((40.0, 80.0, 80.0), 16.0)
    quarter = SpatialTransform(np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), None)
    _, mask = extract_patch(tumour, tumour, (12, 12, 12), PATCH, SPACING_MM, quarter, 0.0)
    truth = ball((40.0 - 24, 80.0 - 48, 80.0 - 48), 16.0, PATCH)
    assert 2 * (mask * truth).sum() / (mask.sum() + truth.sum()) > 0.85


def test_enlarging_by_a_fifth_enlarges_a_ball_by_a_fifth() -> None:
    tumour = ball((40.0, 80.0, 80.0), 10.0)
    _, mask = extract_patch(
        tumour, tumour, (12, 12, 12), PATCH, SPACING_MM, SpatialTransform(np.eye(3) / 1.2, None), 0.0
    )
    assert mask.sum() / tumour.sum() == pytest.approx(1.2**3, rel=0.15)


def test_elastic_deformation_moves_but_does_not_tear() -> None:
    rng = np.random.default_rng(3)
    only_elastic = replace(Augmentation(probability=1.0), scale=(1.0, 1.0))
    transform = draw_spatial_transform(only_elastic, PATCH_MM, rng)
    assert transform is not None
    moved = SpatialTransform(np.eye(3), transform.displacement_mm)
    tumour = ball((40.0, 80.0, 80.0), 14.0)
    _, mask = extract_patch(tumour, tumour, (12, 12, 12), PATCH, SPACING_MM, moved, 0.0)
    _, still = extract_patch(tumour, tumour, (12, 12, 12), PATCH, SPACING_MM, None, 0.0)
    overlap = float(2 * (mask * still).sum() / (mask.sum() + still.sum()))
    assert 0.5 < overlap < 0.999


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_image_and_mask_move_together(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tumour = ball((40.0, 80.0, 80.0), 14.0)
    transform = draw_spatial_transform(ALWAYS, PATCH_MM, rng)
    image, mask = extract_patch(tumour, tumour, (12, 12, 12), PATCH, SPACING_MM, transform, 0.0)
    assert ((image >= 0.5).float() != mask).float().mean() < 1e-3


def test_intensity_operations_in_their_ranges() -> None:
    patch = torch.from_numpy(np.random.default_rng(0).gamma(2, 1, PATCH).astype(np.float32))
    untouched = augment_intensity(patch, Augmentation(probability=0.0), np.random.default_rng(0))
    torch.testing.assert_close(untouched, patch)
    stretch = replace(ALWAYS, gamma=(1.0, 1.0), contrast=(1.2, 1.2), noise_sd=(0.0, 0.0))
    stretched = augment_intensity(patch, stretch, np.random.default_rng(0))
    assert (stretched.max() - stretched.min()).item() == pytest.approx(
        1.2 * (patch.max() - patch.min()).item(), rel=1e-3
    )
    assert stretched.min().item() == pytest.approx(patch.min().item(), abs=1e-4)
    noisy = augment_intensity(
        patch, replace(ALWAYS, gamma=(1.0, 1.0), contrast=(1.0, 1.0), noise_sd=(0.15, 0.15)), np.random.default_rng(0)
    )
    assert (noisy - patch).std().item() == pytest.approx(0.15 * patch.std().item(), rel=0.05)


def test_gamma_acts_on_the_range_from_0_to_1_and_keeps_the_ends() -> None:
    patch = torch.linspace(-1.0, 3.0, 16**3).reshape(PATCH)
    only_gamma = replace(ALWAYS, gamma=(0.8, 0.8), contrast=(1.0, 1.0), noise_sd=(0.0, 0.0))
    curved = augment_intensity(patch, only_gamma, np.random.default_rng(0))
    expected = ((patch + 1) / 4) ** 0.8 * 4 - 1
    torch.testing.assert_close(curved, expected, atol=1e-3, rtol=0)
