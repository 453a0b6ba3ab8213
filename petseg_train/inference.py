"""A trained network behind the runtime's Segmenter: evaluation runs the code that hospitals run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from petseg_runtime.manifest import LABELS, Channel, ModelManifest
from petseg_runtime.segmenter import Segmenter
from petseg_runtime.volume import FloatArray
from petseg_train.training import SegmentationModule


class TorchBackend:
    """A PyTorch network as a runtime backend, in float32."""

    def __init__(self, module: SegmentationModule) -> None:
        self._module = module.eval()

    @property
    def device(self) -> str:
        return str(self._module.device)

    @property
    def name(self) -> str:
        return f"PyTorch {torch.__version__}, {self._module.device}, f32"

    @torch.inference_mode()
    def predict(self, windows: Iterable[FloatArray]) -> Iterator[FloatArray]:
        for window in windows:
            tensor = torch.from_numpy(window).to(self._module.device, memory_format=torch.channels_last_3d)
            with _whole_float32():
                probabilities: FloatArray = torch.sigmoid(self._module.network(tensor)).cpu().numpy()
            yield probabilities


@contextmanager
def _whole_float32() -> Iterator[None]:
    """Without TF32, which cuDNN takes by default since Ampere: it rounds to ten bits what is called f32.

    What was set before comes back, since trainings go on in the same process, and the weights follow from it.
    """
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = False
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before


def torch_segmenter(module: SegmentationModule) -> Segmenter:
    """The runtime's Segmenter around a network in PyTorch."""
    return Segmenter.from_backend(make_manifest(module, "in-training", "0"), TorchBackend(module))


def make_manifest(
    module: SegmentationModule, name: str, version: str, training: dict[str, object] | None = None
) -> ModelManifest:
    """The manifest of a network; `training` is its provenance."""
    config = module.config
    return ModelManifest(
        name=name,
        version=version,
        channels=(Channel(modality="PT", unit="any"),),
        preprocessing=config.preprocessing,
        patch_size=config.patch_size,
        overlap=config.overlap,
        threshold=config.threshold,
        labels=dict(LABELS),
        training=training or {},
        fit_multiple=config.fit_multiple,
        longest_body_mm=module.longest_body_mm,
    )
