"""Inference backends. Each vendor's package is imported only when its backend is opened."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from petseg_runtime.backends.base import Backend
from petseg_runtime.engine import EngineFile
from petseg_runtime.errors import BackendError, ModelError
from petseg_runtime.volume import Shape

__all__ = ["Backend", "has_gpu_build", "open_backend"]

BACKENDS = ("auto", "openvino", "onnxruntime", "tensorrt")


def open_backend(
    model: bytes | None,
    backend: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    engine: EngineFile | None = None,
    precision: str = "f32",
    cache: Path | None = None,
    window: Shape | None = None,
) -> tuple[Backend, str]:
    """Load a model where the caller asked for it, and say in one sentence what was taken and why.

    Parameters
    ----------
    model : content of an ONNX file; None where there is only an engine.
    backend : "auto", "openvino", "onnxruntime" or "tensorrt".
    device : "auto", "cpu", "gpu" or "gpu:N". "auto" takes TensorRT where there is an engine and a GPU that fit, then
        CUDA through ONNX Runtime, then the CPU; an explicit device or backend never falls back.
    engine : of the same model.
    cache : folder for what OpenVINO or TensorRT compiles, see there.
    window : see `OpenVinoBackend`; where there are several sizes, CUDA does not search for the fastest convolutions.
    precision : of OpenVINO, "f32" or "bf16"; the others run in that of the model or engine.

    Raises
    ------
    BackendError : if the backend or device is unknown, absent, or does not work.
    ModelError : if the backend cannot load the model, or needs an engine that is not there.
    """
    if backend not in BACKENDS:
        raise BackendError(f"Backend {backend!r} is unknown; there are {', '.join(BACKENDS)}.")
    gpu = _gpu_index(device)
    if gpu is not None and backend == "openvino":
        raise BackendError("Backend openvino runs on the CPU; use --backend onnxruntime with --device gpu.")
    if model is None or backend == "tensorrt":
        return _chosen(_tensorrt(engine, backend, device, gpu, cache), "as asked")

    passed_over = []
    if engine is not None and backend == "auto" and device != "cpu":
        try:
            tensorrt = _tensorrt(engine, backend, device, gpu, cache)
            return _chosen(_tried(tensorrt, engine.manifest.patch_size), "an engine and a GPU fit")
        except (BackendError, ModelError) as error:
            passed_over.append(f"TensorRT does not work: {str(error).rstrip('.')}")
    if gpu is not None:
        from petseg_runtime.backends.onnxruntime import OnnxRuntimeBackend

        reason = "; ".join([*passed_over, "as asked"])
        return _chosen(OnnxRuntimeBackend(model, gpu, threads, varying=window is None), reason)
    if device == "auto" and backend != "openvino":
        if has_gpu_build():
            try:
                from petseg_runtime.backends.onnxruntime import OnnxRuntimeBackend

                cuda = OnnxRuntimeBackend(model, 0, threads, varying=window is None)
                return _chosen(_tried(cuda, window), "; ".join([*passed_over, "a GPU is present"]))
            except BackendError as error:
                passed_over.append(f"the GPU does not work: {str(error).rstrip('.')}")
        else:
            passed_over.append("no GPU that ONNX Runtime can use")
    reason = "; ".join(passed_over) or "as asked"
    if backend == "onnxruntime":
        from petseg_runtime.backends.onnxruntime import OnnxRuntimeBackend

        return _chosen(OnnxRuntimeBackend(model, None, threads), reason)
    from petseg_runtime.backends.openvino import OpenVinoBackend

    return _chosen(OpenVinoBackend(model, threads, precision, cache, window), reason)


def _tensorrt(engine: EngineFile | None, backend: str, device: str, gpu: int | None, cache: Path | None) -> Backend:
    if backend not in ("auto", "tensorrt"):
        raise BackendError(f"Backend {backend} cannot run an engine; pass the .onnx file.")
    if device == "cpu":
        raise BackendError("An engine runs on an NVIDIA GPU; pass the .onnx file, or leave out --device cpu.")
    if engine is None:
        raise ModelError(
            "TensorRT runs engines, and there is none beside the model. Build one: petseg-export engine MODEL.onnx"
        )
    from petseg_runtime.backends.tensorrt import TensorRtBackend

    return TensorRtBackend(engine, gpu or 0, cache)


def _tried(backend: Backend, window: Shape | None) -> Backend:
    """The backend, after a window of zeros if a size is known: what fails as it computes is not to be chosen."""
    if window is not None:
        list(backend.predict([np.zeros((1, 1, *window), np.float32)]))
    return backend


def _chosen(backend: Backend, reason: str) -> tuple[Backend, str]:
    return backend, f"Runs on {backend.name} ({reason})."


def _gpu_index(device: str) -> int | None:
    if device in ("auto", "cpu"):
        return None
    match = re.fullmatch(r"gpu(?::(\d+))?", device)
    if match is None:
        raise BackendError(f"Device {device!r} is unknown; there are auto, cpu, gpu and gpu:N.")
    return int(match[1] or 0)


def has_gpu_build() -> bool:
    """Whether the GPU build of ONNX Runtime is installed. Asked without importing it, which takes its time."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return bool(version("onnxruntime-gpu"))
    except PackageNotFoundError:
        return False
