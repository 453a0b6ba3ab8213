"""The self-test: the same windows everywhere, what fails is refused, reduced precision only where it passed."""

from __future__ import annotations

import base64
import hashlib
import json
import tracemalloc
import zlib
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import body_array
from petseg_export.to_onnx import with_results
from runtime.test_cli import SMALL, save

from petseg_runtime.cli import main
from petseg_runtime.commissioning import (
    Outcome,
    Record,
    examine,
    kept,
    machine,
    new_record,
    pack,
    self_test_windows,
    unpack,
)
from petseg_runtime.errors import BackendError, ModelError, UsageError
from petseg_runtime.manifest import RESULTS_KEY, ModelManifest, read_model
from petseg_runtime.segmenter import BUNDLED_MODEL, Segmenter
from petseg_runtime.self_test import keep

PATCH, SPACING = (16, 16, 16), (2.0, 4.0, 4.0)  # of the known model


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state/petseg"


@pytest.fixture
def tested_model(known_model: Path, tmp_path: Path) -> Path:
    """The known model with its results in it."""
    model = read_model(known_model)
    path = tmp_path / "tested.onnx"
    path.write_bytes(with_results(model.content, model.manifest))
    return path


def outcome(name: str, passed: bool) -> Outcome:
    return Outcome(name, 0.0 if passed else 0.5, 0.0 if passed else 0.1, 1.0 if passed else 0.5)


def test_the_windows_are_the_same_to_the_last_bit_on_every_machine() -> None:
    """The digest was computed once; a library that changed the windows would fail every model in the field."""
    digest = hashlib.sha256()
    for window in self_test_windows((64, 64, 64), SPACING):
        assert window.shape == (1, 1, 64, 64, 64)
        assert window.dtype == np.float32
        digest.update(window.tobytes())
    assert digest.hexdigest() == "82c96f6d18ac6d784adad97d2e9222834e64d679d88d89d7316712866b677195"


def test_the_windows_hold_organs_of_one_size_whatever_the_grid() -> None:
    for fine, coarse in zip(
        self_test_windows((64, 64, 64), (2.0, 4.0, 4.0)), self_test_windows((32,) * 3, (4.0, 8.0, 8.0))
    ):
        hot = (fine > 4).sum() / (coarse > 4).sum()
        assert hot == pytest.approx(8, rel=0.05)


def test_the_bundled_model_is_sure_of_what_it_marks_in_the_windows() -> None:
    """Else masks that are right in any precision would differ by their uncertain voxels, and the test tell little."""
    with as_file(files("petseg_runtime") / "models" / BUNDLED_MODEL) as path:
        model = read_model(path)
    for probabilities in unpack(model.results, model.manifest.patch_size):
        marked = (probabilities >= model.manifest.threshold).sum()
        assert marked > 1000
        assert (np.abs(probabilities - model.manifest.threshold) < 0.02).sum() < 0.03 * marked


def test_results_survive_the_model_file(tested_model: Path, known_model: Path) -> None:
    model = read_model(tested_model)
    assert model.manifest == read_model(known_model).manifest
    for window, stored in zip(self_test_windows(PATCH, SPACING), unpack(model.results, PATCH), strict=True):
        np.testing.assert_allclose(stored, 1 / (1 + np.exp(-10 * (window - 2.0))), atol=3e-4)


@pytest.mark.parametrize("cut", [1, 4, 5, 100])
def test_results_that_are_cut_short_are_refused(cut: int) -> None:
    packed = base64.b64decode(pack([np.full((1, 1, *PATCH), 0.25, np.float32)] * 3))
    with pytest.raises(ModelError, match="damaged"):
        unpack(base64.b64encode(packed[: -min(cut, len(packed) - 1)]).decode(), PATCH)


@pytest.mark.parametrize("text", ["", "no base64 !", pack([np.zeros((1, 1, 8, 8, 8), np.float32)] * 3)])
def test_damaged_results_are_refused(text: str) -> None:
    with pytest.raises(ModelError, match="damaged"):
        unpack(text, PATCH)


def test_results_that_unpack_to_more_than_the_windows_hold_are_refused_without_unpacking_them() -> None:
    bomb = base64.b64encode(zlib.compress(bytes(100_000_000), 9)).decode()
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match="damaged"):
            unpack(bomb, PATCH)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("precision", "error", "passed"),
    [("f32", 0.0, True), ("f32", 1e-3, True), ("f32", 4e-3, False), ("bf16", 4e-4, True), ("bf16", 2e-3, False)],
)
def test_tolerances(precision: str, error: float, passed: bool, manifest: ModelManifest) -> None:
    expected = [np.full((1, 1, *PATCH), 0.2, np.float32)] * 3
    expected[0][..., :8] = 0.8
    found = examine(
        f"x {precision}", lambda windows: (expected[0] + np.float32(error) for _ in windows), expected, manifest
    )
    assert found.largest_difference == pytest.approx(error, abs=1e-6)
    assert found.passed is passed


