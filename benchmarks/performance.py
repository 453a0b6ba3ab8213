"""petseg-run beside what users would pick instead, each a fresh command from file to mask: `docs/performance.md`.

    python benchmarks/performance.py [--model MODEL.onnx] [--rounds 3] [--cohort COHORT.csv] [--nnunet-python PYTHON]

The contenders take turns, on the same scan, weights and threads. The machine should do nothing else meanwhile. A cohort
that no training saw adds the accuracy, and a Python in which nnU-Net v2 is installed adds nnU-Net.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from time import perf_counter
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rivals import monai
from scene import write_body, write_wide_model
from torch.utils.flop_counter import FlopCounterMode

from petseg_runtime import Segmenter, read_volume
from petseg_runtime.backends.openvino import has_bf16
from petseg_runtime.io.images import read_mask
from petseg_runtime.manifest import read_model
from petseg_runtime.preprocessing import preprocess, restore
from petseg_runtime.segmenter import BUNDLED_MODEL
from petseg_runtime.sliding_window import fitted_window, window_starts
from petseg_train.cohort import read_cohort
from petseg_train.metrics import dice
from petseg_train.networks.exported import network_of_model
from petseg_train.report import markdown_table

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
EXAMPLE = ROOT / "examples" / "pelvis.nii.gz"
BUNDLED = Path(str(files("petseg_runtime") / "models" / BUNDLED_MODEL))
LENGTHS = (100, 300, 600, 1200)
WHOLE_BODY = 437
BATCH = 20

Command = Sequence[str | Path]
console = Console(stderr=True)


# A process counts as its own peak what its parent held when it was made, so the parent is a small one.
LAUNCHER = """
import os, sys, time
started = time.perf_counter()
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)])
_, status, usage = os.wait4(process, 0)
print(time.perf_counter() - started, usage.ru_maxrss / 1024)
sys.exit(status != 0)
"""


def timed(command: Command) -> tuple[float, float]:
    """Seconds and peak memory in MB of one command; what it prints goes to standard error.

    Raises
    ------
    CalledProcessError : if it fails.
    """
    launched = [sys.executable, "-S", "-c", LAUNCHER, *map(str, command)]
    printed = subprocess.run(launched, stdout=subprocess.PIPE, text=True, check=True).stdout
    seconds, memory = map(float, printed.split())
    return seconds, memory


def petseg_run(*arguments: str | Path) -> Command:
    """The command of petseg-run on the CPU."""
    return [BIN / "petseg-run", *arguments, "-q", "-d", "cpu", "--unit", "suvbw"]


def in_turn(contenders: dict[str, Command], rounds: dict[str, int]) -> dict[str, list[tuple[float, float]]]:
    """Run the contenders one after the other, again and again; a first run of each is not counted, but for the slow."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for name, command in contenders.items():
        if rounds[name] == max(rounds.values()):
            timed(command)  # files and libraries into the page cache
    for turn in range(max(rounds.values())):
        for name, command in contenders.items():
            if turn < rounds[name]:
                found[name].append(timed(command))
                console.print(f"{name}, round {turn + 1}: {found[name][-1][0]:.1f} s", style="dim")
    return found


