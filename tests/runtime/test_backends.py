"""Backends agree with arithmetic, and never run elsewhere than asked."""

from __future__ import annotations

import ctypes
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from petseg_runtime.backends import onnxruntime as onnxruntime_backend
from petseg_runtime.backends import open_backend
from petseg_runtime.backends import openvino as openvino_backend
from petseg_runtime.backends.onnxruntime import OnnxRuntimeBackend, check_provider
from petseg_runtime.backends.openvino import OpenVinoBackend
from petseg_runtime.errors import BackendError, ModelError, UsageError
from petseg_runtime.segmenter import BUNDLED_MODEL, Segmenter

BACKENDS = ("openvino", "onnxruntime")


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_known_model_gives_the_sigmoid(name: str, batch: int, known_model: Path) -> None:
    backend, _ = open_backend(known_model.read_bytes(), name, "cpu")
    windows = np.random.default_rng(0).normal(2.0, 0.3, (batch, 1, 16, 16, 16)).astype(np.float32)
    np.testing.assert_allclose(next(backend.predict([windows])), 1 / (1 + np.exp(-10 * (windows - 2.0))), atol=1e-5)


def test_openvino_computes_in_float32_whatever_the_cpu_prefers(known_model: Path) -> None:
    backend = OpenVinoBackend(known_model.read_bytes())
    compiled = backend.compiled((1, 1, 16, 16, 16))
    assert str(compiled.get_property("INFERENCE_PRECISION_HINT")) == "<Type: 'float32'>"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_network_with_two_inputs_is_refused(backend: str, known_model: Path) -> None:
    model = onnx.load(known_model)
    extra = onnx.helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, ["n", 1, "z", "y", "x"])
    model.graph.input.append(extra)
    model.graph.node[0].input[1] = "other"
    with pytest.raises(ModelError, match="2 inputs"):
        open_backend(model.SerializeToString(), backend, "cpu")


@pytest.mark.parametrize("backend", BACKENDS)
def test_windows_that_do_not_fit_the_network_are_refused(backend: str, known_model: Path) -> None:
    model = onnx.load(known_model)
    for side, value in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], (8, 8, 8)):
        side.dim_value = value
    with pytest.raises((BackendError, ModelError), match="cannot run"):  # OpenVINO knows before that it cannot
        next(
            open_backend(model.SerializeToString(), backend, "cpu")[0].predict(
                [np.zeros((1, 1, 16, 16, 16), np.float32)]
            )
        )


@pytest.mark.parametrize("name", BACKENDS)
def test_a_network_of_other_numbers_than_float32_is_refused(name: str) -> None:
    """OpenVINO would round the windows to them."""
    shape = ["n", 1, "z", "y", "x"]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["out"])],
        "whole",
        [helper.make_tensor_value_info("image", TensorProto.INT32, shape)],
        [helper.make_tensor_value_info("out", TensorProto.INT32, shape)],
    )
    with pytest.raises(ModelError, match=r"expected .* for both"):
        list(open_backend(model_of(graph), name, "cpu")[0].predict([np.zeros((1, 1, 4, 4, 4), np.float32)]))


@pytest.mark.parametrize("threads", [0, 513])
def test_more_threads_than_any_machine_has_are_refused(threads: int, known_model: Path) -> None:
    with pytest.raises(UsageError, match=f"threads is {threads}, expected 1 to 512"):
        Segmenter(known_model, threads=threads)


@pytest.mark.parametrize("name", BACKENDS)
def test_threads_do_not_disturb_each_other(name: str, known_model: Path) -> None:
    backend, _ = open_backend(known_model.read_bytes(), name, "cpu", threads=1)

    def constant(value: float) -> np.ndarray:
        return next(backend.predict([np.full((1, 1, 16, 16, 16), value, np.float32)]))

    values = np.linspace(1.5, 2.5, 40)
    with ThreadPoolExecutor(8) as pool:
        for value, probabilities in zip(values, pool.map(constant, values)):
            assert np.ptp(probabilities) == 0
            assert probabilities.flat[0] == pytest.approx(1 / (1 + np.exp(-10 * (value - 2))), abs=1e-4)


def model_of(graph: onnx.GraphProto) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return model.SerializeToString()


def layers_that_agree(model: bytes, window: np.ndarray, rtol: float, atol: float) -> list[Any]:
    """What OpenVINO computes for the window, layer by layer, where its result is that of ONNX Runtime."""
    backend = OpenVinoBackend(model)
    (found,), (expected,) = backend.predict([window]), open_backend(model, "onnxruntime", "cpu")[0].predict([window])
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)
    return list(backend.compiled(window.shape).get_runtime_model().get_ops())


