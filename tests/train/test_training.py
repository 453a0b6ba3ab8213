"""Training: it resumes exactly after being killed, shares work between processes, and is scored on other centres."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from petseg_export.to_onnx import export_onnx, write_model

from petseg_runtime.errors import InputError, ModelError, UsageError
from petseg_runtime.io.images import read_image, write_image
from petseg_runtime.manifest import read_model
from petseg_runtime.preprocessing import preprocess
from petseg_runtime.segmenter import BUNDLED_MODEL
from petseg_train.cli import evaluate as evaluate_command
from petseg_train.cli import fit as fit_command
from petseg_train.cohort import TrainingCase, read_cohort
from petseg_train.comparators import ellipsoid
from petseg_train.config import load_config
from petseg_train.cross_validation import cross_validate
from petseg_train.evaluation import evaluate, summarise
from petseg_train.ground_truth.thresholds import t40
from petseg_train.inference import TorchBackend, make_manifest, torch_segmenter
from petseg_train.networks import NETWORKS
from petseg_train.training import (
    PatchDataModule,
    SegmentationModule,
    build_network,
    fit,
    load_module,
    split_tuning,
    usable_precision,
)
from petseg_train.window_invariance import window_invariance

PETSEG_TRAIN = Path(sys.executable).with_name("petseg-train")


def petseg_train(*arguments: object) -> list[str]:
    return [str(PETSEG_TRAIN), *(str(argument) for argument in arguments)]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]


def test_a_run_leaves_its_settings_logs_and_metrics(trained: Path) -> None:
    run = json.loads((trained.parent / "run.json").read_text())
    assert len(run["splits"]["tuning"]) == 1
    assert len(run["splits"]["training"]) == 3
    done = json.loads((trained.parent / "done.json").read_text())
    assert (done["epochs"], done["precision"]) == (run["config"]["epochs"], "32-true")
    metrics = done["metrics"]
    assert metrics.keys() == {"train/loss", "train/network_share", "tune/dsc"}
    assert 0 < metrics["train/network_share"] < 1
    assert list((trained.parent / "lightning_logs").glob("events.out.tfevents.*"))


def test_killed_and_resumed_gives_the_weights_of_an_uninterrupted_run(
    trained: Path, cohort_csv: Path, tiny_config: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "killed"
    command = petseg_train("fit", cohort_csv, "-o", run_dir, "--config", tiny_config)
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (run_dir / "last.ckpt").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert (run_dir / "last.ckpt").exists()
    stopped_at = torch.load(run_dir / "last.ckpt", weights_only=True)["epoch"]
    subprocess.run(command, check=True, capture_output=True)
    assert stopped_at < 7, "the run was over before it was killed"
    for name, tensor in weights(trained).items():
        torch.testing.assert_close(weights(run_dir / "last.ckpt")[name], tensor, rtol=0, atol=0)


def test_a_finished_run_is_not_trained_again(trained: Path, cohort_csv: Path, tiny_config: Path) -> None:
    before = trained.stat().st_mtime_ns
    fit(read_cohort(cohort_csv), load_config(str(tiny_config)), trained.parent)
    assert trained.stat().st_mtime_ns == before


def test_a_run_folder_of_other_settings_is_refused(trained: Path, cohort_csv: Path, tiny_config: Path) -> None:
    with pytest.raises(UsageError, match="other settings"):
        fit(read_cohort(cohort_csv), load_config(str(tiny_config), epochs=9), trained.parent)


def test_two_processes_do_not_train_in_one_folder(cohort_csv: Path, tiny_config: Path, tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="Another process is training"):
            fit(read_cohort(cohort_csv), load_config(str(tiny_config)), tmp_path)


def test_too_few_cases_are_refused(cohort_csv: Path, tiny_config: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="do not fill a batch"):
        fit(read_cohort(cohort_csv)[:1], load_config(str(tiny_config)), tmp_path)


def test_refused_cases_may_be_repaired(cohort_csv: Path, tiny_config: Path, tmp_path: Path) -> None:
    cases, config = read_cohort(cohort_csv), load_config(str(tiny_config), epochs=1)
    spoilt = [replace(case, mask=cases[2].mask) if case.name == "case1" else case for case in cases]
    with pytest.raises(InputError, match=r"Case case1: the mask .* does not lie on"):
        fit(spoilt, config, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()
    (tmp_path / "run" / "run.json").write_text("{}")  # of a run that never got to a checkpoint
    fit(cases, config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["epochs"] == 1


def test_a_device_that_is_not_there_is_said_before_any_work(
    cohort_csv: Path, tiny_config: Path, tmp_path: Path
) -> None:
    config = load_config(str(tiny_config), patches_per_epoch=500)
    with pytest.raises(UsageError, match="Training cannot start on 99 x gpu"):
        fit(read_cohort(cohort_csv), config, tmp_path, devices=99, accelerator="gpu")
    assert not (tmp_path / "preprocessed").exists()


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["term", "ctrl-c"])
def test_stopped_is_not_success(
    sent: signal.Signals, code: int, cohort_csv: Path, tiny_config: Path, tmp_path: Path
) -> None:
    config = json.loads(tiny_config.read_text()) | {"epochs": 500}
    (tmp_path / "long.json").write_text(json.dumps(config))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where the tests run in the background
    try:
        process = subprocess.Popen(
            petseg_train("fit", cohort_csv, "-o", tmp_path / "run", "--config", tmp_path / "long.json"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(sent)
    assert process.wait(60) == code
    assert not (tmp_path / "run" / "done.json").exists()


def test_a_damaged_checkpoint_is_said_and_not_trained_over(
    trained: Path, cohort_csv: Path, tiny_config: Path, tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_text((trained.parent / "run.json").read_text())
    (tmp_path / "last.ckpt").write_bytes(trained.read_bytes()[:5000])
    with pytest.raises(ModelError, match="is damaged"):
        fit(read_cohort(cohort_csv), load_config(str(tiny_config)), tmp_path)


def test_a_left_out_centre_is_neither_trained_nor_tuned_on(cohort_csv: Path, tiny_config: Path, tmp_path: Path) -> None:
    config = json.loads(tiny_config.read_text()) | {"epochs": 1, "batch_size": 1, "tuning_share": 0.5}
    (tmp_path / "short.json").write_text(json.dumps(config))
    subprocess.run(
        petseg_train(
            "fit", cohort_csv, "-o", tmp_path / "run", "--config", tmp_path / "short.json", "--leave-out", "north"
        ),
        check=True,
        capture_output=True,
    )
    splits = json.loads((tmp_path / "run" / "run.json").read_text())["splits"]
    assert sorted(splits["training"] + splits["tuning"]) == ["case2", "case3"]
    done = subprocess.run(
        petseg_train("evaluate", tmp_path / "run" / "last.ckpt", cohort_csv, "-o", tmp_path / "new" / "scores.csv",
                     "--centre", "north"),
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert set(pd.read_csv(tmp_path / "new" / "scores.csv")["case"]) == {"case0", "case1"}
    assert "ellipsoid" in done.stdout
    assert "trained or watched this model" not in done.stderr
    again = petseg_train("evaluate", tmp_path / "run" / "last.ckpt", cohort_csv, "-o", tmp_path / "new" / "scores.csv")
    refused = subprocess.run(again, check=False, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "scores.csv is there and would be lost. Pass --overwrite" in " ".join(refused.stderr.split())
    done = subprocess.run([*again, "--overwrite"], check=True, capture_output=True, text=True)
    assert "2 of the 4 cases have the names of cases that trained or watched this model" in done.stderr


def test_a_left_out_case_is_none_that_is_trained_on(cohort_csv: Path, tiny_config: Path, tmp_path: Path) -> None:
    lines = cohort_csv.read_text().splitlines()
    twin = cohort_csv.with_name("twin.csv")
    twin.write_text("\n".join([*lines[:-1], lines[1].replace("case0,north", "again,south")]))
    done = subprocess.run(
        petseg_train("fit", twin, "-o", tmp_path / "run", "--config", tiny_config, "--leave-out", "north"),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert "Cases case0 and again have the same image" in done.stderr
    assert not (tmp_path / "run").exists()


def test_an_exported_model_is_scored_as_it_ships(cohort_csv: Path, known_model: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        petseg_train("evaluate", known_model, cohort_csv, "-o", tmp_path / "scores.csv", "--accelerator", "cpu"),
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    scores = pd.read_csv(tmp_path / "scores.csv")
    assert len(scores) == 3 * len(read_cohort(cohort_csv))
    assert "of the 4 of 4 cases in which anything was found" in done.stdout


def test_window_invariance_needs_no_truth(cohort_csv: Path, known_model: Path, tmp_path: Path) -> None:
    scan = read_cohort(cohort_csv)[0].image
    done = subprocess.run(
        petseg_train("window-invariance", known_model, scan), check=True, capture_output=True, text=True
    )
    # The known model looks at one voxel at a time, so where the windows lie cannot matter.
    assert done.stdout == f"{scan.name}: mean 1.000, lowest 1.000\n"
    volume = read_image(scan)
    write_image(volume.array.clip(None, 1.05), volume.geometry, tmp_path / "cold.nii.gz")
    done = subprocess.run(
        petseg_train("window-invariance", known_model, tmp_path / "cold.nii.gz"),
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "cold.nii.gz: nothing was found on any grid of windows\n"


def test_two_processes_train_one_model(cohort_csv: Path, tiny_config: Path, tmp_path: Path) -> None:
    config = json.loads(tiny_config.read_text()) | {"epochs": 1, "batch_size": 1, "tuning_share": 0.5}
    (tmp_path / "ddp.json").write_text(json.dumps(config))
    done = subprocess.run(
        petseg_train(
            "fit", cohort_csv, "-o", tmp_path / "run", "--config", tmp_path / "ddp.json",
            "--devices", 2, "--accelerator", "cpu", "--threads", 1,
        ),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "distributed_backend=gloo" in done.stderr
    assert "MEMBER: 2/2" in done.stderr
    # Two cases, one for each process: a single step of both gradients.
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 1


def test_a_patch_the_network_cannot_halve_is_refused(tiny_config: Path) -> None:
    for patch_size in ((16, 16, 20), (8, 16, 16)):
        with pytest.raises(UsageError, match="multiples of 8, from 16 on"):
            build_network(load_config(str(tiny_config), patch_size=patch_size))


def test_a_fit_that_the_network_cannot_halve_is_refused(tiny_config: Path) -> None:
    with pytest.raises(UsageError, match="fit_multiple is 4, expected 0 or a multiple of 8"):
        build_network(load_config(str(tiny_config), fit_multiple=4))


def test_the_manifest_takes_what_the_config_does(tiny_config: Path) -> None:
    config = load_config(str(tiny_config), overlap=0.9, patch_size=(512, 16, 32), fit_multiple=16)
    assert make_manifest(SegmentationModule(config.to_dict()), "widest", "1").overlap == 0.9


@pytest.mark.parametrize("allowed", [True, False])
def test_evaluation_is_in_the_float32_that_it_says_and_training_in_its_own(allowed: bool, trained: Path) -> None:
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    seen = []

    class Noting(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            seen.append((convolutions.allow_tf32, products.allow_tf32))
            return image

    module = load_module(trained)
    module.network = Noting()
    before = convolutions.allow_tf32, products.allow_tf32
    try:
        convolutions.allow_tf32 = products.allow_tf32 = allowed
        for _ in TorchBackend(module).predict([np.zeros((1, 1, 8, 8, 8), np.float32)] * 2):
            assert (convolutions.allow_tf32, products.allow_tf32) == (allowed, allowed)
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before
    assert seen == [(False, False)] * 2


def test_the_first_weights_follow_from_the_seed(tiny_config: Path) -> None:
    config = load_config(str(tiny_config))
    one, other = build_network(config), build_network(config)
    for left, right in zip(one.parameters(), other.parameters()):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_begins_by_marking_nothing(network: str) -> None:
    untrained = build_network(load_config("cpu", network=network, network_settings={"base_filters": 4}))
    with torch.inference_mode():
        noise = torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(0))
        probabilities = torch.sigmoid(untrained(noise))
    assert 0.005 < float(probabilities.mean()) < 0.06  # 2 %, but for what chance weights add


def test_what_goes_on_from_the_bundled_model_treats_scans_as_it_does() -> None:
    models = files("petseg_runtime") / "models"
    manifest = read_model(Path(str(models / BUNDLED_MODEL))).manifest
    config = load_config(str(models / BUNDLED_MODEL.replace(".onnx", ".config.json")))
    for name in ("preprocessing", "patch_size", "fit_multiple", "overlap", "threshold"):
        assert getattr(config, name) == getattr(manifest, name)
    network = {"name": config.network} | config.network_settings
    assert network.items() <= dict(manifest.training["network"]).items()


def test_the_learning_rate_restarts_every_25_epochs() -> None:
    config = load_config("paper", network_settings={"base_filters": 2})
    module = SegmentationModule(config.to_dict())
    settings = module.configure_optimizers()
    optimiser, schedule = settings["optimizer"], settings["lr_scheduler"]["scheduler"]
    assert isinstance(optimiser, torch.optim.Adam)
    assert settings["lr_scheduler"]["interval"] == "epoch"
    rates = []
    for _ in range(51):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    # eta = 1e-6 + (1e-4 - 1e-6) (1 + cos(pi t / 25)) / 2
    expected = [1e-6 + (1e-4 - 1e-6) * (1 + np.cos(np.pi * (epoch % 25) / 25)) / 2 for epoch in range(51)]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    assert optimiser.param_groups[0]["betas"] == (0.9, 0.99)


@pytest.mark.parametrize(
    ("asked", "has_bf16", "used"),
    [("bf16-mixed", False, "32-true"), ("bf16-mixed", True, "bf16-mixed"), ("32-true", True, "32-true")],
)
def test_a_cpu_without_bf16_trains_in_32_bits(asked: str, has_bf16: bool, used: str, monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bf16})
    assert usable_precision(asked, "cpu") == used


@pytest.mark.parametrize("has_bf16", [False, True])
def test_a_training_in_bf16_on_a_cpu_has_its_channels_first(
    has_bf16: bool, cohort_csv: Path, tiny_config: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bf16})
    seen = []
    step = SegmentationModule.training_step

    def watched(module: SegmentationModule, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        weights = next(weight for weight in module.network.parameters() if weight.ndim == 5 and min(weight.shape) > 1)
        seen.append(weights.is_contiguous())
        return step(module, batch)

    monkeypatch.setattr(SegmentationModule, "training_step", watched)
    config = load_config(str(tiny_config), precision="bf16-mixed", epochs=1)
    fit(read_cohort(cohort_csv), config, tmp_path / "run", accelerator="cpu")
    assert set(seen) == {has_bf16}


def test_the_tuning_share_is_drawn_from_the_seed(cohort_csv: Path, tiny_config: Path) -> None:
    cases, config = read_cohort(cohort_csv), load_config(str(tiny_config))
    training, tuning = split_tuning(cases, config)
    assert sorted(case.name for case in training + tuning) == [case.name for case in cases]
    assert split_tuning(cases, config) == (training, tuning)
    assert {split_tuning(cases, load_config(str(tiny_config), seed=seed))[1][0].name for seed in range(20)} > {
        tuning[0].name
    }


def test_a_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "foreign.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(
        ModelError, match=r"^foreign.ckpt is not a checkpoint of petseg-train fit, or damaged. Pass its"
    ):
        load_module(tmp_path / "foreign.ckpt")
    with pytest.raises(ModelError, match=r"^absent.ckpt does not exist. Pass"):
        load_module(tmp_path / "absent.ckpt")


def test_a_checkpoint_with_settings_of_another_version_says_so(trained: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(trained, weights_only=True)
    checkpoint["hyper_parameters"]["config"]["window_consistency"] = 0.0
    torch.save(checkpoint, tmp_path / "old.ckpt")
    with pytest.raises(ModelError, match=r"^old.ckpt is of another version. .* unknown: window_consistency"):
        load_module(tmp_path / "old.ckpt")


def test_evaluation_scores_the_model_beside_its_rivals(trained: Path, cohort_csv: Path) -> None:
    cases = read_cohort(cohort_csv)[:2]
    results = evaluate(torch_segmenter(load_module(trained)), cases, "tiny", invariance_seed=0)
    assert results["model"].tolist() == ["tiny", "t40", "ellipsoid"] * 2
    # The ball is 12 and everything else below 2, so 40 % of the maximum finds it to the voxel.
    assert (results.loc[results["model"] == "t40", ["dsc", "precision", "recall"]] == 1.0).all(axis=None)
    assert (results.loc[results["model"] == "t40", "volume_error"].abs() < 1e-9).all()
    assert results.loc[results["model"] == "tiny", "window_invariance"].between(0, 1).all()


def test_the_summary_is_that_of_the_papers_table() -> None:
    results = pd.DataFrame(
        {
            "case": list("abcd"),
            "centre": ["x", "x", "y", "y"],
            "model": "m",
            "dsc": [0.2, 0.4, 0.7, 0.9],
            "precision": 1.0,
            "recall": 0.5,
        }
    )
    summary = summarise(results).set_index("centre")
    assert summary.loc["x", "dsc_mean"] == pytest.approx(0.3)
    assert summary.loc["x", "dsc_std"] == pytest.approx(np.sqrt(0.02))
    # over the centres: mean of 0.3 and 0.8, and their deviation
    assert summary.loc["average", "dsc_mean"] == pytest.approx(0.55)
    assert summary.loc["average", "dsc_std"] == pytest.approx(0.5 / np.sqrt(2))
    assert summary.loc["average", "cases"] == 4


def test_cross_validation_leaves_each_centre_out_and_resumes(
    cohort_csv: Path, tiny_config: Path, tmp_path: Path
) -> None:
    config = json.loads(tiny_config.read_text()) | {"epochs": 1, "batch_size": 1, "tuning_share": 0.5}
    (tmp_path / "cv.json").write_text(json.dumps(config))
    command = petseg_train(
        "cross-validate", cohort_csv, "-o", tmp_path / "cv", "--config", tmp_path / "cv.json",
        "--network", "residual_scse_unet", "--threads", 1,
    )  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    splits = json.loads((tmp_path / "cv" / "splits.json").read_text())["folds"]
    assert splits["north"]["test"] == ["case0", "case1"]
    for fold in splits.values():
        names = fold["training"] + fold["tuning"] + fold["test"]
        assert sorted(names) == ["case0", "case1", "case2", "case3"]
    results = pd.read_csv(tmp_path / "cv" / "results.csv")
    assert results.groupby("model").size().to_dict() == {"residual_scse_unet": 4, "t40": 4, "ellipsoid": 4}
    checkpoint = tmp_path / "cv" / "residual_scse_unet" / "north" / "last.ckpt"
    before = checkpoint.stat().st_mtime_ns
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert checkpoint.stat().st_mtime_ns == before
    assert "average" in again.stdout
    # A second network joins the study; other settings do not.
    cases, settings = read_cohort(cohort_csv), load_config(str(tmp_path / "cv.json"))
    both = cross_validate(cases, settings, ["standard_unet"], tmp_path / "cv")
    assert set(both["model"]) == {"residual_scse_unet", "standard_unet", "t40", "ellipsoid"}
    with pytest.raises(UsageError, match="other settings"):
        cross_validate(cases, replace(settings, epochs=9), ["residual_scse_unet"], tmp_path / "cv")


def test_an_unknown_centre_is_refused(cohort_csv: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        petseg_train("fit", cohort_csv, "-o", tmp_path, "--leave-out", "west"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "there are north, south" in done.stderr


def test_a_network_of_single_voxels_is_window_invariant(known_model: Path, axial_volume) -> None:
    from petseg_runtime import Segmenter

    scored = window_invariance(Segmenter(known_model), axial_volume, np.random.default_rng(0))
    assert scored.lowest == pytest.approx(1.0, abs=0.01)


def test_finding_nothing_is_not_invariance(known_model: Path, axial_volume) -> None:
    from petseg_runtime import Segmenter, Volume

    cold = Volume(axial_volume.array.clip(None, 1.05), axial_volume.geometry)
    assert np.isnan(window_invariance(Segmenter(known_model), cold, np.random.default_rng(0)).mean)


class WindowMean:
    """A backend that looks at the window as a whole: what is above its mean is tumour."""

    name = "window mean"

    def predict(self, windows: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        return ((window > window.mean()).astype(np.float32) for window in windows)


def test_a_network_that_looks_at_the_window_is_not(axial_volume, manifest) -> None:
    from petseg_runtime import Segmenter

    segmenter = Segmenter.from_backend(manifest, WindowMean())
    assert window_invariance(segmenter, axial_volume, np.random.default_rng(0)).lowest < 0.9


def test_only_other_grids_of_windows_are_compared(axial_volume, manifest) -> None:
    """Windows are spread evenly, so overlaps often put them at the same places, where no mask can differ."""
    from petseg_runtime import Segmenter

    z, y, x = preprocess(axial_volume, manifest.preprocessing).array.shape
    for patch, overlap, others in (
        ((8, y, x), 0.5, 2),  # 0.25 and 0.625
        ((8, y, x), 0.375, 3),
        ((z, y, x), 0.375, 0),  # one window
        ((z - 1, y - 1, x - 1), 0.375, 0),  # two on each axis, at 0 and 1
    ):
        segmenter = Segmenter.from_backend(replace(manifest, patch_size=patch, overlap=overlap), WindowMean())
        scored = window_invariance(segmenter, axial_volume, np.random.default_rng(0))
        assert (len(scored.shifted), len(scored.overlaps)) == (3, others)


def test_rivals_by_hand(axial_volume) -> None:
    np.testing.assert_array_equal(t40(axial_volume) > 0, axial_volume.array >= 4.8)
    share = ellipsoid(axial_volume).mean()
    assert share == pytest.approx(4 / 3 * np.pi * 0.3**3, rel=0.05)  # semi-axes of 0.3 of the box's sides


def test_a_training_that_diverges_stops_and_keeps_the_checkpoint_before(
    cohort_csv: Path, tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, cases = tmp_path / "run", read_cohort(cohort_csv)
    before = weights(fit(cases, load_config(str(tiny_config), epochs=1), tmp_path / "one"))
    step = SegmentationModule.training_step

    def diverges(module: SegmentationModule, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if module.current_epoch == 1:
            batch["image"][:] = torch.nan
        return step(module, batch)

    monkeypatch.setattr(SegmentationModule, "training_step", diverges)
    with pytest.raises(ModelError, match="The loss is nan in epoch 1"):
        fit(cases, load_config(str(tiny_config)), run)
    assert not (run / "done.json").exists()
    for name, value in weights(run / "last.ckpt").items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_a_run_whose_checkpoint_is_gone_is_trained_again(
    cohort_csv: Path, tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise RuntimeError("interrupted")

    config = load_config(str(tiny_config), epochs=1)
    first = weights(fit(read_cohort(cohort_csv), config, tmp_path / "run"))
    (tmp_path / "run" / "last.ckpt").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(SegmentationModule, "training_step", interrupted)
        with pytest.raises(RuntimeError, match="interrupted"):
            fit(read_cohort(cohort_csv), config, tmp_path / "run")
    assert not (tmp_path / "run" / "done.json").exists()  # it was of the checkpoint that is gone
    again = weights(fit(read_cohort(cohort_csv), config, tmp_path / "run"))
    for name, value in again.items():
        torch.testing.assert_close(value, first[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    "settings", [{"base_filters": 0}, {"base_filters": 1}, {"base_filters": -4}, {"levels": 0}, {"width": 3}], ids=str
)
def test_a_network_that_cannot_be_built_is_refused(settings: dict[str, int], tiny_config: Path) -> None:
    with pytest.raises(UsageError, match="network_settings"):
        build_network(load_config(str(tiny_config), network_settings=settings))


def test_a_gpu_that_is_not_there_is_said(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="no GPU"):
        load_module(trained, "gpu")


def test_scores_do_not_overwrite_what_they_are_of(trained: Path, cohort_csv: Path) -> None:
    for taken in (trained, cohort_csv):
        content = taken.read_bytes()
        with pytest.raises(UsageError, match="is an input"):
            evaluate_command(trained, [cohort_csv], taken)
        assert taken.read_bytes() == content
    with pytest.raises(UsageError, match="is a folder"):
        evaluate_command(trained, [cohort_csv], cohort_csv.parent)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("mask", "case2_mask.nii.gz", "Case case1: the mask has a grid"),
        ("bladder", "case2_mask.nii.gz", "Case case1: the bladder mask has a grid"),
        ("image", "case0.nii.gz", "Cases case0 and case1 have the same image"),
    ],
)
def test_cases_that_cannot_be_scored_are_refused_before_the_model_runs(
    column: str, value: str, message: str, known_model: Path, cohort_csv: Path, tmp_path: Path, monkeypatch
) -> None:
    runs: list[Any] = []
    monkeypatch.setattr("petseg_train.evaluation.evaluate", runs.append)
    table = pd.read_csv(cohort_csv, dtype=object).assign(bladder=None)
    table.loc[1, column] = value
    csv = cohort_csv.with_name(f"spoilt_{column}.csv")
    table.to_csv(csv, index=False)
    with pytest.raises(InputError, match=message):
        evaluate_command(known_model, [csv], tmp_path / "scores.csv", accelerator="cpu")
    assert not runs


def test_cases_only_to_train_on_never_watch_and_do_not_move_the_others(
    cohort_csv: Path, tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cohort that comes later leaves the watching cases what they were, so that models can be held against them."""
    turns: dict[str, str] = {}

    def noting(training: list[TrainingCase], *rest: Any) -> PatchDataModule:
        turns.update((case.name, case.turn) for case in training)
        return PatchDataModule(training, *rest)

    monkeypatch.setattr("petseg_train.training.PatchDataModule", noting)
    table = pd.read_csv(cohort_csv, dtype=str)
    for column in ("image", "mask"):
        table[column] = [str(cohort_csv.parent / name) for name in table[column]]
    table[:3].to_csv(tmp_path / "first.csv", index=False)
    table[3:].to_csv(tmp_path / "later.csv", index=False)
    fit_command([tmp_path / "first.csv"], tmp_path / "run", str(tiny_config), only_train=[tmp_path / "later.csv"])
    splits = json.loads((tmp_path / "run" / "run.json").read_text())["splits"]
    _, watching = split_tuning(read_cohort(tmp_path / "first.csv"), load_config(str(tiny_config)))
    assert splits["tuning"] == [case.name for case in watching] != []
    assert set(splits["training"]) == set(table["case"]) - set(splits["tuning"]) == set(turns)
    later = {turns[name] for name in table["case"][3:]}
    assert len(later) == 1, "a cohort that only trains takes one turn"
    assert not later & set(table["centre"])


