"""Checkpoint to ONNX: the network with its sigmoid, and the manifest inside the file."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from petseg_runtime.backends import open_backend
from petseg_runtime.commissioning import pack, self_test_windows
from petseg_runtime.errors import ModelError, UsageError
from petseg_runtime.manifest import MANIFEST_KEY, RESULTS_KEY, ModelManifest, graph_sha256
from petseg_runtime.outputs.files import whole_file
from petseg_train.inference import make_manifest
from petseg_train.training import SegmentationModule, load_module

OPSET = 18


class _WithSigmoid(nn.Module):
    """The network as it is exported: probabilities out. The one place of the sigmoid in an exported model."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return torch.sigmoid(self.network(image))


def export_onnx(
    checkpoint: Path, output: Path, name: str, version: str, training: dict[str, Any]
) -> tuple[SegmentationModule, ModelManifest]:
    """Write the ONNX file of a checkpoint; returns the network it came from, and the manifest in it.

    Input `image` `(n, 1, z, y, x)` with any n, output `probability` of the same shape, both float32. The sides are free
    where windows fit themselves to the body, and those of the patch otherwise.

    Parameters
    ----------
    training : provenance for the manifest (data, licence, metrics); the commit that trained, the epochs done, the
        network and the checkpoint's digest are added.

    Raises
    ------
    ModelError : if the checkpoint cannot be read or is of an unfinished run, or the exported graph is not valid ONNX.
    UsageError : if `output` is not an .onnx file or cannot be written, or name or version cannot stand in a manifest.
    """
    if output.suffix != ".onnx":
        raise UsageError(f"{output.name} does not end in .onnx. Choose a name that does.")
    module = load_module(checkpoint)
    if module.trained_epochs < module.config.epochs:
        raise ModelError(
            f"{checkpoint.name} has done {module.trained_epochs} of {module.config.epochs} epochs. "
            "Finish the run with petseg-train fit first."
        )
    provenance = {
        **training,
        "commit": module.trained_by,
        "checkpoint_sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "epochs": module.trained_epochs,
        **({"pretrained_sha256": module.pretrained_sha256} if module.pretrained_sha256 else {}),
        "network": {"name": module.config.network, **module.config.network_settings},
    }
    try:
        manifest = make_manifest(module, name, version, provenance)
    except ValueError as error:
        hint = " A name is 1 to 64 characters on one line, without a backslash." if "name and" in str(error) else ""
        raise UsageError(f"{error}.{hint}") from error
    return module, write_model(module.network, manifest, output)


def write_model(network: nn.Module, manifest: ModelManifest, output: Path) -> ModelManifest:
    """Write a network of logits as a model with its manifest and its self-test; returns the manifest with the digest.

    Raises
    ------
    ModelError : if the exported graph is not valid ONNX.
    """
    model = _to_onnx(network, manifest.patch_size, manifest.fit_multiple)
    # The graph precedes the metadata in the file, and its bytes do not depend on it.
    manifest = replace(manifest, weights_sha256=graph_sha256(model.SerializeToString()))
    entry = model.metadata_props.add()
    entry.key, entry.value = MANIFEST_KEY, manifest.to_json()
    content = model.SerializeToString()
    if graph_sha256(content) != manifest.weights_sha256:
        raise ModelError("The exported graph changed as the manifest was written into it. Report this as a bug.")
    with whole_file(output) as temporary:
        temporary.write_bytes(with_results(content, manifest))
    return manifest


def with_results(model: bytes, manifest: ModelManifest) -> bytes:
    """The model with its probabilities of the self-test's windows in it, computed by ONNX Runtime on the CPU in f32."""
    backend, _ = open_backend(model, "onnxruntime", "cpu")
    results = pack(list(backend.predict(self_test_windows(manifest.patch_size, manifest.preprocessing.spacing_mm))))
    proto = onnx.load_from_string(model)
    entry = proto.metadata_props.add()
    entry.key, entry.value = RESULTS_KEY, results
    content: bytes = proto.SerializeToString()
    return content


def _to_onnx(network: nn.Module, patch_size: tuple[int, int, int], fit_multiple: int) -> onnx.ModelProto:
    # Exported in the default memory layout, and with a batch of two: a batch of one would be taken for a constant.
    exported = _WithSigmoid(network).eval()
    exported.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # missing in torch's stubs
    image = torch.zeros(2, 1, *patch_size)
    free: dict[int, Any] = {0: torch.export.Dim("n", min=1)}
    if fit_multiple:
        free |= {axis: fit_multiple * torch.export.Dim(side, min=2) for axis, side in ((2, "z"), (3, "y"), (4, "x"))}
    program = torch.onnx.export(
        exported,
        (image,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["image"],
        output_names=["probability"],
        dynamic_shapes={"image": free},
        verbose=False,
    )
    if program is None:
        raise ModelError("PyTorch exported no ONNX program.")
    model = program.model_proto
    for node in (*model.graph.node, *model.graph.value_info):
        del node.metadata_props[:]  # the exporter's source lines: paths of this machine
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"The exported graph is not valid ONNX: {error}") from error
    return model