@pytest.mark.parametrize("sides", [(8, 8, 8), (8, 6, 4), (5, 7, 9)], ids=str)
def test_openvinos_mean_in_two_steps_is_the_mean(sides: tuple[int, int, int]) -> None:
    shape = ["n", 1, "z", "y", "x"]
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["image", "axes"], ["mean"]),
            helper.make_node("Add", ["image", "mean"], ["out"]),
        ],
        "mean",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.array([-1, -2, -3]), "axes")],
    )
    window = np.random.default_rng(0).normal(5.0, 1.0, (1, 1, *sides)).astype(np.float32)
    (found,) = OpenVinoBackend(model_of(graph)).predict([window])
    np.testing.assert_allclose(found, window + window.mean(dtype=np.float64), rtol=1e-6)


@pytest.mark.parametrize("biased", [True, False])
def test_openvinos_convolutions_to_24_channels_fill_the_lanes(biased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_backend, "has_avx512", lambda: True)
    rng = np.random.default_rng(0)
    weights = {"first": (24, 1, 3, 3, 3), "second": (24, 24, 3, 3, 3), "up": (24, 24, 2, 2, 2)}
    bias = ["bias"] if biased else []
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "first", *bias], ["a"], pads=[1] * 6),
            helper.make_node("InstanceNormalization", ["a", "scale", "bias"], ["b"]),
            helper.make_node("Relu", ["b"], ["c"]),
            helper.make_node("Conv", ["c", "second", *bias], ["d"], pads=[1] * 6),
            helper.make_node("Add", ["c", "d"], ["e"]),  # what follows the first one has two users
            helper.make_node("ConvTranspose", ["e", "up", *bias], ["f"], strides=[2] * 3),
            helper.make_node("Conv", ["f", "last"], ["out"]),
        ],
        "to 24 channels",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, "z", "y", "x"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 1, "z2", "y2", "x2"])],
        [
            numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
            for name, shape in (weights | {"last": (1, 24, 1, 1, 1), "bias": (24,), "scale": (24,)}).items()
        ],
    )
    layers = layers_that_agree(
        model_of(graph), rng.normal(size=(1, 1, 8, 8, 8)).astype(np.float32), rtol=1e-4, atol=1e-3
    )
    kinds = [node.get_rt_info()["layerType"].astype(str) for node in layers]
    widths = {kind: [] for kind in kinds}
    for node, kind in zip(layers, kinds):
        widths[kind].append(node.output(0).get_shape()[1])
    assert sorted(widths["Convolution"]) == [1, 32, 32]
    assert widths["Deconvolution"] == [24]
    assert widths["MVN"] == [32]
    assert "Eltwise" not in widths, "bias, scale and shift are part of what they follow"


