"""nnU-Net v2's predictor on a scan, as one command; run it where nnU-Net is installed (`make bench` sees to it).

    python benchmarks/nnunet.py MODEL.onnx SCAN MASK

The network is that of nnU-Net's default 3d_fullres plan (32 to 320 features, patches of 128³), untrained, without
mirroring; the model says only how the scan is prepared. Reading, resampling, normalising and writing are PETSeg's own.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from petseg_runtime.io.images import write_image
from petseg_runtime.io.scans import read_volume
from petseg_runtime.manifest import read_model
from petseg_runtime.postprocessing import threshold_mask
from petseg_runtime.preprocessing import preprocess, restore

STAGES = 6
PLAN = {
    "n_stages": STAGES,
    "features_per_stage": [32, 64, 128, 256, 320, 320],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[3, 3, 3]] * STAGES,
    "strides": [[1, 1, 1]] + [[2, 2, 2]] * (STAGES - 1),
    "n_conv_per_stage": [2] * STAGES,
    "n_conv_per_stage_decoder": [2] * (STAGES - 1),
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}


def main(model: Path, scan: Path, mask: Path) -> None:
    """Segment one scan."""
    manifest, volume = read_model(model).manifest, read_volume(scan, "suvbw")
    prepared = preprocess(volume, replace(manifest.preprocessing, body_margin_mm=1e4))  # the whole volume
    network = get_network_from_plans(
        "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        PLAN,
        ["conv_op", "norm_op", "dropout_op", "nonlin"],
        input_channels=1,
        output_channels=2,
        deep_supervision=False,
    )
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.network, predictor.allowed_mirroring_axes = network, None
    predictor.configuration_manager = SimpleNamespace(patch_size=(128, 128, 128))
    predictor.label_manager = SimpleNamespace(num_segmentation_heads=2)
    logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(prepared.array)[None])
    probabilities = torch.softmax(logits.float(), 0)[1].numpy()
    found = threshold_mask(restore(np.ascontiguousarray(probabilities), prepared.frame), manifest.threshold)
    write_image(found, volume.geometry, mask)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
