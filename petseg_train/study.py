"""The paper's study with one command: cohort, truth, folds of both networks, T40, tests, tables, figures, report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from petseg_runtime.outputs.files import prepare_folder, whole_file, write_json
from petseg_train.cohort import Case, read_cohort
from petseg_train.config import PRESETS, TrainingConfig
from petseg_train.cross_validation import build_networks, cross_validate, run_folder
from petseg_train.figures import MODELS, box_plots, cohort_figure, decile_plots, slice_figure
from petseg_train.report import PROPOSED, write_report
from petseg_train.simulation.calibration import calibration
from petseg_train.simulation.cohort import VERSION, simulate_cohort, simulation_of
from petseg_train.statistics import by_decile, study_summary


def run_study(
    output: Path,
    work: Path,
    config: TrainingConfig,
    networks: Sequence[str],
    cohort: Path | None = None,
    patients: int = 232,
    seed: int = 2021,
    jobs: int | None = None,
    accelerator: str = "auto",
) -> Path:
    """Do the study, or what is missing of it; returns the report.

    Parameters
    ----------
    output : gets `report.md`, `results.csv`, `summary.json`, figures, and the scores of each fold.
    work : gets the simulated cohort, checkpoints and caches; only needed while the study runs.
    cohort : CSV of patients; a cohort of `patients` is simulated with `seed` where it is None.
    """
    build_networks(config, networks)  # before half an hour of simulation
    prepare_folder(output)
    csv = simulate_cohort(work / "cohort", patients, seed, jobs) if cohort is None else cohort
    cases = read_cohort(csv)
    identity = f"simulated, version {VERSION}, {patients} patients, seed {seed}" if cohort is None else None
    simulated_with = simulation_of(csv)
    simulated = simulated_with is not None
    results = cross_validate(
        cases, config, networks, output, work, accelerator, window_invariance=False, cohort=identity
    )
    models = [model for model in MODELS if model in set(results["model"])]
    write_json({"cases": len(cases), "models": study_summary(results, models)}, output / "summary.json")
    calibrated = _calibration(csv, output) if simulated else None
    figures = _figures(cases, results, output, work)
    about = {
        "Cohort": f"{len(cases)} simulated patients (seed {simulated_with})" if simulated else f"{len(cases)} patients",
        "Training": f"{config.epochs} epochs, batch {config.batch_size}, patches {config.patch_size} (z, y, x), "
        f"network {config.network_settings}, {config.precision} or, where the machine would emulate it, 32-true; the "
        "same for both networks",
        "Budget": _budget(config, cases),
        "Truth": "FLAB in a volume of interest without the bladder, reviewed" if simulated else "the cohort's masks",
        "Files": "`results.csv` a row a case and model, `summary.json`, `splits.json` config and folds",
    }
    report = output / "report.md"
    with whole_file(report) as temporary:
        temporary.write_text(write_report(results, calibrated, about, figures), encoding="utf-8")
    return report


def _budget(config: TrainingConfig, cases: Sequence[Case]) -> str:
    """How much a network saw of its patients, beside the paper's: one patch of each case in each of 400 epochs."""
    paper, (depth, rows, columns) = PRESETS["paper"], PRESETS["paper"].patch_size
    centres = len({case.centre for case in cases})
    trained_on = len(cases) * (1 - 1 / centres) * (1 - config.tuning_share)  # of a fold, in the mean
    patches = config.epochs * (config.patches_per_epoch or round(trained_on))
    share = patches * math.prod(config.patch_size) / (paper.epochs * trained_on * depth * rows * columns)
    return (
        f"{patches:,} patches a network and fold; {100 * share:.2g} % of the voxels that training by the paper on "
        f"these patients would show it ({paper.epochs} epochs, {columns} x {rows} x {depth} voxels of each case)"
    )


def _calibration(csv: Path, output: Path) -> pd.DataFrame:
    path = output / "calibration.csv"
    if not path.exists():
        with whole_file(path) as temporary:
            calibration(csv).to_csv(temporary, index=False)
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def _figures(cases: Sequence[Case], results: pd.DataFrame, output: Path, work: Path) -> list[str]:
    """Draw the figures that can be drawn; returns the names of those that are there.

    Slices need the predicted masks of `work`; where those are gone, the pictures of an earlier run stay.
    """
    box_plots(results, output / "scores.png")
    proposed = results[results["model"] == PROPOSED]
    if len(proposed):
        deciles = {"tumour volume": by_decile(proposed, "truth_ml"), "contrast": by_decile(proposed, "contrast")}
        decile_plots(deciles, output / "deciles.png")
        _draw_slices(cases, proposed, output, work)
    cohort_figure(cases, output / "cohort.png")
    names = ("cohort.png", "scores.png", "deciles.png", "typical.png", "lowest.png")
    return [name for name in names if (output / name).exists()]


def _draw_slices(cases: Sequence[Case], results: pd.DataFrame, output: Path, work: Path) -> None:
    """For each fold the case with the median DSC (Figure 3), and the one with the lowest (Figure 4)."""
    by_name = {case.name: case for case in cases}
    for file, quantile in (("typical.png", 0.5), ("lowest.png", 0.0)):
        shown = []
        for centre, rows in results.groupby("centre", sort=False):
            row = rows.sort_values("dsc").iloc[int(quantile * (len(rows) - 1))]
            mask = run_folder(work, PROPOSED, str(centre)) / "masks" / f"{row['case']}.nii.gz"
            if mask.exists():
                scores = ", ".join(f"{row[metric]:.2f}" for metric in ("dsc", "precision", "recall"))
                shown.append((f"{centre}\n({scores})", by_name[row["case"]], mask))
        if len(shown) == results["centre"].nunique():
            slice_figure(shown, output / file)
