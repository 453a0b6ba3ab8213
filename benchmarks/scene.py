"""What the benchmark runs on: a whole-body scan and a network of the paper's width, made from what PETSeg ships."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from petseg_export.to_onnx import write_model

from petseg_runtime.io.images import write_image
from petseg_runtime.volume import FloatArray, Geometry
from petseg_train.config import PRESETS
from petseg_train.networks import NETWORKS
from petseg_train.networks.exported import network_of_model

WIDTH = 150  # voxels of the whole-body scan along x and y, of 4 mm
SPACING_MM = (2.0, 4.0, 4.0)


def write_body(example: Path, slices: int, output: Path) -> None:
    """The example scan on 150 x 150 voxels of 4 mm and slices of 2 mm, its mirror image above it, and so on."""
    image = sitk.ReadImage(str(example))
    resampler = sitk.ResampleImageFilter()
    depth = int(image.GetSize()[2] * image.GetSpacing()[2] / SPACING_MM[0])
    resampler.SetSize((WIDTH, WIDTH, depth))
    resampler.SetOutputSpacing(SPACING_MM[::-1])
    middle = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
    resampler.SetOutputOrigin(
        [m - (n - 1) / 2 * step for m, n, step in zip(middle, (WIDTH, WIDTH, depth), SPACING_MM[::-1])]
    )
    piece = sitk.GetArrayFromImage(resampler.Execute(image)).astype(np.float32)
    body: FloatArray = np.concatenate([piece, piece[::-1]] * (slices // (2 * depth) + 1))[:slices]
    write_image(body, Geometry((slices, WIDTH, WIDTH), SPACING_MM), output)


def write_wide_model(model: Path, output: Path) -> None:
    """The bundled network with each channel doubled, in the windows of the `paper` preset.

    Twice the channels compute the very same function with four times the arithmetic (Net2WiderNet, Chen et al., ICLR
    2016): the paper's width, with weights that find tumours.
    """
    narrow, manifest = network_of_model(model)
    settings = dict(manifest.training["network"])
    settings["base_filters"] *= 2
    wide = NETWORKS[settings["name"]](**{key: value for key, value in settings.items() if key != "name"})
    state = narrow.state_dict()
    transposed = {f"{name}.weight" for name, part in wide.named_modules() if isinstance(part, torch.nn.ConvTranspose3d)}
    for name, target in wide.state_dict().items():
        state[name] = _widened(state[name], target, inputs_axis=0 if name in transposed else 1)
    wide.load_state_dict(state)
    probe = torch.randn(1, 1, 64, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(wide.eval()(probe), narrow(probe), atol=2e-3, rtol=1e-3)
    paper = PRESETS["paper"]
    training = {**manifest.training, "network": settings}
    changed = {"patch_size": paper.patch_size, "overlap": paper.overlap, "fit_multiple": paper.fit_multiple}
    write_model(wide, replace(manifest, name=f"{manifest.name}-wide", training=training, **changed), output)


def _widened(weights: torch.Tensor, target: torch.Tensor, inputs_axis: int) -> torch.Tensor:
    """Each channel twice; what sums over twice the channels gets half the weight."""
    for axis in range(min(2, weights.ndim)):
        if weights.shape[axis] != target.shape[axis]:
            weights = weights.repeat_interleave(2, axis)
            if axis == inputs_axis:
                weights = weights / 2
    return weights