def test_openvino_convolves_the_scan_itself_in_f32_where_the_rest_is_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 would be off by 1e-2. Where this CPU has none, only that the convolution stays what it is is seen."""
    monkeypatch.setattr(openvino_backend, "has_bf16", lambda: True)
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        [
            helper.make_node(
                "Conv",
                ["image", "stem", "bias"],
                ["out"],
                strides=[2, 1, 2],
                pads=[3, 1, 0, 2, 1, 4],
                dilations=[1, 2, 1],
            )
        ],
        "stem",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, "z", "y", "x"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 24, "z2", "y2", "x2"])],
        [
            numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
            for name, shape in {"stem": (24, 1, 7, 3, 5), "bias": (24,)}.items()
        ],
    )
    window = rng.normal(size=(1, 1, 16, 12, 18)).astype(np.float32)
    (found,) = OpenVinoBackend(model_of(graph), precision="bf16").predict([window])
    (expected,) = open_backend(model_of(graph), "onnxruntime", "cpu")[0].predict([window])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changed", "in_one"),
    [("", True), ("kernel", False), ("gated elsewhere", False), ("spatial stride", False), ("spatial bias", False)],
)
def test_openvinos_head_behind_an_scse_is_gated_behind_its_sums(changed: str, in_one: bool) -> None:
    rng = np.random.default_rng(0)
    node, image, kernel = helper.make_node, ["n", 5, "z", "y", "x"], 3 if changed == "kernel" else 1
    strides = [8] * 3 if changed == "spatial stride" else [1] * 3
    graph = helper.make_graph(
        [
            node("GlobalAveragePool", ["image"], ["mean"]),
            node("Sigmoid", ["mean"], ["channel_gate"]),
            node("Conv", ["image", "spatial"], ["spatial_product"], strides=strides),
            node("Add", ["spatial_product", "spatial_bias"], ["spatial_sum"]),
            node("Sigmoid", ["spatial_sum"], ["spatial_gate"]),
            node("Add", ["channel_gate", "spatial_gate"], ["gates"]),
            node("Mul", ["image", "gates"], ["gated"]),
            node("Conv", ["gated", "head", "bias"], ["sum"], pads=[kernel // 2] * 6),
            node("Add", ["sum", "gated"] if changed == "gated elsewhere" else ["sum", "bias"], ["out"]),
        ],
        "scSE and head",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", "c", "z", "y", "x"])],
        [
            numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
            for name, shape in {
                "spatial": (1, 5, 1, 1, 1),
                "spatial_bias": (1, 5 if changed == "spatial bias" else 1, 1, 1, 1),
                "head": (1, 5, *[kernel] * 3),
                "bias": (1,),
            }.items()
        ],
    )
    layers = layers_that_agree(
        model_of(graph), rng.normal(size=(1, 5, 4, 6, 8)).astype(np.float32), rtol=1e-5, atol=1e-5
    )
    outputs = [list(layer.output(0).get_shape()) for layer in layers if layer.get_output_size()]
    assert ([1, 3, 4, 6, 8] in outputs) == in_one


def test_openvino_gates_the_bundled_model_behind_its_head() -> None:
    model = (files("petseg_runtime") / "models" / BUNDLED_MODEL).read_bytes()
    layers = OpenVinoBackend(model).compiled((1, 1, 32, 32, 32)).get_runtime_model().get_ops()
    outputs = [list(layer.output(0).get_shape()) for layer in layers if layer.get_output_size()]
    assert [1, 3, 32, 32, 32] in outputs


def test_auto_takes_openvino_on_the_cpu_and_says_so(known_model: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has a GPU build of ONNX Runtime")
    backend, choice = open_backend(known_model.read_bytes())
    assert backend.name.startswith("OpenVINO")
    assert "CPU" in choice
    assert "no GPU" in choice


def test_auto_goes_on_without_an_onnx_runtime_that_is_not_whole(
    known_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where both of its wheels were installed, and one was taken away again with the files of the other."""
    monkeypatch.setattr("petseg_runtime.backends.has_gpu_build", lambda: True)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "petseg_runtime.backends.onnxruntime")
    backend, choice = open_backend(known_model.read_bytes())
    assert backend.device == "cpu"
    assert "the GPU does not work: ONNX Runtime is not installed" in choice


def test_a_gpu_that_is_not_there_is_refused(known_model: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has a GPU build of ONNX Runtime")
    with pytest.raises(BackendError, match="CUDAExecutionProvider"):
        open_backend(known_model.read_bytes(), "onnxruntime", "gpu")
    with pytest.raises(BackendError, match="CUDAExecutionProvider"):
        Segmenter(known_model, device="gpu:1")


def test_a_session_that_fell_back_is_refused() -> None:
    check_provider(["CUDAExecutionProvider", "CPUExecutionProvider"], "CUDAExecutionProvider")
    with pytest.raises(BackendError, match="fell back to CPUExecutionProvider"):
        check_provider(["CPUExecutionProvider"], "CUDAExecutionProvider")


class FakeCudaSession:
    """Of an ONNX Runtime for the GPU, with a GPU: computes 0.5, or fails as `fails` says."""

    fails_to_start = fails = ""

    def __init__(self, *_: object, provider_options: list[dict[str, str]], **__: object) -> None:
        type(self).options = provider_options[0]
        if self.fails_to_start:
            raise RuntimeError(self.fails_to_start)

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider"]

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="port", type="tensor(float)")]

    get_outputs = get_inputs

    def io_binding(self) -> SimpleNamespace:
        return SimpleNamespace(
            bind_cpu_input=lambda *_: None, bind_output=lambda _: None, copy_outputs_to_cpu=lambda: [np.float32(0.5)]
        )

    def run_with_iobinding(self, _: object) -> None:
        if self.fails:
            raise RuntimeError(self.fails)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> type[FakeCudaSession]:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", FakeCudaSession)
    monkeypatch.setattr(onnxruntime_backend, "gpu_name", lambda gpu: f"NVIDIA {gpu}")
    monkeypatch.setattr(onnxruntime_backend, "_load_cuda", lambda: None)
    monkeypatch.setattr("petseg_runtime.backends.has_gpu_build", lambda: True)
    for cause in ("fails_to_start", "fails"):
        monkeypatch.setattr(FakeCudaSession, cause, "")
    return FakeCudaSession


def test_the_name_of_cuda_tells_the_gpus_model(cuda: type[FakeCudaSession]) -> None:
    backend, choice = open_backend(b"", window=(8, 8, 8))
    assert backend.name.endswith(", CUDA GPU 0, NVIDIA 0, f32")
    assert "a GPU is present" in choice


