"""Export: the ONNX file is complete in itself, computes what PyTorch computes, and drift is not passed over."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import GEOMETRIES, body_array
from petseg_export.cli import app
from petseg_export.to_onnx import export_onnx
from petseg_export.verify import Agreement, check_parity, compare, require_agreement, segmenters_of
from typer.testing import CliRunner

from petseg_runtime import BackendError, ModelError, Segmenter, UsageError, Volume
from petseg_runtime.manifest import read_model
from petseg_runtime.preprocessing import preprocess
from petseg_runtime.sliding_window import fitted_window
from petseg_train.cohort import read_cohort
from petseg_train.config import load_config
from petseg_train.inference import torch_segmenter
from petseg_train.training import SegmentationModule, fit, load_module

PETSEG_EXPORT = Path(sys.executable).with_name("petseg-export")


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SegmentationModule, Path]:
    path = tmp_path_factory.mktemp("export") / "tiny.onnx"
    module, _ = export_onnx(trained, path, "tiny", "3", {"data": "synthetic", "licence": "Apache-2.0"})
    return module, path


@pytest.fixture
def scan() -> Volume:
    return Volume(body_array(GEOMETRIES["oblique"].shape), GEOMETRIES["oblique"])


def test_the_file_is_complete_in_itself(exported: tuple[SegmentationModule, Path]) -> None:
    module, path = exported
    manifest = read_model(path).manifest
    assert (manifest.name, manifest.version) == ("tiny", "3")
    assert manifest.preprocessing == module.config.preprocessing
    assert manifest.patch_size == module.config.patch_size
    assert manifest.training["data"] == "synthetic"
    assert len(manifest.training["checkpoint_sha256"]) == 64
    assert manifest.training["network"]["name"] == "residual_scse_unet"
    assert manifest.training["epochs"] == 8
    assert manifest.longest_body_mm == 100.0  # 20 slices of 5 mm
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    assert manifest.training["commit"].removesuffix("+changes") == (commit.stdout.strip() or "unknown")


def test_no_path_of_the_exporting_machine_is_in_the_file(exported: tuple[SegmentationModule, Path]) -> None:
    content = exported[1].read_bytes()
    assert b"site-packages" not in content
    assert str(Path(__file__).parents[2]).encode() not in content


def test_one_input_one_output_any_batch(exported: tuple[SegmentationModule, Path]) -> None:
    graph = onnx.load(exported[1]).graph
    (image,), (probability,) = graph.input, graph.output
    assert (image.name, probability.name) == ("image", "probability")
    sides = [(d.dim_param or d.dim_value) for d in image.type.tensor_type.shape.dim]
    assert sides[1:] == [1, 16, 16, 16]
    assert isinstance(sides[0], str)
    assert sum(node.op_type == "Sigmoid" for node in graph.node if "probability" in node.output) == 1


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_windows_give_pytorchs_probabilities(
    backend: str, batch: int, exported: tuple[SegmentationModule, Path]
) -> None:
    from petseg_runtime.backends import open_backend

    module, path = exported
    windows = np.random.default_rng(0).normal(size=(batch, 1, 16, 16, 16)).astype(np.float32)
    with torch.inference_mode():
        expected = torch.sigmoid(module.network(torch.from_numpy(windows))).numpy()
    found = next(open_backend(path.read_bytes(), backend, "cpu")[0].predict([windows]))
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_parity_is_measured_on_a_volume(exported: tuple[SegmentationModule, Path], scan: Volume) -> None:
    agreement = check_parity(*exported, scan, "scan")
    assert agreement.differing_voxels == 0
    assert agreement.largest_probability_difference <= 1e-3


def test_a_model_that_drifted_from_its_checkpoint_is_refused(
    exported: tuple[SegmentationModule, Path], trained: Path, scan: Volume
) -> None:
    other = load_module(trained)
    with torch.no_grad():
        other.network.head.bias += 0.05
    with pytest.raises(ModelError, match="does not compute what the checkpoint computes"):
        check_parity(other, exported[1], scan, "scan")


def test_a_model_that_gives_no_numbers_is_refused(trained: Path, tmp_path: Path, scan: Volume) -> None:
    checkpoint = torch.load(trained, weights_only=True)
    checkpoint["state_dict"]["network.head.bias"] *= float("nan")
    torch.save(checkpoint, tmp_path / "nan.ckpt")
    module, _ = export_onnx(tmp_path / "nan.ckpt", tmp_path / "nan.onnx", "nan", "1", {})
    with pytest.raises(ModelError, match="weights that are no finite numbers"):
        check_parity(module, tmp_path / "nan.onnx", scan, "scan")


def test_parity_on_a_scan_without_tumour_proves_nothing(
    exported: tuple[SegmentationModule, Path], trained: Path, scan: Volume
) -> None:
    module = load_module(trained)
    with torch.no_grad():
        module.network.head.bias -= 100
    with pytest.raises(ModelError, match="finds no tumour"):
        check_parity(module, exported[1], scan, "scan")


def test_other_preprocessing_is_not_compared(exported: tuple[SegmentationModule, Path], scan: Volume) -> None:
    other = Segmenter(exported[1], "cpu", "openvino")
    other.manifest = replace(other.manifest, overlap=0.6)
    with pytest.raises(ModelError, match="do not run the same model"):
        compare([torch_segmenter(exported[0]), other], scan, "scan")


def test_an_unfinished_run_is_not_exported(trained: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(trained, weights_only=True)
    checkpoint["epoch"] = 1
    torch.save(checkpoint, tmp_path / "unfinished.ckpt")
    with pytest.raises(ModelError, match="2 of 8 epochs"):
        export_onnx(tmp_path / "unfinished.ckpt", tmp_path / "m.onnx", "m", "1", {})
    assert not (tmp_path / "m.onnx").exists()


def test_verify_compares_all_backends_with_the_first(exported: tuple[SegmentationModule, Path], scan: Volume) -> None:
    module, path = exported
    segmenters = [torch_segmenter(module), Segmenter(path, "cpu", "onnxruntime"), Segmenter(path, "cpu", "openvino")]
    agreements = compare(segmenters, scan, "scan")
    assert [agreement.backend.split()[0] for agreement in agreements] == ["ONNX", "OpenVINO"]
    require_agreement(agreements)
    for drift in (
        {"largest_probability_difference": 2e-3},
        {"mask_dsc": 0.99},
        {"mtv_difference": 0.01},
        {"tlg_difference": 0.01},
    ):
        with pytest.raises(BackendError, match="Out of tolerance"):
            require_agreement([agreements[0], replace(agreements[1], **drift)])


def test_commands(trained: Path, cohort_csv: Path, tmp_path: Path) -> None:
    volume = cohort_csv.parent / "case0.nii.gz"
    (tmp_path / "training.json").write_text('{"licence": "CC0"}')
    model = tmp_path / "model.onnx"
    done = subprocess.run(
        [PETSEG_EXPORT, "onnx", trained, "--volume", volume, "-o", model, "--training", tmp_path / "training.json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "largest probability difference" in done.stdout
    assert "masks identical" in done.stdout
    assert [path.name for path in tmp_path.glob("*.onnx")] == ["model.onnx"]
    assert read_model(model).manifest.training["licence"] == "CC0"
    verified = subprocess.run(
        [PETSEG_EXPORT, "verify", model, "--volume", volume, "--checkpoint", trained],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "OpenVINO" in verified.stdout
    assert "DRIFT" not in verified.stdout


def test_verify_ends_with_5_on_drift(
    exported: tuple[SegmentationModule, Path], trained: Path, cohort_csv: Path, tmp_path: Path
) -> None:
    """A checkpoint that is not the model's own stands for a backend that drifted."""
    checkpoint = torch.load(trained, weights_only=True)
    checkpoint["state_dict"]["network.head.bias"] += 0.05
    torch.save(checkpoint, tmp_path / "other.ckpt")
    done = subprocess.run(
        [PETSEG_EXPORT, "verify", exported[1], "--volume", cohort_csv.parent / "case0.nii.gz",
         "--checkpoint", tmp_path / "other.ckpt"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 5
    assert "case0.nii.gz" in done.stdout
    rows = [line for line in done.stdout.splitlines() if "DRIFT" in line]
    assert all(("ONNX Runtime" in row) or ("OpenVINO" in row) for row in rows)
    assert rows
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_another_suffix_is_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.onnx"):
        export_onnx(trained, tmp_path / "model.engine", "x", "1", {})


@pytest.mark.parametrize("name", ["", "a\\b", "n" * 65])
def test_a_name_that_no_manifest_holds_is_refused(name: str, trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="A name is 1 to 64 characters"):
        export_onnx(trained, tmp_path / "model.onnx", name, "1", {})


def test_the_commit_that_trained_is_not_for_the_user_to_say(trained: Path, tmp_path: Path) -> None:
    _, manifest = export_onnx(trained, tmp_path / "model.onnx", "x", "1", {"commit": "another"})
    assert manifest.training["commit"] != "another"


def test_a_model_that_is_there_stays_unless_it_may_go(trained: Path, cohort_csv: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"another model")
    arguments = ["onnx", str(trained), "--volume", str(cohort_csv.parent / "case0.nii.gz")]
    arguments += ["-o", str(tmp_path / "model.onnx")]
    refused = CliRunner().invoke(app, arguments)
    assert isinstance(refused.exception, UsageError)
    assert "model.onnx is there" in str(refused.exception)
    assert (tmp_path / "model.onnx").read_bytes() == b"another model"
    assert CliRunner().invoke(app, [*arguments, "--overwrite"]).exit_code == 0
    assert read_model(tmp_path / "model.onnx").manifest.name == "petseg"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("text", ["nothing", "[" * 100_000, '{"dsc": NaN}'], ids=["words", "deep", "nan"])
def test_a_training_record_that_is_not_json_is_refused(
    text: str, trained: Path, cohort_csv: Path, tmp_path: Path
) -> None:
    (tmp_path / "training.json").write_text(text)
    done = subprocess.run(
        [PETSEG_EXPORT, "onnx", trained, "--volume", cohort_csv.parent / "case0.nii.gz",
         "-o", tmp_path / "m.onnx", "--training", tmp_path / "training.json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "not a readable JSON" in done.stderr
    assert not list(tmp_path.glob("*.onnx"))


def test_windows_that_fit_the_body_are_the_same_in_training_and_in_every_backend(
    cohort_csv: Path, tiny_config: Path, tmp_path: Path, scan: Volume
) -> None:
    config = load_config(str(tiny_config), epochs=1, patch_size=(64, 64, 64), fit_multiple=8)
    checkpoint = fit(read_cohort(cohort_csv), config, tmp_path / "run")
    module, manifest = export_onnx(checkpoint, tmp_path / "fits.onnx", "fits", "1", {})
    network_input = preprocess(scan, manifest.preprocessing)
    window = fitted_window(manifest.patch_size, manifest.fit_multiple, network_input.array.shape)
    assert window != manifest.patch_size
    expected = torch_segmenter(module).probabilities(network_input, manifest.overlap)
    for backend in ("openvino", "onnxruntime"):
        found = Segmenter(tmp_path / "fits.onnx", "cpu", backend).probabilities(network_input, manifest.overlap)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_verify_runs_whatever_there_is_and_says_what_does_not_work(
    exported: tuple[SegmentationModule, Path], trained: Path
) -> None:
    segmenters, passed_over = segmenters_of(exported[1], trained)
    names = [segmenter.backend_name.split()[0] for segmenter in segmenters]
    assert names[:2] == ["PyTorch", "ONNX"]
    assert "OpenVINO" in names
    assert passed_over == ()


def test_verify_needs_no_pytorch_without_a_checkpoint(exported: tuple[SegmentationModule, Path]) -> None:
    program = """if True:
        import sys
        sys.modules.update(dict.fromkeys(("torch", "monai", "lightning")))
        from pathlib import Path
        from petseg_export.verify import segmenters_of
        print(len(segmenters_of(Path(sys.argv[1]))[0]))
    """
    done = subprocess.run([sys.executable, "-c", program, exported[1]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 2


def test_verify_of_one_backend_alone_is_refused(
    exported: tuple[SegmentationModule, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("petseg_export.verify.candidates", lambda *_: [])
    with pytest.raises(BackendError, match=r"nothing to compare.*here works none.*petseg\[onnxruntime\]"):
        segmenters_of(exported[1])


@pytest.mark.parametrize(
    ("precision", "dsc", "volume", "fits"),
    [
        ("f32", 0.9995, 5e-4, True),
        ("f32", 0.9985, 5e-4, False),
        ("bf16", 0.9985, 5e-3, True),
        ("fp16", 0.9945, 5e-3, False),
        ("bf16", 0.9985, 2e-2, False),
    ],
)
def test_reduced_precision_is_judged_by_its_masks(precision: str, dsc: float, volume: float, fits: bool) -> None:
    difference = 1e-4 if precision == "f32" else 0.2
    agreement = Agreement(
        "model", f"Backend 1, CPU, {precision}", "reference", "scan", difference, dsc, 3, volume, volume
    )
    assert agreement.within_tolerance is fits