def test_training_may_begin_with_the_weights_of_another(
    trained: Path, cohort_csv: Path, tiny_config: Path, tmp_path: Path
) -> None:
    """With a learning rate that moves nothing, the weights stay those of the pretrained network."""
    config = load_config(str(tiny_config), epochs=1, learning_rate=(1e-30, 1e-30))
    checkpoint = fit(read_cohort(cohort_csv), config, tmp_path / "run", pretrained=trained)
    before, after = load_module(trained), load_module(checkpoint)
    for name, weights in before.network.state_dict().items():
        torch.testing.assert_close(after.network.state_dict()[name], weights, rtol=0, atol=0)
    assert after.longest_body_mm == before.longest_body_mm == 100.0  # 20 slices of 5 mm
    assert after.pretrained_sha256 == hashlib.sha256(trained.read_bytes()).hexdigest()
    with pytest.raises(UsageError, match="other settings"):
        fit(read_cohort(cohort_csv), config, tmp_path / "run")


def test_training_may_begin_with_an_exported_model(
    trained: Path, cohort_csv: Path, tiny_config: Path, tmp_path: Path
) -> None:
    """What a hospital is given is an ONNX file: its weights and what it has seen are those of the checkpoint."""
    model, other = tmp_path / "model.onnx", tmp_path / "other.onnx"
    export_onnx(trained, model, "mine", "1", {})
    config = load_config(str(tiny_config), epochs=1, learning_rate=(1e-30, 1e-30))
    after = load_module(fit(read_cohort(cohort_csv), config, tmp_path / "run", pretrained=model))
    for name, weights in load_module(trained).network.state_dict().items():
        torch.testing.assert_close(after.network.state_dict()[name], weights, rtol=0, atol=0)
    assert after.longest_body_mm == 100.0
    assert after.pretrained_sha256 == hashlib.sha256(model.read_bytes()).hexdigest()

    foreign = load_module(trained)
    write_model(foreign.network, make_manifest(foreign, "foreign", "1"), other)
    with pytest.raises(ModelError, match="holds no network of petseg-train"):
        fit(read_cohort(cohort_csv), config, tmp_path / "refused", pretrained=other)
    assert not (tmp_path / "refused").exists()


