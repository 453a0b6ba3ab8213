"""What users would pick in place of petseg-run, each as one command from the scan's file to the mask's file.

    python benchmarks/rivals.py {monai,windows} MODEL.onnx SCAN MASK [--bf16]

`monai`: PyTorch eager and MONAI's sliding window as MONAI's bundles run it: the whole volume, overlap 0.5, Gaussian.
`windows`: PyTorch eager on exactly the windows of petseg-run.

The weights are those of the ONNX file. Reading, resampling, normalising and writing are PETSeg's own in all of them, so
what differs is the framework, the network's implementation and the tiling. Each imports only what it needs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from petseg_runtime.io.images import write_image
from petseg_runtime.io.scans import read_volume
from petseg_runtime.manifest import ModelManifest, read_model
from petseg_runtime.postprocessing import threshold_mask
from petseg_runtime.preprocessing import NetworkInput, preprocess, restore
from petseg_runtime.sliding_window import fitted_window, sliding_window_probabilities
from petseg_runtime.volume import FloatArray
from petseg_train.networks.exported import network_of_model

WHOLE_VOLUME_MM = 1e4  # a margin round the body that no scan reaches beyond


def monai(network: torch.nn.Module, prepared: NetworkInput, manifest: ModelManifest) -> FloatArray:
    """MONAI's inferer with its bundles' settings."""
    from monai.inferers import SlidingWindowInferer

    inferer = SlidingWindowInferer(manifest.patch_size, sw_batch_size=1, overlap=0.5, mode="gaussian")
    logits = inferer(torch.from_numpy(prepared.array)[None, None], network)
    return torch.sigmoid(logits)[0, 0].float().numpy()


def windows(network: torch.nn.Module, prepared: NetworkInput, manifest: ModelManifest) -> FloatArray:
    """The very windows of petseg-run."""

    def predict(some: Iterable[FloatArray]) -> Iterator[FloatArray]:
        for window in some:
            yield torch.sigmoid(network(torch.from_numpy(window)).float()).numpy()

    window = fitted_window(manifest.patch_size, manifest.fit_multiple, prepared.array.shape)
    return sliding_window_probabilities(
        prepared.array, window, manifest.overlap, prepared.air, predict, body_level=prepared.body_level
    )


def main() -> None:
    """Run one rival."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rival", choices=("monai", "windows"))
    parser.add_argument("model", type=Path)
    parser.add_argument("scan", type=Path)
    parser.add_argument("mask", type=Path)
    parser.add_argument("--bf16", action="store_true", help="autocast")
    arguments = parser.parse_args()

    manifest = read_model(arguments.model).manifest
    volume = read_volume(arguments.scan, "suvbw")
    run, spec = windows, manifest.preprocessing
    if arguments.rival == "monai":
        run, spec = monai, replace(spec, body_margin_mm=WHOLE_VOLUME_MM)
    prepared = preprocess(volume, spec)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=arguments.bf16):
        probabilities = run(network_of_model(arguments.model)[0], prepared, manifest)
    mask = threshold_mask(restore(np.ascontiguousarray(probabilities), prepared.frame), manifest.threshold)
    write_image(mask, volume.geometry, arguments.mask)


if __name__ == "__main__":
    main()