@pytest.mark.parametrize(("window", "search"), [((8, 8, 8), "EXHAUSTIVE"), (None, "HEURISTIC")])
@pytest.mark.parametrize("device", ["auto", "gpu"])
def test_cuda_searches_convolutions_for_windows_of_one_size(
    device: str, window: Any, search: str, cuda: type[FakeCudaSession]
) -> None:
    open_backend(b"", device=device, window=window)
    assert cuda.options["cudnn_conv_algo_search"] == search


def test_a_cuda_that_does_not_start_is_quiet_and_told(
    cuda: type[FakeCudaSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    levels: list[int] = []
    monkeypatch.setattr(onnxruntime, "set_default_logger_severity", levels.append)
    cuda.fails_to_start = "nodes are assigned to the CPU,\nbut fallback to CPU EP has been disabled."
    with pytest.raises(BackendError, match=r"GPU 1: CUDA did not start \(.*driver 580 or newer\), or lacks a part"):
        OnnxRuntimeBackend(b"", 1)
    assert levels == [4, 2]
    cuda.fails_to_start = "device 1 is gone."
    with pytest.raises(BackendError, match=r"GPU 1: device 1 is gone\.$"):
        OnnxRuntimeBackend(b"", 1)


def test_auto_passes_over_a_cuda_that_starts_and_does_not_compute(
    cuda: type[FakeCudaSession], known_model: Path
) -> None:
    cuda.fails = "CUDNN_STATUS_EXECUTION_FAILED"
    backend, choice = open_backend(known_model.read_bytes(), window=(16, 16, 16))
    assert backend.device == "cpu"
    assert "the GPU does not work: ONNX Runtime cannot run the model: CUDNN_STATUS_EXECUTION_FAILED)" in choice
    asked, _ = open_backend(b"", device="gpu", window=(16, 16, 16))
    with pytest.raises(BackendError, match="CUDNN_STATUS"):
        next(asked.predict([np.zeros((1, 1, 16, 16, 16), np.float32)]))


def test_an_error_of_onnx_runtime_that_says_nothing_is_named(
    monkeypatch: pytest.MonkeyPatch, known_model: Path
) -> None:
    class Silent(FakeCudaSession):
        def io_binding(self) -> SimpleNamespace:
            raise MemoryError

    backend, _ = open_backend(known_model.read_bytes(), "onnxruntime", "cpu")
    monkeypatch.setattr(backend, "_session", Silent(provider_options=[{}]))
    with pytest.raises(BackendError, match="cannot run the model: MemoryError"):
        next(backend.predict([np.zeros(1, np.float32)]))


def test_the_cuda_libraries_of_pip_are_loaded_once_and_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    onnxruntime_backend._load_cuda.cache_clear()
    monkeypatch.setattr(onnxruntime, "__file__", str(tmp_path / "onnxruntime" / "__init__.py"))
    monkeypatch.setattr(onnxruntime, "cuda_version", "13.0", raising=False)
    for name in ("cu12/lib/libcublas.so.12", "cudnn/lib/libcudnn.so.9", "cu13/lib/libcublas.so.13"):
        (tmp_path / "nvidia" / name).parent.mkdir(parents=True)
        (tmp_path / "nvidia" / name).write_text("no library")
    tried: list[str] = []

    def load(path: str) -> None:
        tried.append(Path(path).name)
        raise OSError(f"{path}: invalid ELF header")

    monkeypatch.setattr(ctypes, "CDLL", load)
    for _ in range(2):
        onnxruntime_backend._load_cuda()
    assert tried == ["libcublas.so.13", "libcudnn.so.9"]
    assert capfd.readouterr() == ("", "")
    onnxruntime_backend._load_cuda.cache_clear()


def test_openvino_has_no_gpu(known_model: Path) -> None:
    with pytest.raises(BackendError, match="runs on the CPU"):
        open_backend(known_model.read_bytes(), "openvino", "gpu")


@pytest.mark.parametrize("device", ["tpu", "gpu:", "gpu:x", "cuda", "GPU", ""])
def test_unknown_devices_are_refused(device: str, known_model: Path) -> None:
    with pytest.raises(BackendError, match="unknown"):
        open_backend(known_model.read_bytes(), "auto", device)


def test_unknown_backends_are_refused(known_model: Path) -> None:
    with pytest.raises(BackendError, match="unknown"):
        open_backend(known_model.read_bytes(), "tensorflow")


@pytest.mark.parametrize("name", BACKENDS)
def test_a_model_the_backend_cannot_load_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="cannot load"):
        open_backend(b"not onnx at all", name, "cpu")


def test_no_threads_are_refused(known_model: Path) -> None:
    with pytest.raises(UsageError, match="threads"):
        Segmenter(known_model, threads=0)
