"""OpenVINO on the CPU: the default, because it is the fastest there."""

from __future__ import annotations

import ctypes
import hashlib
import math
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from petseg_runtime.backends.base import check_one_input_and_output
from petseg_runtime.backends.compiled import CompiledNetworks
from petseg_runtime.errors import BackendError, ModelError, PetsegError
from petseg_runtime.volume import FloatArray, Shape

if "openvino" not in sys.modules:
    # OpenVINO reports its import over the network. Where its telemetry package is absent it uses a stub of its own.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino.passes
    finally:
        del sys.modules["openvino_telemetry"]
else:
    import openvino.passes

# Compiled networks that are kept, where windows fit themselves to bodies of many sizes.
_SHAPES_KEPT = 4
# Counts up with every change to what is done to a network before it is compiled: other forms round otherwise.
_FORM = 4
# Channels that an AVX-512 convolution computes at once.
_LANES = 16
# OpenVINO's own format of a convolution that keeps its precision: Python cannot set that attribute on an operation.
_PRECISE_CONVOLUTION = """
<net name="precise" version="11">
  <layers>
    <layer id="0" name="image" type="Parameter" version="opset1">
      <data shape="{image}" element_type="f32"/><output><port id="0" precision="FP32"/></output>
    </layer>
    <layer id="1" name="weights" type="Parameter" version="opset1">
      <data shape="{weights}" element_type="f32"/><output><port id="0" precision="FP32"/></output>
    </layer>
    <layer id="2" name="convolution" type="Convolution" version="opset1">
      <data {attributes}/><rt_info><attribute name="precise" version="0"/></rt_info>
      <input><port id="0"/><port id="1"/></input><output><port id="2" precision="FP32"/></output>
    </layer>
    <layer id="3" name="sums" type="Result" version="opset1"><input><port id="0"/></input></layer>
  </layers>
  <edges>
    <edge from-layer="0" from-port="0" to-layer="2" to-port="0"/>
    <edge from-layer="1" from-port="0" to-layer="2" to-port="1"/>
    <edge from-layer="2" from-port="2" to-layer="3" to-port="0"/>
  </edges>
</net>"""