def whole_body(folder: Path, rounds: int, nnunet_python: Path | None) -> dict[str, Any]:
    """Each contender on the whole-body scan with the network of the paper's width."""
    scan, model = folder / f"body{WHOLE_BODY}.nii.gz", folder / "wide.onnx"
    ours, rivals = folder / "ours", ROOT / "benchmarks" / "rivals.py"
    contenders: dict[str, Command] = {
        "petseg-run, f32": petseg_run(scan, "-m", model, "-o", ours, "--precision", "f32"),
        "petseg-run, ONNX Runtime": petseg_run(scan, "-m", model, "-o", folder / "ort", "--backend", "onnxruntime"),
        "PyTorch, our windows": [sys.executable, rivals, "windows", model, scan, folder / "windows.nii.gz"],
        "PyTorch and MONAI": [sys.executable, rivals, "monai", model, scan, folder / "monai.nii.gz"],
    }
    if has_bf16():
        timed([BIN / "petseg-run", "--self-test", "-m", model, "-q"])
        contenders["petseg-run, bf16"] = petseg_run(scan, "-m", model, "-o", folder / "bf16", "--precision", "bf16")
        contenders["PyTorch, our windows, bf16"] = [
            *contenders["PyTorch, our windows"][:-1],
            folder / "windows16.nii.gz",
            "--bf16",
        ]
    if nnunet_python is not None:
        script = ROOT / "benchmarks" / "nnunet.py"
        contenders["nnU-Net v2"] = [nnunet_python, script, model, scan, folder / "nnunet.nii.gz"]
    fewer = {"PyTorch and MONAI": max(1, rounds - 1), "nnU-Net v2": 1}
    found = in_turn(contenders, {name: fewer.get(name, rounds) for name in contenders})
    record = json.loads((ours / f"body{WHOLE_BODY}_run.json").read_text())
    masks = {
        "petseg-run, f32": ours / f"body{WHOLE_BODY}_petseg.nii.gz",
        "petseg-run, ONNX Runtime": folder / "ort" / f"body{WHOLE_BODY}_petseg.nii.gz",
        "petseg-run, bf16": folder / "bf16" / f"body{WHOLE_BODY}_petseg.nii.gz",
        "PyTorch, our windows, bf16": folder / "windows16.nii.gz",
        "PyTorch and MONAI": folder / "monai.nii.gz",
    }
    reference = read_mask(folder / "windows.nii.gz")[0] > 0
    agreement = {name: dice(read_mask(path)[0] > 0, reference) for name, path in masks.items() if name in contenders}
    return {"runs": found, "agreement": agreement, "stages_s": record["timings_s"], **_arithmetic(scan, model, record)}


def _arithmetic(scan: Path, model: Path, record: dict[str, Any]) -> dict[str, float]:
    """Floating-point operations of the windows, and what share of this machine's peak the inference reached."""
    manifest = read_model(model).manifest
    shape = preprocess(read_volume(scan, "suvbw"), manifest.preprocessing).array.shape
    window = fitted_window(manifest.patch_size, manifest.fit_multiple, shape)
    counts = [len(window_starts(max(n, w), w, manifest.overlap)) for n, w in zip(shape, window)]
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network_of_model(model)[0](torch.zeros(1, 1, *window))
    operations = counter.get_total_flops() * int(np.prod(counts))
    square = torch.randn(3000, 3000)
    seconds = []
    for _ in range(7):
        started = perf_counter()
        square @ square
        seconds.append(perf_counter() - started)
    peak = 2 * 3000**3 / min(seconds)
    return {
        "windows": int(np.prod(counts)),
        "gflop": operations / 1e9,
        "peak_gflops": peak / 1e9,
        "share_of_peak": operations / record["timings_s"]["inference"] / peak,
    }


def fresh_command(folder: Path, model: Path, rounds: int) -> dict[str, Any]:
    """One command on the example, start-up included."""
    runs = in_turn(
        {"scan": petseg_run(EXAMPLE, "-m", model, "-o", folder), "version": [BIN / "petseg-run", "--version"]},
        {"scan": rounds + 2, "version": rounds + 2},
    )
    stages = json.loads((folder / "pelvis_run.json").read_text())["timings_s"]
    seconds = runs["scan"][-1][0]  # of the run whose stages they are; its end counts too
    later = ("inference", "postprocessing", "quantification", "writing")
    return {**runs, "stages_s": stages, "to_first_window_s": seconds - sum(stages[stage] for stage in later)}


def by_length(folder: Path) -> list[dict[str, float]]:
    """Seconds and memory for scans of growing length, with the wide network."""
    rows = []
    for slices in LENGTHS:
        command = petseg_run(folder / f"body{slices}.nii.gz", "-m", folder / "wide.onnx", "-o", folder / "lengths")
        timed(command)
        seconds, memory = timed(command)
        record = json.loads((folder / "lengths" / f"body{slices}_run.json").read_text())
        rows.append({"slices": slices, "seconds": seconds, "MB": memory, "inference": record["timings_s"]["inference"]})
    return rows


def batch(folder: Path, model: Path) -> dict[str, float]:
    """Scans a minute of one command on twenty copies of the example."""
    inputs = folder / "batch"
    inputs.mkdir()
    for number in range(BATCH):
        shutil.copy(EXAMPLE, inputs / f"scan{number:02d}.nii.gz")
    seconds, memory = timed(petseg_run(inputs, "-m", model, "-o", folder / "batch-results", "-s"))
    return {"seconds": seconds, "scans_per_minute": 60 * BATCH / seconds, "MB": memory}


