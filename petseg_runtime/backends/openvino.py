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
    """An ONNX model compiled for this machine's CPU, in float32.

    OpenVINO turns to bfloat16 by itself where the CPU has it. Masks must not depend on the machine, so the
    precision is set here.

    Raises
    ------
    ModelError : if OpenVINO cannot load the model.
    BackendError : if it cannot run it on this CPU.
    """

    def __init__(self, model: bytes, threads: int | None = None) -> None:
        core = openvino.Core()
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
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
        return f"OpenVINO {openvino.__version__.split('-')[0]}, CPU, f32"

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


def _first_line(error: RuntimeError) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
