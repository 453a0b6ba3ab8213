"""Augmentation of the paper: each operation on its own with p = 0.2, drawn from a generator that is passed in.

The geometric operations act in millimetres, because the network's voxels (4 x 4 x 2 mm) are not cubes and a
rotation in voxels would shear the patient. They are composed into one sampling grid, so that a patch is
interpolated once, and taken from the whole scan, so that a rotated patch has the patient in its corners.
Gamma is MONAI's; MONAI's rotation, stretching and noise draw from other distributions than the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from monai.transforms import AdjustContrast
from monai.utils import convert_to_tensor
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from petseg_runtime.errors import UsageError
from petseg_train.field_types import check_types

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the augmentation (Iantsen et al. 2021, "Data augmentation").

    The paper gives no numbers for the elastic deformation; here control points every `elastic_grid_mm` move by a
    normal deviate of up to `elastic_sd_mm` in each direction, which folds no tissue over.
    """

    probability: float = 0.2
    rotation_degrees: tuple[float, float] = (5.0, 15.0)
    scale: tuple[float, float] = (0.8, 1.2)
    elastic_grid_mm: float = 48.0
    elastic_sd_mm: tuple[float, float] = (2.0, 6.0)
    gamma: tuple[float, float] = (0.8, 1.2)
    contrast: tuple[float, float] = (0.8, 1.2)
    noise_sd: tuple[float, float] = (0.1, 0.2)

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 <= self.probability <= 1:
            raise UsageError(f"probability is {self.probability}, expected 0 to 1.")

    def happens(self, rng: np.random.Generator) -> bool:
        return bool(rng.random() < self.probability)


@dataclass(frozen=True)
class SpatialTransform:
    """From a point of the patch to the point of the scan that it shows, in mm `(z, y, x)` from the patch's centre."""

    matrix: np.ndarray  # 3 x 3
    displacement_mm: np.ndarray | None  # (3, gz, gy, gx) at control points spread over the patch


def draw_spatial_transform(
    settings: Augmentation, patch_mm: tuple[float, float, float], rng: np.random.Generator
) -> SpatialTransform | None:
    """Draw mirroring, rotation, scaling and elastic deformation; None where none of them happens."""
    matrix = np.eye(3)
    if settings.happens(rng):  # mirroring in the axial plane: y, x or both
        matrix = matrix @ np.diag([(1, -1, 1), (1, 1, -1), (1, -1, -1)][rng.integers(3)])
    if settings.happens(rng):
        axes = rng.permutation(3)[: rng.integers(1, 4)]  # a random set of axes
        angles = np.zeros(3)
        angles[axes] = rng.uniform(*settings.rotation_degrees, len(axes)) * rng.choice([-1, 1], len(axes))
        matrix = matrix @ Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    if settings.happens(rng):
        matrix = matrix / rng.uniform(*settings.scale)  # larger anatomy: the patch covers less of the scan
    displacement_mm = None
    if settings.happens(rng):
        points = [max(2, 1 + round(side / settings.elastic_grid_mm)) for side in patch_mm]
        displacement_mm = rng.normal(0.0, rng.uniform(*settings.elastic_sd_mm), (3, *points)).astype(np.float32)
    if displacement_mm is None and np.array_equal(matrix, np.eye(3)):
        return None
    return SpatialTransform(matrix, displacement_mm)


def extract_patch(
    image: Tensor,
    mask: Tensor,
    start: Shape,
    patch: Shape,
    spacing_mm: tuple[float, float, float],
    transform: SpatialTransform | None,
    air: float,
) -> tuple[Tensor, Tensor]:
    """Cut the patch that begins at voxel `start` (which may lie outside), through `transform` if there is one.

    Parameters
    ----------
    image, mask : float32 `(z, y, x)`.
    air : what the patch shows where it leaves the image.

    Returns
    -------
    Image and mask patch, float32 `(z, y, x)`; the mask is linear and cut at 0.5, as in preprocessing.
    """
    layers = torch.stack([image, mask, torch.ones_like(image)])
    if transform is None:
        shown, tumour, inside = _cut(layers, start, patch)
    else:
        grid = _sampling_grid(image.shape, start, patch, spacing_mm, transform)
        shown, tumour, inside = grid_sample(
            layers[None], grid[None], mode="bilinear", padding_mode="zeros", align_corners=False
        )[0]
    return shown + (1 - inside) * air, (tumour >= 0.5).float()


def _sampling_grid(
    size: torch.Size,
    start: Shape,
    patch: Shape,
    spacing_mm: tuple[float, float, float],
    transform: SpatialTransform,
) -> Tensor:
    """Where each voxel of the patch lies in the image, as `grid_sample` counts: x, y, z from -1 to 1."""
    axes = [(torch.arange(side) - (side - 1) / 2) * step for side, step in zip(patch, spacing_mm)]
    points_mm = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)  # (z, y, x, 3) from the centre
    if transform.displacement_mm is not None:
        field = interpolate(
            torch.from_numpy(transform.displacement_mm)[None], size=patch, mode="trilinear", align_corners=True
        )
        points_mm = points_mm + field[0].permute(1, 2, 3, 0)
    points_mm = points_mm @ torch.tensor(transform.matrix, dtype=torch.float32).T
    centre = torch.tensor(start) + (torch.tensor(patch) - 1) / 2
    voxels = points_mm / torch.tensor(spacing_mm) + centre
    return ((2 * voxels + 1) / torch.tensor(size) - 1).flip(-1)


def augment_intensity(patch: Tensor, settings: Augmentation, rng: np.random.Generator) -> Tensor:
    """Gamma, contrast stretching and Gaussian noise on an image patch `(z, y, x)`."""
    if settings.happens(rng):
        patch = convert_to_tensor(AdjustContrast(gamma=rng.uniform(*settings.gamma))(patch))
    if settings.happens(rng):
        low = patch.min()
        patch = low + (patch - low) * float(rng.uniform(*settings.contrast))
    if settings.happens(rng):
        sd = float(rng.uniform(*settings.noise_sd)) * patch.std()
        patch = patch + sd * torch.from_numpy(rng.standard_normal(patch.shape, dtype=np.float32))
    return patch


def _cut(layers: Tensor, start: Shape, patch: Shape) -> Tensor:
    """Patch of layers `(c, z, y, x)`, zero where it leaves them."""
    cut = torch.zeros(layers.shape[0], *patch)
    source, target = [slice(None)], [slice(None)]
    for first, side, size in zip(start, patch, layers.shape[1:]):
        source.append(slice(min(max(first, 0), size), min(max(first + side, 0), size)))
        target.append(slice(source[-1].start - first, source[-1].stop - first))
    cut[tuple(target)] = layers[tuple(source)]
    return cut
