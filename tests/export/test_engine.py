"""TensorRT engines: built for real without a GPU, refused where they do not fit, and run where a GPU is lent."""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from conftest import REPOSITORY, body_array
from onnx import numpy_helper
from petseg_export.precision import to_mixed_fp16
from petseg_export.to_engine import build_engine
from petseg_export.to_onnx import write_model
from petseg_export.verify import compare, segmenters_of

from petseg_runtime import Segmenter, read_volume
from petseg_runtime.backends import has_gpu_build, open_backend
from petseg_runtime.backends.tensorrt import TensorRtBackend, check_fit
from petseg_runtime.commissioning import examine, unpack
from petseg_runtime.engine import PORTABLE, EngineFile, EngineInfo, check_origin, engine_content, read_engine
from petseg_runtime.errors import BackendError, CancelledError, ModelError, UsageError
from petseg_runtime.manifest import read_model
from petseg_runtime.preprocessing import preprocess
from petseg_runtime.segmenter import BUNDLED_MODEL
from petseg_runtime.self_test import candidates
from petseg_runtime.volume import Geometry, Volume
from petseg_train.networks import ResidualScseUNet

BUNDLED = Path(str(files("petseg_runtime") / "models" / BUNDLED_MODEL))


def has_gpu() -> bool:
    try:
        from petseg_runtime.backends.gpu import compute_capability

        compute_capability(0)
    except BackendError:
        return False
    return True


pytest.importorskip("tensorrt_rtx", reason="the extra `engine` is not installed")
without_gpu = pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")


@pytest.fixture(scope="module")
def engine_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model's engine for every GPU that one engine can serve, beside a copy of the model."""
    folder = tmp_path_factory.mktemp("engine")
    shutil.copy(BUNDLED, folder / "model.onnx")
    phases = []
    build_engine(folder / "model.onnx", folder / "model.engine", progress=lambda *step: phases.append(step))
    assert phases
    assert all(0 <= done <= count for _, done, count in phases)
    return folder / "model.engine"


def test_one_engine_serves_ampere_ada_and_blackwell(engine_file: Path) -> None:
    engine = read_engine(engine_file)
    assert engine.info.compute_capabilities == PORTABLE == ("8.0", "8.6", "8.9", "12.0")
    assert (engine.info.flavour, engine.info.precision) == ("tensorrt_rtx", "f32")
    assert engine.manifest == read_model(BUNDLED).manifest
    assert engine.info.onnx_sha256 == read_model(BUNDLED).sha256
    assert len(engine.engine) > 1_000_000


@pytest.mark.parametrize(
    ("capabilities", "precision"), [(["7.5"], "fp16"), (["8.6"], "fp16")], ids=["Turing", "Ampere"]
)
def test_engines_in_mixed_precision_are_built(capabilities: list[str], precision: str, tmp_path: Path) -> None:
    info = build_engine(BUNDLED, tmp_path / "small.engine", "tensorrt_rtx", precision, capabilities)
    assert list(info.compute_capabilities) == capabilities
    assert read_engine(tmp_path / "small.engine").info == info


@pytest.mark.parametrize("turing", [False, True])
def test_mixed_precision_keeps_sums_and_head_in_f32(turing: bool) -> None:
    """By the graph itself: what feeds a norm, a mean and the last sigmoid comes through a cast to float32."""
    graph = onnx.load_from_string(to_mixed_fp16(BUNDLED.read_bytes(), turing)).graph
    made_by = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.op_type in ("InstanceNormalization", "ReduceMean"):
            feeding = made_by[node.input[0]]
            assert feeding.op_type == "Cast"
            assert feeding.attribute[0].i == onnx.TensorProto.FLOAT
    constants = {tensor.name: tensor.data_type for tensor in graph.initializer}
    exact = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(BUNDLED).graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert all(constants[node.input[1]] == onnx.TensorProto.FLOAT16 for node in convolutions[:-1])
    head = onnx.TensorProto.FLOAT16 if turing else onnx.TensorProto.FLOAT
    assert constants[convolutions[-1].input[1]] == head
    kept = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.data_type == 1}
    for name, values in kept.items():  # not rounded on the way
        np.testing.assert_array_equal(values, exact[name.removesuffix("_cast_to_fp32")])
    assert (
        graph.input[0].type.tensor_type.elem_type
        == graph.output[0].type.tensor_type.elem_type
        == onnx.TensorProto.FLOAT
    )


