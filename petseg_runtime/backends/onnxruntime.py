"""ONNX Runtime, on the CPU or on an NVIDIA GPU through its CUDA provider. It never runs elsewhere than asked."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from petseg_runtime.backends.base import check_one_input_and_output, one_line
from petseg_runtime.backends.gpu import gpu_name
from petseg_runtime.errors import BackendError, ModelError
from petseg_runtime.volume import FloatArray

# Its telemetry writes to the user's cache folder and sends; it is decided as the library loads.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
try:
    import onnxruntime
except ImportError as missing:
    raise BackendError(
        "ONNX Runtime is not installed. Install petseg[onnxruntime] for the CPU, or petseg[gpu] for an NVIDIA GPU."
    ) from missing

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
_CUDA_OPTIONS = {
    "cudnn_conv_use_max_workspace": "1",
    "arena_extend_strategy": "kSameAsRequested",  # memory is taken as it is needed
    "use_tf32": "0",  # rounds to ten bits what is called f32, on by default since Ampere
}
# Beside ONNX Runtime, where pip puts them and the system's linker does not look; what others need comes first.
_CUDA_LIBRARIES = ("cublasLt", "cublas", "nvrtc", "curand", "cufft", "cudart")
_FATAL, _WARNING = 4, 2
_quieting = threading.Lock()


class OnnxRuntimeBackend:
    """An ONNX Runtime session on one execution provider.

    Parameters
    ----------
    model : the ONNX file's content.
    gpu : index of the GPU, or None for the CPU.
    threads : CPU threads of one inference; None leaves the choice to ONNX Runtime.
    varying : windows are of many sizes, for each of which a search for the fastest convolutions on the GPU would take
        longer than it saves.

    Raises
    ------
    ModelError : if ONNX Runtime cannot load the model.
    BackendError : if the CUDA provider or the GPU is absent, CUDA does not start, or a part of the network would run on
        the CPU instead.
    """

    def __init__(self, model: bytes, gpu: int | None = None, threads: int | None = None, varying: bool = False) -> None:
        wanted = CPU if gpu is None else CUDA
        if wanted not in onnxruntime.get_available_providers():
            raise BackendError(
                f"This ONNX Runtime has no {wanted} (it has {', '.join(onnxruntime.get_available_providers())}). "
                "Install petseg[gpu] in place of petseg[onnxruntime], or use --device cpu."
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL  # what it writes goes to stderr past Python; errors are raised
        if threads is not None:
            options.intra_op_num_threads = threads
        if gpu is None:
            self._where, self._session = "CPU", _cpu_session(model, options)
        else:
            self._where = f"CUDA GPU {gpu}, {gpu_name(gpu)}"
            self._session = _cuda_session(model, options, gpu, varying)
        check_provider(self._session.get_providers(), wanted)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        check_one_input_and_output([port.type for port in inputs], [port.type for port in outputs], "tensor(float)")
        self.device = "cpu" if gpu is None else f"gpu:{gpu}"
        self._input, self._output = inputs[0].name, outputs[0].name

    @property
    def name(self) -> str:
        return f"ONNX Runtime {onnxruntime.__version__}, {self._where}, f32"

    def predict(self, windows: Iterable[FloatArray]) -> Iterator[FloatArray]:
        for window in windows:
            try:
                binding = self._session.io_binding()
                binding.bind_cpu_input(self._input, window)
                binding.bind_output(self._output)
                self._session.run_with_iobinding(binding)
                probabilities: FloatArray = binding.copy_outputs_to_cpu()[0]
            except Exception as error:  # no base class of its own here either
                raise BackendError(f"ONNX Runtime cannot run the model: {one_line(error)}.") from error
            yield probabilities


def _cpu_session(model: bytes, options: Any) -> Any:
    try:
        return onnxruntime.InferenceSession(model, options, providers=[CPU], enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise ModelError(f"ONNX Runtime cannot load the model: {one_line(error)}.") from error


def _cuda_session(model: bytes, options: Any, gpu: int, varying: bool) -> Any:
    # Without this a node that CUDA lacks, or a missing CUDA library, silently runs on the CPU.
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    search = "HEURISTIC" if varying else "EXHAUSTIVE"
    cuda_options = {"device_id": str(gpu), "cudnn_conv_algo_search": search, **_CUDA_OPTIONS}
    _load_cuda()
    try:
        with _quiet():
            return onnxruntime.InferenceSession(
                model, options, providers=[CUDA], provider_options=[cuda_options], enable_fallback=0
            )
    except Exception as error:
        reason = one_line(error)
        if "fallback to CPU" in reason:  # all that it says
            reason = (
                "CUDA did not start (it needs the CUDA 13 libraries, and NVIDIA driver 580 or newer), or lacks a part "
                "of the network"
            )
        raise BackendError(f"ONNX Runtime cannot run the model on GPU {gpu}: {reason}.") from error


@cache
def _load_cuda() -> None:
    """Load the CUDA libraries that pip installed; what is not there the system's linker may find.

    ONNX Runtime's own `preload_dlls` does the same, and prints to stdout what it does not find.
    """
    nvidia, cuda = Path(onnxruntime.__file__).parents[1] / "nvidia", onnxruntime.cuda_version.partition(".")[0]
    names = [*(f"cu{cuda}/lib/lib{name}" for name in _CUDA_LIBRARIES), "cudnn/lib/libcudnn"]
    for name in names:
        for library in nvidia.glob(f"{name}.so.*"):
            with suppress(OSError):  # the session that does not start then is refused
                ctypes.CDLL(str(library))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what goes to stderr, in colours, where CUDA does not start: the error that is raised says it.

    The level is the process's and cannot be asked for. So it is put back to what ONNX Runtime starts with.
    """
    with _quieting:
        onnxruntime.set_default_logger_severity(_FATAL)
        try:
            yield
        finally:
            onnxruntime.set_default_logger_severity(_WARNING)


def check_provider(active: list[str], wanted: str) -> None:
    """Refuse a session that did not start on the provider that was asked for.

    Raises
    ------
    BackendError : if `wanted` is not the session's first provider.
    """
    if not active or active[0] != wanted:
        raise BackendError(
            f"ONNX Runtime fell back to {active[0] if active else 'nothing'} although {wanted} was asked for. "
            "Check the NVIDIA driver and the CUDA libraries, or use --device cpu."
        )
