"""From an ONNX file of petseg-export back to the network in PyTorch."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from onnx import numpy_helper

from petseg_runtime.errors import ModelError
from petseg_runtime.manifest import ModelManifest, read_model
from petseg_train.networks import NETWORKS, Network


def network_of_model(model: Path) -> tuple[Network, ModelManifest]:
    """The network of logits that a model was exported from, ready to predict, with its weights; and its manifest.

    The export names each tensor of weights as PyTorch does, below `network.`.

    Raises
    ------
    ModelError : if the file is absent, is no model of PETSeg, or holds no network that this version can build.
    """
    manifest = read_model(model).manifest
    try:
        settings = dict(manifest.training["network"])
        network = NETWORKS[settings.pop("name")](**settings)
        weights = {tensor.name: tensor for tensor in onnx.load(model).graph.initializer}
        network.load_state_dict(
            {
                name: torch.from_numpy(numpy_helper.to_array(weights[f"network.{name}"]).copy())
                for name in network.state_dict()
            }
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"{model.name} holds no network of petseg-train with its weights: {error}") from error
    return network.eval(), manifest
