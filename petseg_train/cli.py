"""petseg-train: from patients, real or simulated, to a trained and tested model.

`simulate` makes a cohort, `ground-truth` a mask of one scan; `fit` trains a model, `evaluate` scores one,
`window-invariance` says how far its mask of a scan depends on where the windows lie, `cross-validate` leaves one
centre out at a time, and `study` does all of it and writes the paper's tables.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from unicodedata import normalize

import typer
from rich.console import Console
from rich.table import Table

from petseg_runtime.errors import InputError, PetsegError, UsageError

if TYPE_CHECKING:
    import pandas as pd

    from petseg_runtime.segmenter import Segmenter
    from petseg_train.cohort import Case

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

Cohort = Annotated[Path, typer.Argument(help="CSV with the columns case, centre, image, mask")]
Cohorts = Annotated[list[Path], typer.Argument(help="CSVs with the columns case, centre, image, mask")]
Output = Annotated[Path, typer.Option("--output", "-o", help="run folder; an interrupted run in it goes on")]
Config = Annotated[str, typer.Option(help="paper, cpu, or a JSON file of changed fields")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="write also over a file that is there")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default all")]


class Device(StrEnum):
    """What trains or predicts; auto takes a GPU where there is one."""

    auto = "auto"
    cpu = "cpu"
    gpu = "gpu"


Accelerator = Annotated[Device, typer.Option(help="auto takes a GPU where there is one")]
WINDOW_SHIFTS_SEED = 2021  # the same shifts for every model
Model = Annotated[Path, typer.Argument(help="last.ckpt of petseg-train fit, or an exported .onnx file")]


class Network(StrEnum):
    """The proposed network and the baseline."""

    residual_scse_unet = "residual_scse_unet"
    standard_unet = "standard_unet"


ALL_NETWORKS = list(Network)
Networks = Annotated[list[Network], typer.Option("--network", help="repeatable")]
Work = Annotated[
    Path | None, typer.Option(help="folder for checkpoints and caches, if they are not to lie in --output")
]


@app.command()
def fit(
    cohort: Cohorts,
    output: Output,
    config: Config = "paper",
    network: Annotated[Network | None, typer.Option(help="network to train, in place of the config's")] = None,
    leave_out: Annotated[list[str] | None, typer.Option(help="centre to keep out of the training; repeatable")] = None,
    pretrained: Annotated[
        Path | None, typer.Option(help="checkpoint or ONNX file whose weights the training begins with")
    ] = None,
    only_train: Annotated[
        list[Path] | None,
        typer.Option(help="CSV of further cases that never watch, and take turns as one centre does; repeatable"),
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help="processes of data-parallel training")] = 1,
    accelerator: Accelerator = Device.auto,
    threads: Threads = None,
) -> None:
    """Train a network on one or more cohorts; the same command goes on with an interrupted run."""
    from petseg_train.cohort import check_cases, read_each_cohort
    from petseg_train.config import load_config
    from petseg_train.training import fit as train

    _set_threads(threads)
    cohorts = read_each_cohort([*cohort, *(only_train or ())])
    kept = {case.name for case in _select([*chain(*cohorts)], leave_out or (), keep=False)}
    settings = load_config(config, **({} if network is None else {"network": network.value}))
    if leave_out:  # none that is trained on may be one that is left out
        check_cases([*chain(*cohorts)], settings.preprocessing)
    cohorts = [[case for case in cases if case.name in kept] for cases in cohorts]
    checkpoint = train(
        [*chain(*cohorts[: len(cohort)])],
        settings,
        output,
        devices,
        accelerator,
        pretrained=pretrained,
        only_train=cohorts[len(cohort) :],
    )
    print(f"wrote {checkpoint}")


@app.command()
def evaluate(
    model: Model,
    cohort: Cohorts,
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV to write, a row a case and method")],
    centre: Annotated[list[str] | None, typer.Option(help="evaluate on this centre only; repeatable")] = None,
    accelerator: Accelerator = Device.auto,
    window_invariance: Annotated[bool, typer.Option(help="also shift the windows and compare the masks")] = True,
    threads: Threads = None,
    overwrite: Overwrite = False,
) -> None:
    """Score a model on one or more cohorts, with T40 and the ellipsoid beside it."""
    from petseg_runtime.outputs.files import check_output_file, prepare_folder, whole_file
    from petseg_train.cohort import check_cases, read_cohorts
    from petseg_train.evaluation import evaluate as score
    from petseg_train.evaluation import summarise

    check_output_file(output, [model, *cohort], overwrite)
    cases = _select(read_cohorts(cohort), centre or (), keep=True)
    segmenter, name = _open_model(model, accelerator, threads)
    prepare_folder(output.parent)
    check_cases(cases, segmenter.manifest.preprocessing)
    _warn_of_training_cases(model, [case.name for case in cases])
    results = score(segmenter, cases, name, WINDOW_SHIFTS_SEED if window_invariance else None)
    with whole_file(output) as temporary:
        results.to_csv(temporary, index=False)
    _print_summary(summarise(results))
    if window_invariance:
        scores = results["window_invariance"].dropna()
        print(
            f"window invariance: mean {scores.mean():.3f}, lowest case {scores.min():.3f}, of the {len(scores)} of "
            f"{len(cases)} cases in which anything was found"
            if len(scores)
            else f"window invariance: nothing was found in any of the {len(cases)} cases, which says nothing of it"
        )
    print(f"wrote {output}")


@app.command("window-invariance")
def window_invariance_of(
    model: Model,
    scan: Annotated[list[Path], typer.Argument(help="scans: files, or folders of a DICOM series")],
    accelerator: Accelerator = Device.auto,
    threads: Threads = None,
) -> None:
    """Shift the windows over scans and compare the masks; no truth is needed. Below 0.95 do not use the model there."""
    import numpy as np

    from petseg_runtime import read_volume
    from petseg_train.window_invariance import window_invariance as invariance

    segmenter, _ = _open_model(model, accelerator, threads)
    for path in scan:
        try:
            scored = invariance(segmenter, read_volume(path), np.random.default_rng(WINDOW_SHIFTS_SEED))
        except InputError as error:
            raise InputError(f"{path.name}: {error}") from error
        found = f"mean {scored.mean:.3f}, lowest {scored.lowest:.3f}"
        print(f"{path.name}: {'nothing was found on any grid of windows' if np.isnan(scored.mean) else found}")


@app.command("cross-validate")
def cross_validate(
    cohort: Cohort,
    output: Output,
    config: Config = "paper",
    networks: Networks = ALL_NETWORKS,
    work: Work = None,
    accelerator: Accelerator = Device.auto,
    window_invariance: Annotated[bool, typer.Option(help="also shift the windows and compare the masks")] = True,
    threads: Threads = None,
) -> None:
    """Leave each centre out in turn, train on the others, and test on it."""
    from petseg_train.cohort import read_cohort
    from petseg_train.config import load_config
    from petseg_train.cross_validation import cross_validate as run
    from petseg_train.evaluation import summarise

    _set_threads(threads)
    names = [network.value for network in networks]
    cases = read_cohort(cohort)
    results = run(cases, load_config(config), names, output, work, accelerator, window_invariance)
    _print_summary(summarise(results))
    print(f"wrote {output / 'results.csv'} and {output / 'summary.csv'}")


@app.command()
def simulate(
    output: Annotated[Path, typer.Option("--output", "-o", help="folder of the cohort; what is missing in it is made")],
    patients: Annotated[int, typer.Option(help="two a centre or more")] = 232,
    seed: Annotated[int, typer.Option(min=0, help="the same seed makes the same patients")] = 2021,
    jobs: Annotated[int | None, typer.Option(min=1, help="processes; default one a CPU")] = None,
    dicom: Annotated[bool, typer.Option("--dicom", help="write each scan as a DICOM series as well")] = False,
    trunk: Annotated[bool, typer.Option("--trunk", help="scans go on into thorax and head")] = False,
) -> None:
    """Simulate the five-centre cohort of cervical tumours, with its truth."""
    from petseg_train.cohort import read_cohort
    from petseg_train.figures import cohort_figure
    from petseg_train.simulation.calibration import calibration
    from petseg_train.simulation.cohort import simulate_cohort

    csv = simulate_cohort(output, patients, seed, jobs, dicom, trunk)
    cohort_figure(read_cohort(csv), output / "cohort.png")
    _print_calibration(calibration(csv))
    print(f"wrote {csv} and {output / 'cohort.png'}")


class Method(StrEnum):
    """Ways to a mask."""

    flab = "flab"
    flab3 = "flab3"
    t40 = "t40"
    t41 = "t41"
    t50 = "t50"
    suv25 = "suv2.5"
    staple = "staple"


@app.command("ground-truth")
def ground_truth(
    scan: Annotated[Path, typer.Argument(help="NIfTI, MHA or NRRD file, or a DICOM series")],
    output: Annotated[Path, typer.Option("--output", "-o", help="mask to write (.nii.gz, .mha, .nrrd)")],
    method: Annotated[
        Method, typer.Option(help="flab3: three classes, for a heterogeneous tumour; staple: consensus of --mask")
    ] = Method.flab,
    voi: Annotated[Path | None, typer.Option(help="mask round the tumour that leaves out the bladder")] = None,
    masks: Annotated[list[Path] | None, typer.Option("--mask", help="for staple; repeatable")] = None,
    unit: Annotated[str | None, typer.Option(help="suvbw: what a NIfTI, MHA or NRRD holds, for suv2.5")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of FLAB's draws: the same seed, the same mask")] = 2021,
    start: Annotated[
        list[float] | None, typer.Option(help="first mean of a class of FLAB, lowest first; once a class")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Outline a tumour: FLAB or a threshold in a volume of interest, or the consensus of several masks."""
    from petseg_runtime.volume import Unit
    from petseg_train.ground_truth.files import make_mask

    volume_ml = make_mask(
        scan, output, method.value, voi, masks or [], seed, unit or Unit.UNKNOWN, start=start, overwrite=overwrite
    )
    print(f"wrote {output}: {volume_ml:.1f} ml")