def accuracy(cohort: Path, model: Path) -> dict[str, Any]:
    """DSC against the truth of petseg-run's masks and of MONAI's on the whole volume."""
    segmenter, network = Segmenter(model, "cpu"), network_of_model(model)[0]
    manifest = segmenter.manifest
    ours, theirs = [], []
    for case in read_cohort(cohort):
        volume, truth = read_volume(case.image, "suvbw"), read_mask(case.mask)[0] > 0
        ours.append(dice(segmenter.segment(volume).mask > 0, truth))
        whole = manifest.preprocessing.__class__(**{**vars(manifest.preprocessing), "body_margin_mm": 1e4})
        prepared = preprocess(volume, whole)
        with torch.inference_mode():
            probabilities = np.ascontiguousarray(monai(network, prepared, manifest))
        theirs.append(dice(restore(probabilities, prepared.frame) >= manifest.threshold, truth))
    return {"petseg-run": ours, "PyTorch and MONAI": theirs}


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLED, help="default the bundled one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cohort", type=Path, help="patients that no training saw, for the accuracy")
    parser.add_argument("--nnunet-python", type=Path, help="a Python in which nnU-Net v2 and PETSeg are installed")
    parser.add_argument("--state", type=Path, default=ROOT / "runs" / "performance.json", help="what is done already")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "performance.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # What passed a self-test on this machine before would run in bf16; here only what asks for it does.
        os.environ["XDG_STATE_HOME"] = str(folder / "state")
        for slices in (*LENGTHS, WHOLE_BODY):
            write_body(EXAMPLE, slices, folder / f"body{slices}.nii.gz")
        write_wide_model(options.model, folder / "wide.onnx")
        parts: dict[str, Callable[[], Any]] = {
            "fresh": lambda: fresh_command(folder / "fresh", options.model, options.rounds),
            "batch": lambda: batch(folder, options.model),
            "lengths": lambda: by_length(folder),
            "whole_body": lambda: whole_body(folder, options.rounds, options.nnunet_python),
        }
        if options.cohort is not None:
            parts["accuracy"] = lambda: accuracy(options.cohort, options.model)
        manifest = read_model(options.model).manifest
        found = {
            "machine": _machine(),
            "model": f"{manifest.name} {manifest.version}",
            "weights": manifest.weights_sha256,
            "commit": subprocess.check_output(["git", "describe", "--always", "--dirty"], text=True, cwd=ROOT).strip(),
            "rounds": options.rounds,
        }
        for name, measure in parts.items():
            kept = _kept(options.state, found)
            if name not in kept:
                console.print(name)
                kept |= {name: measure()}
                options.state.parent.mkdir(exist_ok=True)
                options.state.write_text(json.dumps(kept, indent=1) + "\n")
        found = _kept(options.state, found)
    picture = options.output.with_suffix(".png")
    _draw(found, picture)
    options.output.write_text(_page(found, picture.name), encoding="utf-8")
    options.state.unlink()  # the next benchmark measures anew
    print(f"wrote {options.output}")


def _kept(state: Path, of: dict[str, Any]) -> dict[str, Any]:
    """What an interrupted benchmark of the same machine, model, commit and rounds has measured."""
    found: dict[str, Any] = json.loads(state.read_text()) if state.exists() else of
    return found if {key: found[key] for key in of} == of else of


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return f"{model}, {os.cpu_count()} cores, {'with' if has_bf16() else 'without'} bf16 instructions"


def _spread(seconds: Sequence[float]) -> str:
    return f"{min(seconds):.2f}-{max(seconds):.2f}" if len(seconds) > 1 else "one run"


