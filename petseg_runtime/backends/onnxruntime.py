"""ONNX Runtime, on the CPU or on an NVIDIA GPU through its CUDA provider. It never runs elsewhere than asked."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout

from petseg_runtime.backends.base import check_one_input_and_output
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
# Windows are of few sizes, so the search for the fastest convolution pays, and memory is taken as it is needed.
_CUDA_OPTIONS = {
    "cudnn_conv_algo_search": "EXHAUSTIVE",
    "cudnn_conv_use_max_workspace": "1",
    "arena_extend_strategy": "kSameAsRequested",
    "use_tf32": "0",  # rounds to ten bits what is called f32, on by default since Ampere
}


class OnnxRuntimeBackend:
    """An ONNX Runtime session on one execution provider.

    Parameters
    ----------
    model : the ONNX file's content.
    gpu : index of the GPU, or None for the CPU.
    threads : CPU threads of one inference; None leaves the choice to ONNX Runtime.

    Raises
    ------
    ModelError : if ONNX Runtime cannot load the model.
    BackendError : if the CUDA provider is absent, or a part of the network would run on the CPU instead.
    """

    def __init__(self, model: bytes, gpu: int | None = None, threads: int | None = None) -> None:
        wanted = CPU if gpu is None else CUDA
        if wanted not in onnxruntime.get_available_providers():
            raise BackendError(
                f"This ONNX Runtime has no {wanted} (it has {', '.join(onnxruntime.get_available_providers())}). "
                "Install petseg[gpu] in place of petseg[onnxruntime], or use --device cpu."
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # its warnings go to stderr past Python; errors are raised
        if threads is not None:
            options.intra_op_num_threads = threads
        if gpu is not None:
            # Without this a node that CUDA lacks, or a missing CUDA library, silently runs on the CPU.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            _load_cuda()
        provider_options = {} if gpu is None else {"device_id": str(gpu), **_CUDA_OPTIONS}
        try:
            self._session = onnxruntime.InferenceSession(
                model, options, providers=[wanted], provider_options=[provider_options], enable_fallback=0
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            reason = str(error).splitlines()[0]
            if gpu is None:
                raise ModelError(f"ONNX Runtime cannot load the model: {reason}") from error
            raise BackendError(f"ONNX Runtime cannot run the model on GPU {gpu}: {reason}") from error
        check_provider(self._session.get_providers(), wanted)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        check_one_input_and_output([port.type for port in inputs], [port.type for port in outputs], "tensor(float)")
        self.device = "cpu" if gpu is None else f"gpu:{gpu}"
        self._where = "CPU" if gpu is None else f"CUDA GPU {gpu}"
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
                raise BackendError(f"ONNX Runtime cannot run the model: {str(error).splitlines()[0]}") from error
            yield probabilities


def _load_cuda() -> None:
    """Load the CUDA libraries that pip installed beside ONNX Runtime, where the system's linker does not look.

    What it fails to find it prints; the session that does not start then says what is missing.
    """
    if hasattr(onnxruntime, "preload_dlls"):
        with redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()


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
