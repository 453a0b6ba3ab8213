"""Leave one centre out: train on the others, test on it, for each centre and network. Resumes per fold and epoch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from petseg_runtime.errors import UsageError
from petseg_runtime.outputs.files import prepare_folder, whole_file
from petseg_train.cohort import Case
from petseg_train.config import TrainingConfig
from petseg_train.evaluation import evaluate, summarise
from petseg_train.inference import torch_segmenter
from petseg_train.networks import NETWORKS
from petseg_train.training import build_network, fit, load_module, split_tuning


def cross_validate(
    cases: Sequence[Case], config: TrainingConfig, networks: Sequence[str], output: Path, accelerator: str = "auto"
) -> pd.DataFrame:
    """Train and test every fold; returns the summary and writes `splits.json`, `results.csv` and `summary.csv`.

    Each fold has a run folder `<network>/<centre>` in `output`; what is finished there is not done again. Networks may
    be added later, or trained by processes side by side: the tables hold every fold that is finished in `output`.

    Raises
    ------
    UsageError : if the cohort has one centre only, or `output` holds a study of other folds or settings.
    """
    centres = list(dict.fromkeys(case.centre for case in cases))
    if len(centres) < 2:
        raise UsageError(f"Leaving one centre out needs two centres or more; the cohort has {centres}.")
    configs = [replace(config, network=network) for network in networks]
    for fold_config in configs:  # all of them, before hours of training
        build_network(fold_config)
    prepare_folder(output)
    _write_splits(cases, centres, config, output / "splits.json")
    for fold_config in configs:
        for centre in centres:
            _run_fold(cases, centre, fold_config, output / fold_config.network / centre, accelerator)
    finished = [output / network / centre / "results.csv" for network in NETWORKS for centre in centres]
    tables = [pd.read_csv(path, dtype={"case": str, "centre": str}) for path in finished if path.exists()]
    # T40 and the ellipsoid come with every network; once is enough.
    results = pd.concat(tables).drop_duplicates(["case", "model"])
    _write_table(results, output / "results.csv")
    summary = summarise(results)
    _write_table(summary, output / "summary.csv")
    return summary


def _run_fold(cases: Sequence[Case], centre: str, config: TrainingConfig, run_dir: Path, accelerator: str) -> None:
    checkpoint = fit([case for case in cases if case.centre != centre], config, run_dir, accelerator=accelerator)
    if not (run_dir / "results.csv").exists():
        segmenter = torch_segmenter(load_module(checkpoint, accelerator))
        test = [case for case in cases if case.centre == centre]
        _write_table(evaluate(segmenter, test, config.network, config.seed), run_dir / "results.csv")


def _write_table(table: pd.DataFrame, path: Path) -> None:
    with whole_file(path) as temporary:
        table.to_csv(temporary, index=False)


def _write_splits(cases: Sequence[Case], centres: Sequence[str], config: TrainingConfig, path: Path) -> None:
    splits = {}
    for centre in centres:
        training, tuning = split_tuning([case for case in cases if case.centre != centre], config)
        splits[centre] = {
            "training": [case.name for case in training],
            "tuning": [case.name for case in tuning],
            "test": [case.name for case in cases if case.centre == centre],
        }
    text = json.dumps({"seed": config.seed, "folds": splits}, indent=1)
    if path.exists() and path.read_text() != text:
        raise UsageError(f"{path.parent.name} holds a study with other folds. Choose another folder with --output.")
    with whole_file(path) as temporary:
        temporary.write_text(text)