def test_what_a_network_has_seen_is_known_or_said_not_to_be(
    trained: Path, cohort_csv: Path, tiny_config: Path, tmp_path: Path
) -> None:
    """Of a checkpoint from before it was kept, a run that goes on finds it out, and one that builds on it cannot."""
    cases, config = read_cohort(cohort_csv), load_config(str(tiny_config), epochs=1)
    old = tmp_path / "run" / "last.ckpt"
    fit(cases, config, old.parent)
    for path, source in ((old, old), (tmp_path / "old.ckpt", trained)):
        checkpoint = torch.load(source, weights_only=True)
        del checkpoint["petseg_longest_body_mm"]
        torch.save(checkpoint, path)
    assert load_module(old).longest_body_mm == 0.0

    (old.parent / "done.json").unlink()
    run = json.loads((old.parent / "run.json").read_text())
    run["config"]["epochs"] = 2
    (old.parent / "run.json").write_text(json.dumps(run))
    assert load_module(fit(cases, load_config(str(tiny_config), epochs=2), old.parent)).longest_body_mm == 100.0

    built = fit(cases, config, tmp_path / "built", pretrained=tmp_path / "old.ckpt")
    assert load_module(built).longest_body_mm == 0.0


def test_the_model_is_the_moving_average_of_the_weights(cohort_csv: Path, tiny_config: Path, tmp_path: Path) -> None:
    """One step an epoch: the average begins with the first weights, and then is half of itself and half of the next."""
    cases = read_cohort(cohort_csv)

    def after(epochs: int, decay: float) -> dict[str, torch.Tensor]:
        config = load_config(
            str(tiny_config), epochs=epochs, batch_size=3, tuning_every_epochs=9, weight_averaging=decay
        )
        return weights(fit(cases, config, tmp_path / f"{epochs}-{decay}"))

    first, second, average = after(1, 0.0), after(2, 0.0), after(2, 0.5)
    moved = sum(float((first[name] - second[name]).abs().sum()) for name in first)
    assert moved > 0
    for name, tensor in average.items():
        torch.testing.assert_close(tensor, (first[name] + second[name]) / 2)


def test_weights_of_another_network_are_refused(
    trained: Path, cohort_csv: Path, tiny_config: Path, tmp_path: Path
) -> None:
    config = load_config(str(tiny_config), network_settings={"base_filters": 6, "levels": 3})
    with pytest.raises(ModelError, match="base_filters"):
        fit(read_cohort(cohort_csv), config, tmp_path / "run", pretrained=trained)
    assert not (tmp_path / "run").exists()