class OpenVinoBackend:
    """An ONNX model compiled for this machine's CPU.

    OpenVINO turns to bfloat16 by itself where the CPU has it. Masks must not depend on the machine, so the
    precision is set here: "f32", or "bf16" where the machine passed the model's self-test with it.

    Parameters
    ----------
    threads : of one inference; None leaves the choice to OpenVINO.
    cache : folder that keeps the compiled network for the next start; None keeps nothing. What it keeps of this
        network is got ready in the background, while the caller reads a scan.
    window : the one size `(z, y, x)` of its windows; None where there are several, of which the last one used is got
        ready.

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
        self._model, self._model_sha256 = model, hashlib.sha256(model).hexdigest()
        self._kept = None if cache is None else CompiledNetworks(cache, self._key())
        self._compiling = threading.Lock()
        self.compiled = lru_cache(_SHAPES_KEPT)(self._ready)
        shape = None if window is None else (1, 1, *window)
        last = None if self._kept is None else self._kept.last_shape()
        if last is not None and shape in (None, last):
            threading.Thread(target=self._get_ready, args=(last,)).start()
        elif shape is not None:
            self.compiled(shape)
        else:
            _ = self._network  # what cannot be loaded is refused at once

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
                    raise BackendError(f"OpenVINO cannot run the model: {_cause(error)}") from error
                yield probabilities
        finally:
            if request is not None:
                compiled = request.get_compiled_model()
                del request
                with suppress(RuntimeError):  # another thread is using them
                    compiled.release_memory()

    def working_bytes(self, window: Shape) -> int:
        with self._compiling:  # the thread that gets the network ready reads it too
            return _most_alive_bytes(self._formed((1, 1, *window)).get_ordered_ops())

    @cached_property
    def _network(self) -> Any:
        try:
            network = self._core.read_model(self._model)
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot load the model: {_cause(error)}") from error
        inputs, outputs = (
            [port.get_element_type().get_type_name() for port in ports] for ports in (network.inputs, network.outputs)
        )
        check_one_input_and_output(inputs, outputs, "f32")
        self._model = b""  # the network holds the weights now
        return network

    def _get_ready(self, shape: tuple[int, ...]) -> None:
        with self._compiling, suppress(PetsegError):  # whoever needs it is told
            self.compiled(shape)

    def _ready(self, shape: tuple[int, ...]) -> Any:
        compiled = self._compile(shape)
        with suppress(AttributeError):  # of glibc, which else keeps what compiling freed: tens of megabytes
            ctypes.CDLL(None).malloc_trim(0)
        return compiled

    def _compile(self, shape: tuple[int, ...]) -> Any:
        """The network for windows of one shape, which is faster than one for all and holds no more than it needs."""
        blob = None if self._kept is None else self._kept.read(shape)
        if blob is not None:
            with suppress(RuntimeError):  # of a version that says it is the same, and is not
                return self._core.import_model(blob, "CPU", self._settings)
        taken = self._network.inputs[0].get_partial_shape()
        if not taken.compatible(openvino.PartialShape(list(shape))):
            raise ModelError(f"The model cannot run on its windows of {shape}: it takes {taken}. Export it again.")
        try:
            compiled = self._core.compile_model(self._formed(shape), "CPU", self._settings)
        except RuntimeError as error:
            raise BackendError(f"OpenVINO cannot run the model on this CPU: {_cause(error)}") from error
        if self._kept is not None:
            self._kept.write(shape, compiled.export_model().getvalue())
        return compiled

    def _formed(self, shape: tuple[int, ...]) -> Any:
        """The network for windows of one shape, in the form that this CPU computes fastest."""
        network = self._network.clone()
        network.reshape({0: list(shape)})
        passes = openvino.passes.Manager()
        passes.register_pass(openvino.passes.ConstantFolding())
        passes.register_pass(_GateBehindTheHead())
        passes.run_passes(network)
        _average_in_two_steps(network)
        if self._precision == "f32" and has_avx512():
            _fill_lanes(network)
        if self._precision == "bf16":
            _keep_the_stem_in_f32(network)
        return network

    def _key(self) -> str:
        """All that a compiled network depends on, but for the shape of its windows."""
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
            )
        )


class _GateBehindTheHead(openvino.passes.MatcherPass):  # type: ignore[misc]  # OpenVINO has no stubs of its passes
    """Let a head of one channel read what an scSE gates, and gate the head's own sums in place of it.

    Of features x, head weights h, channel gate c and spatial gate s = sigmoid(v x + b), both 1x1x1 convolutions:
    h (x (c + s)) = (h c) x + s (h x). So h c, h and v are the weights of one convolution to three channels. It reads
    the features once, which are the largest of all in the network; before, they were read three times and written.
    """

    def __init__(self) -> None:
        super().__init__()
        any_input, of_type = openvino.passes.AnyInput, openvino.passes.WrapType
        x, channel_gate, spatial_bias = any_input(), any_input(), any_input()
        spatial_weights, head_weights = of_type("opset1.Constant"), of_type("opset1.Constant")
        spatial = of_type("opset1.Add", [of_type("opset1.Convolution", [x, spatial_weights]), spatial_bias])
        gates = of_type("opset1.Add", [channel_gate, of_type("opset1.Sigmoid", [spatial])])
        gated = of_type("opset1.Multiply", [x, gates])
        head = of_type("opset1.Convolution", [gated, head_weights])

        def rewrite(matcher: Any) -> bool:
            ops, at = openvino.opset13, matcher.get_pattern_value_map()
            features, weights = at[x], at[head_weights]
            per_channel, one_channel = [1, features.get_shape()[1], 1, 1, 1], [1, 1, *features.get_shape()[2:]]
            of_one_voxel, of_one_channel = [at[channel_gate], weights, at[spatial_weights]], [at[spatial], at[head]]
            if (
                any(list(value.get_shape()) != per_channel for value in of_one_voxel)
                or any(list(value.get_shape()) != one_channel for value in of_one_channel)
                or len(at[gated].get_target_inputs()) > 1
            ):
                return False
            rows = ops.concat([ops.multiply(at[channel_gate], weights), weights, at[spatial_weights]], 0)
            sums = ops.convolution(features, rows, [1] * 3, [0] * 3, [0] * 3, [1] * 3)
            # Channel by channel in memory, so that each is one piece and none is copied.
            planes = ops.transpose(sums, ops.constant([1, 0, 2, 3, 4]))
            by_channel, by_head, spatial_sum = (
                ops.reshape(ops.slice(planes, [n], [n + 1], [1], [0]), ops.constant(one_channel), False)
                for n in range(3)
            )
            gate = ops.sigmoid(ops.add(spatial_sum, at[spatial_bias]))
            openvino.utils.replace_node(at[head].get_node(), ops.add(by_channel, ops.multiply(gate, by_head)))
            return True

        self.register_matcher(openvino.passes.Matcher(head, "GateBehindTheHead"), rewrite)


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


def _fill_lanes(network: Any) -> None:
    """Let convolutions to 24 channels compute 32, the last 8 with weights of zero, and leave those out again.

    AVX-512 computes 16 channels at once, and what is left over in a pass of its own that takes as long: 24 channels
    take one and a half times as long as 32, and their instance norm twice as long. So the zeros are left out behind
    what treats each channel by itself. Fewer than 16 are one pass anyway, and a 1x1x1 kernel waits for memory. A
    transposed convolution gains less, and the last one's result is the largest of all: it would take the process 30 MB.
    """
    for node in [node for node in network.get_ops() if node.get_type_name() == "Convolution"]:
        weights = node.input_value(1).get_node()
        if weights.get_type_name() != "Constant":
            continue
        channels, kernel = weights.data.shape[0], weights.data.shape[2:]
        missing = -channels % _LANES
        if not missing or channels < _LANES or math.prod(kernel) == 1:
            continue
        followers = list(_channelwise_followers(node))
        result = (followers[-1] if followers else node).output(0)
        users = result.get_target_inputs()
        filled = openvino.opset13.slice(result, [0], [channels], [1], [1]).output(0)
        for user in users:
            user.replace_source_output(filled)
        _append_zeros(node, 0, missing)
        for follower in followers:
            if follower.get_type_name() in ("Add", "Multiply"):
                _append_zeros(follower, 1, missing)
    network.validate_nodes_and_infer_types()


def _keep_the_stem_in_f32(network: Any) -> None:
    """Let the convolution of the scan itself compute in f32, in a network that else computes in bf16.

    bf16 multiplies channels in pairs, and of one channel takes several times as long as f32. Nor are the scan's values
    rounded to eight bits then.
    """
    for node in network.get_ops():
        if node.get_type_name() == "Convolution" and node.input_value(0).get_node().get_type_name() == "Parameter":
            openvino.utils.replace_node(node, _precise(node))
    network.validate_nodes_and_infer_types()


def _precise(convolution: Any) -> Any:
    """A copy of the convolution, on the same inputs, that keeps its precision."""
    image, weights = convolution.input_values()
    shapes = [",".join(map(str, value.get_shape())) for value in (image, weights)]
    attributes = " ".join(
        f'{name}="{value if isinstance(value, str) else ",".join(map(str, value))}"'
        for name, value in convolution.get_attributes().items()
    )
    text = _PRECISE_CONVOLUTION.format(image=shapes[0], weights=shapes[1], attributes=attributes)
    no_constants = openvino.Tensor(np.zeros(1, np.uint8))
    alone = openvino.Core().read_model(text.encode(), no_constants)
    copy = next(node for node in alone.get_ops() if node.get_type_name() == "Convolution")
    copy.input(0).replace_source_output(image)
    copy.input(1).replace_source_output(weights)
    copy.set_friendly_name(convolution.get_friendly_name())  # by which `working_bytes` tells one from another
    return copy


def _channelwise_followers(node: Any) -> Iterator[Any]:
    """What follows a convolution one by one and treats each channel by itself: bias, instance norm, ReLU."""
    per_channel = [1, node.output(0).get_shape()[1], 1, 1, 1]
    while True:
        users = list(node.output(0).get_target_inputs())
        if len(users) != 1 or users[0].get_index() != 0:
            return
        node = users[0].get_node()
        kind, constant = node.get_type_name(), node.input_value(node.get_input_size() - 1).get_node()
        has_constant = constant.get_type_name() == "Constant"
        scales = kind in ("Add", "Multiply") and has_constant and list(constant.data.shape) == per_channel
        normalises = kind == "MVN" and has_constant and sorted(axis % 5 for axis in constant.data) == [2, 3, 4]
        if not (scales or normalises or kind == "Relu"):
            return
        yield node


def _append_zeros(node: Any, axis: int, missing: int) -> None:
    """Lengthen the constant that is the node's second input."""
    values = node.input_value(1).get_node().data
    width = [(0, missing if number == axis else 0) for number in range(values.ndim)]
    node.input(1).replace_source_output(openvino.opset13.constant(np.pad(values, width)).output(0))


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
    return f"OpenVINO {openvino.__version__.split('-')[0]}, form {_FORM}, CPU, {precision}"


def has_bf16() -> bool:
    """Whether this CPU has bf16 instructions; OpenVINO would compute in f32 without saying so."""
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@cache
def has_avx512() -> bool:
    """Whether this CPU has AVX-512 instructions; where Linux does not say, it is taken not to."""
    try:
        return "avx512f" in Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False


def _cause(error: RuntimeError) -> str:
    """The first lines that say what is wrong; before them stands where in OpenVINO's sources it was found."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    words = [line for line in lines if not line.startswith(("Exception from ", "Check '", "FrontEnd API failed"))]
    return " ".join((words or lines or ["no reason given"])[:3])[:300]
