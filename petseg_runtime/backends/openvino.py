"""OpenVINO on the CPU: the default, because it is the fastest there."""

from __future__ import annotations

import ctypes
import hashlib
import math
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from petseg_runtime.backends.base import check_one_input_and_output
from petseg_runtime.backends.compiled import CompiledNetwork
from petseg_runtime.errors import BackendError, ModelError
from petseg_runtime.volume import FloatArray, Shape

if "openvino" not in sys.modules:
    # OpenVINO reports its import over the network. Where its telemetry package is absent it uses a stub of its own.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        del sys.modules["openvino_telemetry"]
else:
    import openvino

# Compiled networks that are kept, where windows fit themselves to bodies of many sizes.
_SHAPES_KEPT = 4
# Counts up with every change to what is done to a network before it is compiled.
_FORM = 1


class OpenVinoBackend:
    """An ONNX model compiled for this machine's CPU.

    OpenVINO turns to bfloat16 by itself where the CPU has it. Masks must not depend on the machine, so the
    precision is set here: "f32", or "bf16" where the machine passed the model's self-test with it.

    Parameters
    ----------
    threads : of one inference; None leaves the choice to OpenVINO.
    cache : folder that keeps the compiled network for the next start; None keeps nothing.
    window : the one size `(z, y, x)` of its windows, to be ready for at once; None where there are several.

    Raises
    ------
    ModelError : if OpenVINO cannot load the model.
    BackendError : if it cannot run it on this CPU, or the CPU has no bf16.
    """

    def __init__(
        self,
        model: bytes,
        threads: int | None = None,
        precision: str = "f32",
        cache: Path | None = None,
        window: Shape | None = None,
    ) -> None:
        self._core = openvino.Core()
        if precision == "bf16" and not has_bf16():
            raise BackendError("This CPU has no bf16. Use --precision f32.")
        self._precision = precision
        self._settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
        }
        if threads is not None:
            self._settings["INFERENCE_NUM_THREADS"] = str(threads)
        self._model, self._model_sha256, self._cache = model, hashlib.sha256(model).hexdigest(), cache
        self._compiling = threading.Lock()
        self.compiled = lru_cache(_SHAPES_KEPT)(self._ready)
        if window is None:
            _ = self._network  # what cannot be loaded is refused at once
        else:
            self.compiled((1, 1, *window))

    device = "cpu"

    @property
    def name(self) -> str:
        return backend_name(self._precision)

    def predict(self, windows: Iterable[FloatArray]) -> Iterator[FloatArray]:
        # A request holds the buffers of one inference, for one caller; they are given back at the end.
        request, shape = None, None
        try:
            for window in windows:
                if request is None or window.shape != shape:
                    shape = window.shape
                    with self._compiling:
                        request = self.compiled(shape).create_infer_request()
                try:
                    probabilities: FloatArray = request.infer([window], share_inputs=True)[0]
                except RuntimeError as error:
                    raise BackendError(f"OpenVINO cannot run the model: {_first_line(error)}") from error
                yield probabilities
        finally:
            if request is not None:
                compiled = request.get_compiled_model()
                del request
                with suppress(RuntimeError):  # another thread is using them
                    compiled.release_memory()

    def working_bytes(self, window: Shape) -> int:
        network = self._network.clone()
        network.reshape({0: [1, 1, *window]})
        return _most_alive_bytes(network.get_ordered_ops())

    @cached_property
    def _network(self) -> Any:
        try:
            network = self._core.read_model(self._model)
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot load the model: {_first_line(error)}") from error
        check_one_input_and_output(len(network.inputs), len(network.outputs))
        self._model = b""  # the network holds the weights now
        return network

    def _ready(self, shape: tuple[int, ...]) -> Any:
        compiled = self._compile(shape)
        with suppress(AttributeError):  # of glibc, which else keeps what compiling freed: tens of megabytes
            ctypes.CDLL(None).malloc_trim(0)
        return compiled

    def _compile(self, shape: tuple[int, ...]) -> Any:
        """The network for windows of one shape, which is faster than one for all and holds no more than it needs."""
        kept = None if self._cache is None else CompiledNetwork(self._cache, self._key(shape))
        blob = None if kept is None else kept.read()
        if blob is not None:
            with suppress(RuntimeError):  # of a version that says it is the same, and is not
                return self._core.import_model(blob, "CPU", self._settings)
        taken = self._network.inputs[0].get_partial_shape()
        if not taken.compatible(openvino.PartialShape(list(shape))):
            raise BackendError(f"OpenVINO cannot run the model on windows of {shape}: it takes {taken}.")
        try:
            network = self._network.clone()
            network.reshape({0: list(shape)})
            _average_in_two_steps(network)
            compiled = self._core.compile_model(network, "CPU", self._settings)
        except RuntimeError as error:
            raise BackendError(f"OpenVINO cannot run the model on this CPU: {_first_line(error)}") from error
        if kept is not None:
            kept.write(compiled.export_model().getvalue())
        return compiled

    def _key(self, shape: tuple[int, ...]) -> str:
        """All that a compiled network depends on."""
        cpu = (
            self._core.get_property("CPU", "FULL_DEVICE_NAME"),
            self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"),
        )
        return repr(
            (
                _FORM,
                openvino.__version__,
                cpu,
                sorted(self._settings.items()),
                self._model_sha256,
                shape,
            )
        )


def _average_in_two_steps(network: Any) -> None:
    """Put an average over 2³ or 4³ voxels before each mean over a whole feature map.

    The CPU plugin's mean over three axes takes many times as long as both steps together. The sides of a feature map
    are even wherever the network halves it once more; the deepest maps are small, and are left as they are.
    """
    ops = openvino.opset13
    for mean in [node for node in network.get_ops() if node.get_type_name() == "ReduceMean"]:
        features, axes = mean.input_value(0), mean.input_value(1).get_node()
        sides = list(features.get_partial_shape())[2:]
        if (
            len(sides) != 3
            or not hasattr(axes, "get_data")
            or sorted(axis % 5 for axis in axes.get_data()) != [2, 3, 4]
        ):
            continue
        step = next((n for n in (4, 2) if all(side.is_static and side.get_length() % n == 0 for side in sides)), None)
        if step is None:
            continue
        pooled = ops.avg_pool(features, [step] * 3, [0] * 3, [0] * 3, [step] * 3, exclude_pad=False)
        mean.input(0).replace_source_output(pooled.output(0))


def _most_alive_bytes(operations: Sequence[Any]) -> int:
    """The most that the tensors between the operations take at any time, if each lives until its last use."""
    last_use = {
        value.get_node().get_friendly_name(): number
        for number, operation in enumerate(operations)
        for value in operation.input_values()
    }
    alive, most, ends = 0, 0, dict[int, int]()
    for number, operation in enumerate(operations):
        if operation.get_type_name() != "Constant":
            size = sum(4 * math.prod(value.get_shape()) for value in operation.outputs())
            alive += size
            end = last_use.get(operation.get_friendly_name(), len(operations))
            ends[end] = ends.get(end, 0) + size
        most = max(most, alive)
        alive -= ends.pop(number, 0)
    return most


def backend_name(precision: str) -> str:
    """How the backend is called in records."""
    return f"OpenVINO {openvino.__version__.split('-')[0]}, CPU, {precision}"


def has_bf16() -> bool:
    """Whether this CPU has bf16 instructions; OpenVINO would compute in f32 without saying so."""
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _first_line(error: RuntimeError) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