@app.command()
def study(
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for report, tables, figures and scores")],
    cohort: Annotated[Path | None, typer.Argument(help="CSV of patients; default a simulated cohort")] = None,
    work: Annotated[Path | None, typer.Option(help="for cohort, checkpoints and caches [default: runs/OUTPUT]")] = None,
    patients: Annotated[int | None, typer.Option(help="of the simulated cohort [default: 232]")] = None,
    config: Annotated[str, typer.Option(help="paper, cpu, smoke, or a JSON file of changed fields")] = "paper",
    networks: Networks = ALL_NETWORKS,
    seed: Annotated[int | None, typer.Option(min=0, help="of the simulated cohort [default: 2021]")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="processes that simulate; default one a CPU")] = None,
    accelerator: Accelerator = Device.auto,
    threads: Threads = None,
) -> None:
    """Repeat the paper's study, and write its report; the same command goes on with what is missing."""
    from petseg_train.config import load_config
    from petseg_train.study import run_study

    if cohort is not None and (patients, seed, jobs) != (None, None, None):
        raise UsageError(
            f"--patients, --seed and --jobs are of the simulated cohort, and {cohort.name} was given. Leave them out."
        )
    _set_threads(threads)
    names = [network.value for network in networks]
    work = Path("runs") / output.name if work is None else work
    patients, seed = 232 if patients is None else patients, 2021 if seed is None else seed
    report = run_study(output, work, load_config(config), names, cohort, patients, seed, jobs, accelerator)
    print(f"wrote {report}")