@pytest.mark.parametrize(("precision", "passed"), [("f32", True), ("bf16", False), ("fp16", False)])
def test_a_reduced_precision_does_not_pass_on_windows_without_a_mask(
    precision: str, passed: bool, manifest: ModelManifest
) -> None:
    """Its mean difference is small where all is near zero, whatever it computes: the mask would have to tell."""
    expected = [np.full((1, 1, *PATCH), 5e-4, np.float32)] * 3
    found = examine(f"x {precision}", lambda _: iter([np.zeros_like(part) for part in expected]), expected, manifest)
    assert np.isnan(found.dsc)
    assert found.passed is passed


def test_a_mask_that_moved_fails_in_any_precision(manifest: ModelManifest) -> None:
    expected = [np.zeros((1, 1, *PATCH), np.float32)] * 3
    for window in expected:
        window[..., :2] = 0.9
    moved = [np.roll(window, 1, axis=-1) for window in expected]
    found = examine("x bf16", lambda _: iter(moved), expected, manifest)
    assert found.dsc == pytest.approx(0.5)
    assert not found.passed


@pytest.mark.parametrize("window", [0, 1, 2])
def test_a_probability_that_is_no_number_fails_and_is_null_in_the_record(
    window: int, state: Path, manifest: ModelManifest
) -> None:
    expected = [np.full((1, 1, *PATCH), 0.2, np.float32) for _ in range(3)]
    broken = [part.copy() for part in expected]
    broken[window][..., 0] = np.nan
    found = examine("x f32", lambda _: iter(broken), expected, manifest)
    assert not found.passed
    record = new_record("ab" * 32, [found])
    text = keep(record).read_text()
    assert json.loads(text, parse_constant=pytest.fail)["outcomes"][0]["largest_difference"] is None
    again = kept("ab" * 32)
    assert again is not None
    assert again.passed("x f32") is False


def test_a_machine_without_a_backend_is_not_commissioned(tested_model: Path, state: Path, monkeypatch, capsys) -> None:
    def none(*_: object) -> None:
        raise BackendError("It is not there.")

    monkeypatch.setattr("petseg_runtime.self_test.candidates", lambda *_: [none])
    assert main(["--self-test", "-m", str(tested_model)]) == 5
    assert "It is not there." in capsys.readouterr().err
    assert not state.exists()


def test_threads_of_the_self_test_are_counted_from_one(tested_model: Path, capsys) -> None:
    assert main(["--self-test", "-m", str(tested_model), "--threads", "-5"]) == 2
    assert "threads is -5" in capsys.readouterr().err


