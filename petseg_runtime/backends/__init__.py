"""Inference backends. Each vendor's package is imported only when its backend is opened."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version

from petseg_runtime.backends.base import Backend
from petseg_runtime.errors import BackendError

__all__ = ["Backend", "open_backend"]

BACKENDS = ("auto", "openvino", "onnxruntime")


def open_backend(
    model: bytes, backend: str = "auto", device: str = "auto", threads: int | None = None
) -> tuple[Backend, str]:
    """Load a model where the caller asked for it, and say in one sentence what was taken and why.

    Parameters
    ----------
    model : content of an ONNX file.
    backend : "auto", "openvino" or "onnxruntime".
    device : "auto", "cpu", "gpu" or "gpu:N". "auto" takes the GPU where ONNX Runtime can use one, then the CPU;
        an explicit device or backend never falls back.

    Raises
    ------
    BackendError : if the backend or device is unknown, absent, or does not work.
    ModelError : if the backend cannot load the model.
    """
    if backend not in BACKENDS:
        raise BackendError(f"Backend {backend!r} is unknown; there are {', '.join(BACKENDS)}.")
    gpu = _gpu_index(device)
    if gpu is not None:
        if backend == "openvino":
            raise BackendError("Backend openvino runs on the CPU; use --backend onnxruntime with --device gpu.")
        from petseg_runtime.backends.onnxruntime import OnnxRuntimeBackend

        return _chosen(OnnxRuntimeBackend(model, gpu, threads), "as asked")

    reason = "as asked"
    if device == "auto" and backend != "openvino":
        reason = "no GPU that ONNX Runtime can use"
        if _has_gpu_build():
            from petseg_runtime.backends.onnxruntime import OnnxRuntimeBackend

            try:
                return _chosen(OnnxRuntimeBackend(model, 0, threads), "a GPU is present")
            except BackendError as error:
                reason = f"the GPU does not work: {error}"
    if backend == "onnxruntime":
        from petseg_runtime.backends.onnxruntime import OnnxRuntimeBackend

        return _chosen(OnnxRuntimeBackend(model, None, threads), reason)
    from petseg_runtime.backends.openvino import OpenVinoBackend

    return _chosen(OpenVinoBackend(model, threads), reason)


def _chosen(backend: Backend, reason: str) -> tuple[Backend, str]:
    return backend, f"Runs on {backend.name} ({reason})."


def _gpu_index(device: str) -> int | None:
    if device in ("auto", "cpu"):
        return None
    match = re.fullmatch(r"gpu(?::(\d+))?", device)
    if match is None:
        raise BackendError(f"Device {device!r} is unknown; there are auto, cpu, gpu and gpu:N.")
    return int(match[1] or 0)


def _has_gpu_build() -> bool:
    """Whether the GPU build of ONNX Runtime is installed. Asked without importing it, which takes its time."""
    try:
        return bool(version("onnxruntime-gpu"))
    except PackageNotFoundError:
        return False