def run_app(application: typer.Typer, program: str) -> None:
    """Run a command-line application; a PetsegError becomes one line and its exit code."""
    try:
        application()
    except PetsegError as error:
        _messages().print(f"{program}: {' '.join(str(error).split())}", style="red", markup=False)
        sys.exit(error.exit_code)


def print_table(table: Table) -> None:
    """Print a table; into a file or a pipe 100 columns wide, where rich would squeeze it into 80."""
    Console(highlight=False, width=None if sys.stdout.isatty() else 100).print(table)


def main() -> None:
    """Run petseg-train; ends with its exit code."""
    run_app(app, "petseg-train")


def _messages() -> Console:
    return Console(stderr=True, soft_wrap=True, highlight=False)


def _warn_of_training_cases(model: Path, names: Sequence[str]) -> None:
    """Say how many of the cases a checkpoint was trained on, or watched by, as far as the run beside it tells."""
    try:
        splits = json.loads(model.with_name("run.json").read_text())["splits"]
        known = {*splits["training"], *splits["tuning"]}
    except (OSError, ValueError, KeyError, TypeError):
        return
    seen = [name for name in names if name in known]
    if seen:
        _messages().print(
            f"{len(seen)} of the {len(names)} cases have the names of cases that trained or watched this model.",
            style="yellow",
        )


def _open_model(model: Path, accelerator: str, threads: int | None) -> tuple[Segmenter, str]:
    """The Segmenter of a checkpoint, in PyTorch, or of an exported model, as it runs at hospitals; and its name."""
    from petseg_runtime.segmenter import Segmenter

    if model.suffix == ".onnx":
        segmenter = Segmenter(model, device=accelerator, threads=threads)
        return segmenter, segmenter.manifest.name
    from petseg_train.inference import torch_segmenter
    from petseg_train.training import load_module

    _set_threads(threads)
    module = load_module(model, accelerator)
    return torch_segmenter(module), module.config.network


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _select(cases: list[Case], chosen: Sequence[str], keep: bool) -> list[Case]:
    """Cases of the chosen centres (`keep`), or of all others; all where none is chosen."""
    centres, chosen = sorted({case.centre for case in cases}), [normalize("NFC", centre) for centre in chosen]
    unknown = [centre for centre in chosen if centre not in centres]
    if unknown:
        raise UsageError(f"Centre {unknown[0]!r} is not in the cohort; there are {', '.join(centres)}.")
    return [case for case in cases if (case.centre in chosen) is keep] if chosen else cases


def _print_summary(summary: pd.DataFrame) -> None:
    from petseg_train.evaluation import METRICS

    table = Table()
    for heading in ("model", "centre", "cases", "DSC", "precision", "recall"):
        table.add_column(heading, justify="left" if heading in ("model", "centre") else "right", no_wrap=True)
    for row in summary.to_dict("records"):
        scores = [_mean_and_deviation(row[f"{name}_mean"], row[f"{name}_std"]) for name in METRICS]
        table.add_row(row["model"], row["centre"], str(row["cases"]), *scores)
    print_table(table)


def _print_calibration(table: pd.DataFrame) -> None:
    shown = Table(box=None, padding=(0, 1, 0, 0))
    for column in table.columns:
        shown.add_column(str(column), justify="left" if column == table.columns[0] else "right", no_wrap=True)
    for row in table.itertuples(index=False):
        shown.add_row(*map(str, row))
    print_table(shown)


def _mean_and_deviation(mean: float, deviation: float) -> str:
    """`0.80 ± 0.03`; one case has no deviation."""
    return f"{mean:.2f}" if math.isnan(deviation) else f"{mean:.2f} ± {deviation:.2f}"


if __name__ == "__main__":
    main()