@pytest.mark.parametrize("turing", [False, True])
def test_mixed_precision_hardly_moves_a_probability(turing: bool) -> None:
    """On the CPU, which rounds to fp16 where the graph says so; on a window with the example's tumour and bladder."""
    manifest = read_model(BUNDLED).manifest
    depth, height, width = manifest.patch_size
    scan = preprocess(read_volume(REPOSITORY / "examples" / "pelvis.nii.gz"), manifest.preprocessing)
    window = np.full((1, 1, *manifest.patch_size), scan.air, dtype=np.float32)
    shown = scan.array[:depth, :height, :width]
    window[0, 0, : shown.shape[0], : shown.shape[1], : shown.shape[2]] = shown
    exact, mixed = (
        next(open_backend(model, "onnxruntime", "cpu")[0].predict([window]))
        for model in (BUNDLED.read_bytes(), to_mixed_fp16(BUNDLED.read_bytes(), turing))
    )
    assert exact.max() > 0.9
    np.testing.assert_allclose(mixed, exact, atol=5e-3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"compute_capabilities": ["9.0"]}, "9.0 has no engine .* --flavour tensorrt"),
        ({"compute_capabilities": ["7.5"]}, "Turing .* fp16"),
        ({"compute_capabilities": ["7.5", "8.6"], "precision": "fp16"}, "Turing .* of its own"),
        ({"precision": "int8"}, "precision int8"),
        ({"flavour": "openvino"}, "Flavour openvino"),
        ({"max_batch": 0}, "batch 0"),
        ({"max_batch": 3_000_000_000}, "1 to 256"),
    ],
)
def test_what_cannot_be_built_is_refused(arguments: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        build_engine(BUNDLED, tmp_path / "no.engine", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_classic_tensorrt_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"tensorrt is not installed|no NVIDIA GPU"):
        build_engine(BUNDLED, tmp_path / "no.engine", flavour="tensorrt")


def test_a_graph_that_tensorrt_does_not_know_is_refused(known_model: Path, tmp_path: Path) -> None:
    model = onnx.load(known_model)
    model.graph.node[2].op_type = "Sigmold"
    from petseg_runtime.manifest import MANIFEST_KEY, ModelManifest, graph_sha256

    (entry,) = (entry for entry in model.metadata_props if entry.key == MANIFEST_KEY)
    manifest = ModelManifest.from_json(entry.value)
    entry.value = replace(manifest, weights_sha256=graph_sha256(model.SerializeToString())).to_json()
    (tmp_path / "odd.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="cannot parse"):
        build_engine(tmp_path / "odd.onnx", tmp_path / "odd.engine")


@pytest.mark.parametrize(
    ("method", "refusal", "says"),
    [
        ("add_optimization_profile", -1, "windows of .* to .*: no reason given"),
        ("set_compute_capability", False, r"GPUs of 8\.6: no reason given"),
    ],
)
def test_what_the_builder_does_not_take_is_refused(
    method: str, refusal: object, says: str, known_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorrt_rtx

    monkeypatch.setattr(tensorrt_rtx.IBuilderConfig, method, lambda *_: refusal)
    with pytest.raises(ModelError, match=f"cannot build for {says}"):
        build_engine(known_model, tmp_path / "no.engine", compute_capabilities=["8.6"])


# --- refused ---------------------------------------------------------------------------------------------------


def test_a_changed_engine_is_refused(engine_file: Path, tmp_path: Path) -> None:
    content = engine_file.read_bytes()
    engine = bytearray(content)
    engine[-1000] ^= 1
    (tmp_path / "bad.engine").write_bytes(engine)
    with pytest.raises(ModelError, match=r"damaged.*petseg-export engine"):
        read_engine(tmp_path / "bad.engine")
    assert content.count(b'"threshold": 0.5') == 1
    (tmp_path / "bad.engine").write_bytes(content.replace(b'"threshold": 0.5', b'"threshold": 0.4'))
    with pytest.raises(ModelError, match=r"damaged.*petseg-export engine"):
        read_engine(tmp_path / "bad.engine")


@pytest.mark.parametrize("keep", [0, 10, 20, 100, 5000])
def test_a_truncated_engine_is_refused(keep: int, engine_file: Path, tmp_path: Path) -> None:
    (tmp_path / "short.engine").write_bytes(engine_file.read_bytes()[:keep])
    with pytest.raises(ModelError, match="petseg-export engine"):
        read_engine(tmp_path / "short.engine")


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "foreign.engine").write_bytes(BUNDLED.read_bytes())
    with pytest.raises(ModelError, match="not an engine file"):
        Segmenter(tmp_path / "foreign.engine")
    with pytest.raises(ModelError, match="cannot be read"):
        Segmenter(tmp_path / "absent.engine")


def test_a_header_nested_too_deep_is_refused(engine_file: Path, tmp_path: Path) -> None:
    magic, header = engine_file.read_bytes()[:16], b"[" * 200_000
    (tmp_path / "deep.engine").write_bytes(magic + len(header).to_bytes(8, "big") + header)
    with pytest.raises(ModelError, match="header that cannot be read"):
        read_engine(tmp_path / "deep.engine")


@pytest.mark.parametrize("change", [{"precision": "int4"}, {"flavour": "cudnn"}, {"max_batch": 0}], ids=str)
def test_a_header_of_another_version_is_refused(change: dict, engine_file: Path, tmp_path: Path) -> None:
    engine = read_engine(engine_file)
    content = engine_content(engine.engine, replace(engine.info, **change), engine.manifest)
    (tmp_path / "odd.engine").write_bytes(content)
    with pytest.raises(ModelError, match="header that cannot be read"):
        read_engine(tmp_path / "odd.engine")


def test_an_engine_of_another_version_or_gpu_is_refused_with_the_command(engine_file: Path) -> None:
    engine = read_engine(engine_file)
    check_fit(engine, engine.info.version, "8.6", "NVIDIA RTX A4000")
    with pytest.raises(ModelError, match=r"here is 99\.0.*petseg-export engine MODEL\.onnx --precision f32$"):
        check_fit(engine, "99.0", "8.6", "NVIDIA RTX A4000")
    with pytest.raises(ModelError, match=r"8\.0, 8\.6, 8\.9, 12\.0, here is 9\.0.*--flavour tensorrt$"):
        check_fit(engine, engine.info.version, "9.0", "NVIDIA H100")
    classic = replace(engine, info=replace(engine.info, gpu="NVIDIA H100"))
    with pytest.raises(ModelError, match="is for NVIDIA H100, here is NVIDIA RTX A4000"):
        check_fit(classic, engine.info.version, "8.6", "NVIDIA RTX A4000")


@pytest.mark.parametrize(
    ("change", "capability", "options"),
    [
        ({}, None, ""),
        ({}, "8.6", " --compute-capability 8.6"),
        ({}, "12.1", " --compute-capability 12.1"),
        ({}, "9.0", " --flavour tensorrt"),
        ({}, "10.3", " --flavour tensorrt"),
        ({"compute_capabilities": ("8.6", "12.1")}, None, " --compute-capability 8.6 --compute-capability 12.1"),
        ({"compute_capabilities": ("9.0",), "flavour": "tensorrt"}, None, " --flavour tensorrt"),
        ({"compute_capabilities": ("9.0",), "flavour": "tensorrt"}, "8.6", " --flavour tensorrt"),
    ],
    ids=str,
)
def test_the_command_that_rebuilds_an_engine_fits_the_gpu(
    change: dict, capability: str | None, options: str, engine_file: Path
) -> None:
    said = replace(read_engine(engine_file).info, **change).rebuild(capability)
    assert said.endswith(f" --precision f32{options}")


def test_the_command_for_turing_is_one_that_turing_takes(engine_file: Path) -> None:
    info = read_engine(engine_file).info
    turing = replace(info, compute_capabilities=("7.5",), precision="fp16")
    assert (
        info.rebuild("7.5").split(" MODEL.onnx ")[1]
        == turing.rebuild().split(" MODEL.onnx ")[1]
        == "--precision fp16 --compute-capability 7.5"
    )


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_an_engine_of_another_precision_than_asked_is_refused(
    precision: str, engine_file: Path, tmp_path: Path
) -> None:
    engine = read_engine(engine_file)
    content = engine_content(engine.engine, replace(engine.info, precision="fp16"), engine.manifest)
    shutil.copy(engine_file.with_suffix(".onnx"), tmp_path / "model.onnx")
    (tmp_path / "model.engine").write_bytes(content)
    said = f"The engine computes in fp16, not {precision}"
    with pytest.raises(BackendError, match=said):
        Segmenter(tmp_path / "model.engine", precision=precision)
    with pytest.raises(BackendError, match=said):
        Segmenter(tmp_path / "model.onnx", backend="tensorrt", precision=precision)
    if precision == "f32":
        assert f"left alone: {said}" in Segmenter(tmp_path / "model.onnx", precision=precision).choice


def test_a_stale_engine_does_not_keep_the_other_backends_from_the_self_test(engine_file: Path, tmp_path: Path) -> None:
    model = read_model(BUNDLED)
    shutil.copy(BUNDLED, tmp_path / "model.onnx")
    engine = read_engine(engine_file)
    stale = engine_content(engine.engine, replace(engine.info, onnx_sha256="0" * 64), engine.manifest)
    (tmp_path / "model.engine").write_bytes(stale)
    openings = list(candidates(model, tmp_path / "model.onnx", None))
    with pytest.raises(ModelError, match="another model"):
        openings[-1]()
    assert len(openings) > 2


def test_an_engine_of_another_model_is_stale(engine_file: Path, known_model: Path) -> None:
    check_origin(read_engine(engine_file), read_model(BUNDLED))
    with pytest.raises(ModelError, match="another model"):
        check_origin(read_engine(engine_file), read_model(known_model))


@without_gpu
def test_an_engine_without_a_gpu_is_refused(engine_file: Path) -> None:
    for device in ("auto", "gpu"):
        with pytest.raises(BackendError, match="no NVIDIA GPU"):
            Segmenter(engine_file, device=device)
    with pytest.raises(BackendError, match=r"pass the \.onnx file"):
        Segmenter(engine_file, device="cpu")
    with pytest.raises(BackendError, match="cannot run an engine"):
        Segmenter(engine_file, backend="openvino")


@without_gpu
def test_auto_says_why_it_did_not_take_the_engine_beside_the_model(engine_file: Path) -> None:
    segmenter = Segmenter(engine_file.with_suffix(".onnx"))
    assert segmenter.device == "cpu"
    assert "TensorRT does not work: There is no NVIDIA GPU" in segmenter.choice
    with pytest.raises(BackendError, match="no NVIDIA GPU"):
        Segmenter(engine_file.with_suffix(".onnx"), backend="tensorrt")


def test_a_stale_engine_beside_the_model_is_left_alone_and_said(
    engine_file: Path, known_model: Path, tmp_path: Path
) -> None:
    shutil.copy(known_model, tmp_path / "known.onnx")
    shutil.copy(engine_file, tmp_path / "known.engine")
    segmenter = Segmenter(tmp_path / "known.onnx")
    assert "left alone: The engine was built from another model" in segmenter.choice
    with pytest.raises(ModelError, match="another model"):
        Segmenter(tmp_path / "known.onnx", backend="tensorrt")


def test_tensorrt_without_an_engine_says_how_to_build_one(known_model: Path) -> None:
    with pytest.raises(ModelError, match=r"petseg-export engine MODEL\.onnx"):
        open_backend(known_model.read_bytes(), "tensorrt")


def test_the_command_builds_and_tells(known_model: Path, tmp_path: Path) -> None:
    from petseg_export.cli import app
    from typer.testing import CliRunner

    shutil.copy(known_model, tmp_path / "known.onnx")
    done = CliRunner().invoke(app, ["engine", str(tmp_path / "known.onnx"), "--compute-capability", "8.9"])
    assert done.exit_code == 0
    assert "compute capability 8.9" in done.output
    info = read_engine(tmp_path / "known.engine").info
    assert json.loads(json.dumps(list(info.compute_capabilities))) == ["8.9"]
    assert isinstance(info, EngineInfo)


@pytest.mark.parametrize("name", ["known.onnx", "scan.nii.gz", "null"])
def test_an_engine_goes_over_nothing_but_an_engine(name: str, known_model: Path, tmp_path: Path) -> None:
    """The model itself least of all: it may be the only one there is."""
    model = Path(shutil.copy(known_model, tmp_path / "known.onnx"))
    (tmp_path / "scan.nii.gz").write_bytes(b"a scan")
    (tmp_path / "null").symlink_to(os.devnull)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match=r"does not end in \.engine"):
        build_engine(model, tmp_path / name)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_device_is_no_file_to_write_an_engine_to(known_model: Path, tmp_path: Path) -> None:
    from petseg_export.cli import app
    from typer.testing import CliRunner

    os.mkfifo(tmp_path / "known.engine")
    done = CliRunner().invoke(app, ["engine", str(known_model), "-o", str(tmp_path / "known.engine")])
    assert isinstance(done.exception, UsageError)
    assert "known.engine is no file" in str(done.exception)


def test_a_build_that_is_interrupted_ends_and_leaves_nothing(known_model: Path, tmp_path: Path) -> None:
    """What Ctrl-C raises in a callback of the builder is swallowed there: the build went on, and ended with 0."""
    asked = []

    def interrupt(*_: object) -> None:
        if not asked:
            asked.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where the tests run in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            build_engine(known_model, tmp_path / "known.engine", progress=interrupt)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(tmp_path.iterdir()) == []


def test_what_the_progress_raises_ends_the_build(known_model: Path, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="the terminal is gone"):
        build_engine(known_model, tmp_path / "known.engine", progress=fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("turing", [False, True])
def test_a_graph_in_mixed_precision_is_valid_onnx(turing: bool) -> None:
    """Its nodes stand in the order in which they read each other."""
    onnx.checker.check_model(onnx.load_from_string(to_mixed_fp16(BUNDLED.read_bytes(), turing)))


# --- what surrounds CUDA, with a CUDA that is not one ------------------------------------------------------------


class FakeSlot:
    """Adds 1 to a window; stands for stream, context and buffers. Refuses a window of NaN, as a GPU that fails."""

    room = 4

    def __init__(self, *_: object) -> None:
        type(self).room -= 1
        if self.room < 0:
            raise RuntimeError("CUDA_ERROR_OUT_OF_MEMORY")

    def start(self, window: np.ndarray) -> None:
        if np.isnan(window).any():
            raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS")
        self.window = window

    def wait(self) -> None:
        pass

    def result(self) -> np.ndarray:
        return self.window + 1

    def close(self) -> None:
        type(self).room += 1


@pytest.fixture
def fake_gpu(engine_file: Path, monkeypatch: pytest.MonkeyPatch) -> EngineFile:
    """A GPU with room for four slots, and TensorRT for it."""
    engine, backend = read_engine(engine_file), "petseg_runtime.backends.tensorrt"
    device = SimpleNamespace(name="Fake")
    cuda_engine = SimpleNamespace(
        num_io_tensors=2,
        get_tensor_name=lambda index: ("image", "probabilities")[index],
        get_tensor_mode=lambda name: name == "image",
        get_tensor_dtype=lambda _: "float32",
        create_execution_context=lambda *_: object(),
    )
    trt = SimpleNamespace(
        __version__=engine.info.version,
        ILogger=type("ILogger", (), {}),
        Runtime=lambda _: SimpleNamespace(deserialize_cuda_engine=lambda _: cuda_engine),
        TensorIOMode=SimpleNamespace(INPUT=True),
        float32="float32",
    )
    monkeypatch.setattr(f"{backend}.current", lambda _: nullcontext(device))
    monkeypatch.setattr(f"{backend}.compute_capability", lambda _: "8.6")
    monkeypatch.setattr(f"{backend}.gpu_name", lambda _: "Fake")
    monkeypatch.setattr(f"{backend}._module", lambda _: trt)
    monkeypatch.setattr(f"{backend}._Slot", FakeSlot)
    monkeypatch.setattr(FakeSlot, "room", 4)
    return engine


def test_an_engine_whose_tensors_are_not_float32_is_refused(fake_gpu: EngineFile, monkeypatch) -> None:
    from petseg_runtime.backends import tensorrt

    monkeypatch.setattr(tensorrt._module("tensorrt_rtx"), "float32", "of another size")
    with pytest.raises(ModelError, match="image, probabilities is not float32"):
        TensorRtBackend(fake_gpu)


WINDOWS = [np.full((1, 1, 2, 2, 2), number, np.float32) for number in range(7)]


def test_windows_keep_their_order_and_slots_are_used_again(fake_gpu: EngineFile) -> None:
    with TensorRtBackend(fake_gpu) as backend:
        for _ in range(5):  # and a thread for each scan takes no more
            with ThreadPoolExecutor(1) as pool:
                found = pool.submit(lambda: list(backend.predict(WINDOWS))).result()
            np.testing.assert_array_equal(np.stack(found), np.stack(WINDOWS) + 1)
        stopped = backend.predict(WINDOWS)
        next(stopped)
        stopped.close()
        assert FakeSlot.room == 2
        one, other = backend.predict(WINDOWS), backend.predict(WINDOWS)  # two scans at once, in one thread
        for window in WINDOWS:
            np.testing.assert_array_equal(next(one), window + 1)
            np.testing.assert_array_equal(next(other), window + 1)
        with pytest.raises(BackendError, match="no room"):
            next(backend.predict(WINDOWS))
    del one, other


def test_what_fails_on_the_gpu_is_a_backend_error_and_its_slots_are_not_used_again(fake_gpu: EngineFile) -> None:
    backend = TensorRtBackend(fake_gpu)
    with pytest.raises(BackendError, match="cannot run the model on GPU 0: CUDA_ERROR_ILLEGAL_ADDRESS"):
        list(backend.predict([WINDOWS[0], WINDOWS[0] * np.nan]))
    assert FakeSlot.room == 4
    assert len(list(backend.predict(WINDOWS))) == len(WINDOWS)


def test_auto_passes_over_a_gpu_without_room(fake_gpu: EngineFile, engine_file: Path, monkeypatch) -> None:
    monkeypatch.setattr(FakeSlot, "room", 1)
    segmenter = Segmenter(engine_file.with_suffix(".onnx"))
    assert segmenter.device == "cpu"
    assert "GPU 0 has no room for the model: CUDA_ERROR_OUT_OF_MEMORY" in segmenter.choice


def test_auto_passes_over_a_gpu_that_fails_as_it_computes(fake_gpu: EngineFile, engine_file: Path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(FakeSlot, "start", fail)
    segmenter = Segmenter(engine_file.with_suffix(".onnx"))
    assert segmenter.device == "cpu"
    assert "TensorRT does not work: TensorRT cannot run the model on GPU 0: no kernel image" in segmenter.choice


def test_an_engine_whose_precision_was_not_tested_here_is_left_alone(
    fake_gpu: EngineFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    shutil.copy(BUNDLED, tmp_path / "model.onnx")
    content = engine_content(fake_gpu.engine, replace(fake_gpu.info, precision="fp16"), fake_gpu.manifest)
    (tmp_path / "model.engine").write_bytes(content)
    held = []

    def open_and_look(*arguments: object, **options: object) -> object:
        held.append(any(isinstance(one, TensorRtBackend) and one.name.endswith("fp16") for one in gc.get_objects()))
        return open_backend(*arguments, **options)

    monkeypatch.setattr("petseg_runtime.segmenter.open_backend", open_and_look)
    segmenter = Segmenter(tmp_path / "model.onnx")
    assert held == [False, False], "what was rejected is gone before another backend takes memory"
    assert segmenter.device == "cpu"
    assert "left alone: tensorrt_rtx" in segmenter.choice
    assert "fp16 has not passed this model's self-test" in segmenter.choice
    with pytest.raises(BackendError, match="fp16 has not passed"):
        Segmenter(tmp_path / "model.onnx", backend="tensorrt")


# --- on a GPU --------------------------------------------------------------------------------------------------


@pytest.fixture
def own_engine(tmp_path: Path) -> Callable[[str], Path]:
    """Builds the bundled model's engine for this machine's GPU, in a precision."""
    from petseg_runtime.backends.gpu import compute_capability

    def build(precision: str) -> Path:
        here = compute_capability(0)
        flavour = "tensorrt_rtx" if here in PORTABLE else "tensorrt"
        if importlib.util.find_spec(flavour) is None:
            pytest.skip(f"a GPU of {here} takes {flavour}, which is not installed")
        build_engine(BUNDLED, tmp_path / "own.engine", flavour, precision, [here])
        return tmp_path / "own.engine"

    return build


@without_gpu
def test_verify_says_why_an_engine_is_left_out(engine_file: Path) -> None:
    segmenters, (reason,) = segmenters_of(engine_file.with_suffix(".onnx"))
    assert all("tensorrt" not in segmenter.backend_name for segmenter in segmenters)
    assert "GPU" in reason


def test_an_engine_of_a_model_whose_windows_fit_the_body_is_built(tmp_path: Path) -> None:
    manifest = replace(read_model(BUNDLED).manifest, patch_size=(32, 32, 32), fit_multiple=16)
    network = ResidualScseUNet(base_filters=4).eval()
    write_model(network, manifest, tmp_path / "fits.onnx")
    info = build_engine(tmp_path / "fits.onnx", tmp_path / "fits.engine", compute_capabilities=["8.6"])
    assert read_engine(tmp_path / "fits.engine").info == info


@pytest.fixture
def scan() -> Volume:
    return Volume(body_array((60, 40, 50)), Geometry((60, 40, 50), (4.0, 4.0, 4.0)))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["f32", "fp16"])
def test_the_gpu_gives_the_masks_of_the_cpu(precision: str, own_engine: Callable[[str], Path]) -> None:
    """By the tolerances of `verify`: in fp16 single voxels on an edge may be far off, so the masks decide."""
    backend = TensorRtBackend(read_engine(own_engine(precision)))
    gpu = Segmenter.from_backend(read_model(BUNDLED).manifest, backend)
    cpu = Segmenter(BUNDLED, "cpu", "onnxruntime")
    (agreement,) = compare([cpu, gpu], read_volume(REPOSITORY / "examples" / "pelvis.nii.gz", unit="suvbw"), "pelvis")
    assert agreement.within_tolerance, agreement


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["f32", "fp16"])
def test_an_engine_passes_the_models_self_test(precision: str, own_engine: Callable[[str], Path]) -> None:
    model = read_model(BUNDLED)
    with TensorRtBackend(read_engine(own_engine(precision))) as backend:
        expected = unpack(model.results, model.manifest.patch_size)
        outcome = examine(backend.name, backend.predict, expected, model.manifest)
    assert outcome.passed, outcome


@pytest.mark.gpu
def test_auto_takes_the_engine_and_says_so_and_prints_nothing(
    own_engine: Callable[[str], Path], scan: Volume, capfd: pytest.CaptureFixture[str]
) -> None:
    engine = own_engine("f32")
    shutil.copy(BUNDLED, engine.with_suffix(".onnx"))
    capfd.readouterr()
    segmenter = Segmenter(engine.with_suffix(".onnx"))
    segmenter.segment(scan)
    assert segmenter.device == "gpu:0"
    assert segmenter.choice.startswith(f"Runs on {read_engine(engine).info.flavour} ")
    assert "an engine and a GPU fit" in segmenter.choice
    assert capfd.readouterr().out == ""


@pytest.mark.gpu
def test_an_engine_that_tensorrt_refuses_is_told_and_not_printed(
    own_engine: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    engine = read_engine(own_engine("f32"))
    capfd.readouterr()
    with pytest.raises(ModelError, match=r"TensorRT refuses the engine on GPU 0: (?!no reason).*Rebuild it"):
        TensorRtBackend(replace(engine, engine=b"no engine" * 100))
    assert capfd.readouterr().out == ""


@pytest.mark.gpu
def test_scans_take_no_more_memory_than_the_first(own_engine: Callable[[str], Path], scan: Volume) -> None:
    from cuda.bindings import driver

    from petseg_runtime.backends.gpu import current

    def free() -> int:
        with current(0):
            return int(driver.cuMemGetInfo()[1])

    backend = TensorRtBackend(read_engine(own_engine("f32")))
    segmenter = Segmenter.from_backend(read_model(BUNDLED).manifest, backend)
    segmenter.segment(scan)
    after_one = free()
    for _ in range(20):
        segmenter.segment(scan)
    assert after_one - free() < 2**24  # what others do on the GPU is not ours


@pytest.mark.gpu
def test_a_scan_that_is_cancelled_leaves_the_next_one_right(own_engine: Callable[[str], Path], scan: Volume) -> None:
    segmenter = Segmenter.from_backend(read_model(BUNDLED).manifest, TensorRtBackend(read_engine(own_engine("f32"))))
    expected, cancel = segmenter.segment(scan, overlap=0.75).probabilities, Event()
    with pytest.raises(CancelledError):
        segmenter.segment(scan, lambda *_: cancel.set(), overlap=0.75, cancel=cancel)
    np.testing.assert_array_equal(segmenter.segment(scan, overlap=0.75).probabilities, expected)


@pytest.mark.gpu
def test_cuda_through_onnx_runtime_gives_the_probabilities_of_the_cpu() -> None:
    if not has_gpu_build():
        pytest.skip("onnxruntime-gpu is not installed in place of onnxruntime")
    geometry = Geometry((40, 60, 60), (4.0, 4.0, 4.0))
    volume = Volume(body_array(geometry.shape), geometry)
    cpu, gpu = (Segmenter(BUNDLED, device, "onnxruntime").segment(volume) for device in ("cpu", "gpu"))
    np.testing.assert_allclose(gpu.probabilities, cpu.probabilities, atol=1e-3)


@pytest.mark.gpu
def test_threads_share_an_engine_and_windows_keep_their_order(own_engine: Callable[[str], Path]) -> None:
    file = own_engine("f32")
    engine = read_engine(file)
    windows = [np.full((1, 1, *engine.manifest.patch_size), value, np.float32) for value in np.linspace(-1, 3, 9)]
    with TensorRtBackend(engine, 0, file.parent) as backend:
        alone = list(backend.predict(windows))
        if engine.info.flavour == "tensorrt_rtx":
            assert list(file.parent.glob("*.compiled"))  # for the next start
        with ThreadPoolExecutor(4) as pool:
            for together in pool.map(lambda _: list(backend.predict(windows)), range(8)):
                for one, other in zip(alone, together, strict=True):
                    np.testing.assert_array_equal(one, other)
