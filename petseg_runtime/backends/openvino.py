"""OpenVINO on the CPU: the default, because it is the fastest there."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator

from petseg_runtime.backends.base import check_one_input_and_output
from petseg_runtime.errors import BackendError, ModelError
from petseg_runtime.volume import FloatArray

if "openvino" not in sys.modules:
    # OpenVINO reports its import over the network. Where its telemetry package is absent it uses a stub of its own.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        del sys.modules["openvino_telemetry"]
else:
    import openvino


class OpenVinoBackend:
    """An ONNX model compiled for this machine's CPU.

    OpenVINO turns to bfloat16 by itself where the CPU has it. Masks must not depend on the machine, so the
    precision is set here: "f32", or "bf16" where the machine passed the model's self-test with it.

    Raises
    ------
    ModelError : if OpenVINO cannot load the model.
    BackendError : if it cannot run it on this CPU, or the CPU has no bf16.
    """

    def __init__(self, model: bytes, threads: int | None = None, precision: str = "f32") -> None:
        core = openvino.Core()
        if precision == "bf16" and not has_bf16():
            raise BackendError("This CPU has no bf16. Use --precision f32.")
        self._precision = precision
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
        try:
            network = core.read_model(model)
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot load the model: {_first_line(error)}") from error
        check_one_input_and_output(len(network.inputs), len(network.outputs))
        try:
            self.compiled = core.compile_model(network, "CPU", settings)
        except RuntimeError as error:
            raise BackendError(f"OpenVINO cannot run the model on this CPU: {_first_line(error)}") from error
        self._requests = threading.local()

    device = "cpu"

    @property
    def name(self) -> str:
        return backend_name(self._precision)

    def predict(self, windows: Iterable[FloatArray]) -> Iterator[FloatArray]:
        # One request a thread: a request holds the buffers of one inference.
        if not hasattr(self._requests, "mine"):
            self._requests.mine = self.compiled.create_infer_request()
        for window in windows:
            try:
                probabilities: FloatArray = self._requests.mine.infer([window], share_inputs=True)[0]
            except RuntimeError as error:
                raise BackendError(f"OpenVINO cannot run the model: {_first_line(error)}") from error
            yield probabilities


def backend_name(precision: str) -> str:
    """How the backend is called in records."""
    return f"OpenVINO {openvino.__version__.split('-')[0]}, CPU, {precision}"


def has_bf16() -> bool:
    """Whether this CPU has bf16 instructions; OpenVINO would compute in f32 without saying so."""
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _first_line(error: RuntimeError) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