def _page(found: dict[str, Any], picture: str) -> str:
    body, fresh, batch_of = found["whole_body"], found["fresh"], found["batch"]
    medians = {name: statistics.median(s for s, _ in runs) for name, runs in body["runs"].items()}
    ours = medians["petseg-run, f32"]
    rows = [
        [
            name,
            f"{medians[name]:.1f}",
            _spread([s for s, _ in runs]),
            f"{medians[name] / ours:.1f}",
            f"{statistics.median(m for _, m in runs):.0f}",
            f"{body['agreement'][name]:.4f}" if name in body["agreement"] else "",
        ]
        for name, runs in body["runs"].items()
    ]
    table = pd.DataFrame(rows, columns=["command", "median s", "range", "ratio", "peak MB", "DSC"])
    stages = pd.DataFrame(
        [["whole body, paper's width", *_stage_cells(body["stages_s"])], ["example", *_stage_cells(fresh["stages_s"])]],
        columns=["scan", *body["stages_s"]],
    )
    lengths = pd.DataFrame(
        [[r["slices"], f"{r['seconds']:.1f}", f"{r['inference']:.1f}", f"{r['MB']:.0f}"] for r in found["lengths"]],
        columns=["slices", "seconds", "of it inference", "peak MB"],
    )
    scan, version = ([s for s, _ in fresh[name]] for name in ("scan", "version"))
    share, peak = f"{100 * body['share_of_peak']:.0f}", f"{body['peak_gflops']:.0f}"
    whole, start = f"{statistics.median(scan):.2f} s ({_spread(scan)})", f"{fresh['to_first_window_s']:.2f} s"
    nnunet = _NNUNET if "nnU-Net v2" in body["runs"] else ""
    answers = f"{statistics.median(version):.2f} s ({_spread(version)})"
    return f"""# How fast, beside what

Written by `benchmarks/performance.py` (`make bench`), commit {found["commit"]}, model {found["model"]},
on an {found["machine"]}.
Every number is of a fresh process from the scan's file to the mask's file, start-up included; the
commands took turns. Machines that are shared are noisy: mind the ratios of medians, not the seconds.

## A whole body with the network of the paper's width

150 × 150 × {WHOLE_BODY} voxels of 4 × 4 × 2 mm (the example, mirrored upwards), 24 filters ({found["model"]} with
its channels doubled, which computes the same), patches of 64 × 128 × 128. `ratio` is to petseg-run in f32, `DSC` the
agreement of the mask with that of PyTorch on our windows; other windows give another mask, as the network was trained
on its own.

{markdown_table(table)}

- *PyTorch and MONAI*: eager, `SlidingWindowInferer` with overlap 0.5 and Gaussian weights over the whole volume, as
  MONAI's bundles run it. *PyTorch, our windows*: eager, on exactly the {body["windows"]} windows of petseg-run (the
  body's box, overlap 0.25, windows that fit the body).{nnunet} All of them read, prepare and write with PETSeg's own
  code, which flatters them.
- The windows of petseg-run take {body["gflop"]:.0f} GFLOP. Its inference runs at {share} % of the machine's peak, taken
  as that of PyTorch's matrix product ({peak} GFLOP/s).

## Stages

Seconds as `_run.json` records them; imports and the end of the process are not among them. The model loads meanwhile.

{markdown_table(stages)}

## One fresh command with {found["model"]}

The example takes {whole}, of which {start} pass until the first window. `petseg-run --version` takes {answers}. A batch
of {BATCH} such scans, with quantities, runs at {batch_of["scans_per_minute"]:.0f} scans a minute.

## Longer scans

The paper's width again, one run each.

{markdown_table(lengths)}

![time and memory against length]({picture})
{_accuracy(found)}"""


_NNUNET = """
  *nnU-Net v2*: its predictor with the network of its default 3d_fullres plan (patches of 128³), untrained, without
  mirroring."""


def _stage_cells(stages: dict[str, float]) -> list[str]:
    return [f"{seconds:.2f}" for seconds in stages.values()]


def _accuracy(found: dict[str, Any]) -> str:
    if "accuracy" not in found:
        return ""
    ours, theirs = (np.array(found["accuracy"][name]) for name in ("petseg-run", "PyTorch and MONAI"))
    difference, error = (ours - theirs).mean(), (ours - theirs).std(ddof=1) / np.sqrt(len(ours))
    return f"""
## Accuracy

{found["model"]} on {len(ours)} simulated patients that no training saw, against their truth: DSC {ours.mean():.3f} by
petseg-run, {theirs.mean():.3f} by PyTorch and MONAI on the whole volume with overlap 0.5; mean difference
{difference:+.4f} ± {error:.4f} (standard error).
"""


def _draw(found: dict[str, Any], path: Path) -> None:
    rows = found["lengths"]
    slices = [row["slices"] for row in rows]
    figure, (time, memory) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    time.plot(slices, [row["seconds"] for row in rows], "o-", label="whole command")
    time.plot(slices, [row["inference"] for row in rows], "s--", label="inference")
    time.set(xlabel="slices of 2 mm", ylabel="seconds", ylim=(0, None), xlim=(0, None))
    time.legend(frameon=False)
    memory.plot(slices, [row["MB"] for row in rows], "o-")
    memory.set(xlabel="slices of 2 mm", ylabel="peak memory, MB", ylim=(0, None), xlim=(0, None))
    for axes in (time, memory):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