def test_the_command_tests_keeps_and_prints(tested_model: Path, state: Path, tmp_path: Path, capsys) -> None:
    assert main(["--self-test", "-m", str(tested_model), "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "OpenVINO" in said
    assert "passed" in said
    written = json.loads((tmp_path / "out/petseg_commissioning.json").read_text())
    assert {one["passed"] for one in written["outcomes"]} == {True}
    record = kept(read_model(tested_model).sha256)
    assert record is not None
    assert {one.name.split()[0] for one in record.outcomes} >= {"OpenVINO", "ONNX"}
    assert len(list(state.iterdir())) == 1


def test_a_backend_that_drifts_fails_and_is_refused_from_then_on(tested_model: Path, tmp_path: Path, capsys) -> None:
    """The stored results are of another network: every backend of this machine disagrees with them."""
    model = onnx.load(tested_model)
    (entry,) = (entry for entry in model.metadata_props if entry.key == RESULTS_KEY)
    entry.value = pack([np.clip(window, 0, 1) for window in self_test_windows(PATCH, SPACING)])
    (tmp_path / "drift.onnx").write_bytes(model.SerializeToString())
    assert main(["--self-test", "-m", str(tmp_path / "drift.onnx")]) == 5
    said = capsys.readouterr()
    assert "FAILED" in said.out
    assert "refused from now on" in said.err
    with pytest.raises(BackendError, match="failed this model's self-test"):
        Segmenter(tmp_path / "drift.onnx")
    scan = save(body_array(SMALL), tmp_path / "in/scan.nii.gz")
    assert main([str(scan), "-m", str(tmp_path / "drift.onnx"), "-o", str(tmp_path / "out")]) == 5


@pytest.mark.parametrize("key", [None, "petseg.results"], ids=["none", "of the windows of old"])
def test_a_model_without_results_cannot_be_tested(
    key: str | None, tested_model: Path, known_model: Path, tmp_path: Path, capsys
) -> None:
    model = onnx.load(known_model if key is None else tested_model)
    for entry in model.metadata_props:
        if entry.key == RESULTS_KEY:
            entry.key = key
    (tmp_path / "untested.onnx").write_bytes(model.SerializeToString())
    assert main(["--self-test", "-m", str(tmp_path / "untested.onnx")]) == 4
    assert "carries no results" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--self-test", "scan.nii.gz"]], ids=["nothing", "both"])
def test_an_input_or_the_self_test(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_a_record_is_of_one_machine_and_one_model(tested_model: Path) -> None:
    sha256 = read_model(tested_model).sha256
    record = new_record(sha256, [outcome("OpenVINO f32", True)])
    path = keep(record)
    assert kept(sha256) == record
    assert kept("0" * 64) is None
    path.write_text(json.dumps(replace(record, machine="another").to_json()))
    assert kept(sha256) is None
    further = record.to_json()
    for found in further["outcomes"]:
        found["seconds"] = 1.0  # of a later version
    path.write_text(json.dumps(further))
    assert kept(sha256) == record
    for damaged in ("{", json.dumps(record.to_json() | {"outcomes": ["x"]}), "[]"):
        path.write_text(damaged)
        assert kept(sha256) is None


@pytest.fixture
def cpu_with_bf16(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A CPU that says it has bf16, and the precisions that OpenVINO is asked for (it computes in f32 here)."""
    from petseg_runtime.backends import openvino

    asked: list[str] = []

    class Asked(openvino.OpenVinoBackend):
        def __init__(self, model: bytes, threads: int | None = None, precision: str = "f32", *_: object) -> None:
            asked.append(precision)
            super().__init__(model, threads)
            self._precision = precision

    monkeypatch.setattr(openvino, "has_bf16", lambda: True)
    monkeypatch.setattr(openvino, "OpenVinoBackend", Asked)
    return asked


def bf16_record(sha256: str, passed: bool) -> Record:
    from petseg_runtime.backends.openvino import backend_name

    return new_record(sha256, [outcome(backend_name("f32"), True), outcome(backend_name("bf16"), passed)])


def test_bf16_is_taken_where_it_passed(tested_model: Path, cpu_with_bf16: list[str]) -> None:
    keep(bf16_record(read_model(tested_model).sha256, passed=True))
    assert Segmenter(tested_model, "cpu").backend_name.endswith("bf16")
    assert Segmenter(tested_model, "cpu", precision="f32").backend_name.endswith("f32")
    assert cpu_with_bf16 == ["bf16", "f32"]


@pytest.mark.parametrize("tested", [True, False])
def test_bf16_is_not_taken_where_it_did_not_pass(tested: bool, tested_model: Path, cpu_with_bf16: list[str]) -> None:
    if tested:
        keep(bf16_record(read_model(tested_model).sha256, passed=False))
    assert Segmenter(tested_model, "cpu").backend_name.endswith("f32")
    with pytest.raises(BackendError, match="self-test"):
        Segmenter(tested_model, "cpu", precision="bf16")
    assert cpu_with_bf16 == ["f32", "bf16"]


def test_bf16_is_of_openvino_only(tested_model: Path) -> None:
    """What it was commissioned for is f32: taking that in place of what was asked for would be falling back."""
    passed = outcome(Segmenter(tested_model, "cpu", "onnxruntime").backend_name, True)
    keep(new_record(read_model(tested_model).sha256, [passed]))
    with pytest.raises(BackendError, match="does not run in bf16"):
        Segmenter(tested_model, "cpu", "onnxruntime", precision="bf16")


def test_another_backend_than_the_one_that_passed_in_bf16_runs_in_f32(
    tested_model: Path, cpu_with_bf16: list[str]
) -> None:
    keep(bf16_record(read_model(tested_model).sha256, passed=True))
    assert Segmenter(tested_model, "cpu", "onnxruntime").backend_name.endswith("f32")


def test_bf16_without_the_instructions_is_refused(tested_model: Path, monkeypatch) -> None:
    from petseg_runtime.backends import openvino

    monkeypatch.setattr(openvino, "has_bf16", lambda: False)
    with pytest.raises(BackendError, match="no bf16"):
        Segmenter(tested_model, "cpu", precision="bf16")
    with pytest.raises(UsageError, match="precision"):
        Segmenter(tested_model, "cpu", precision="int8")


def test_the_machine_is_named() -> None:
    assert len(machine()) > 5
