"""Leave one centre out: train on the others, test on it, for each centre and network. Resumes per fold and epoch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from petseg_runtime.errors import UsageError
from petseg_train.cohort import Case
from petseg_train.config import TrainingConfig
from petseg_train.evaluation import evaluate, summarise
from petseg_train.inference import torch_segmenter
from petseg_train.training import fit, load_module, split_tuning


def cross_validate(
    cases: Sequence[Case], config: TrainingConfig, networks: Sequence[str], output: Path, accelerator: str = "auto"
) -> pd.DataFrame:
    """Train and test every fold; returns the summary and writes `splits.json`, `results.csv` and `summary.csv`.

    Each fold has a run folder `<network>/<centre>` in `output`; what is finished there is not done again.

    Raises
    ------
    UsageError : if the cohort has one centre only, or `output` holds another study.
    """
    centres = list(dict.fromkeys(case.centre for case in cases))
    if len(centres) < 2:
        raise UsageError(f"Leaving one centre out needs two centres or more; the cohort has {centres}.")
    output.mkdir(parents=True, exist_ok=True)
    _write_splits(cases, centres, config, output / "splits.json")
    tables = []
    for network in networks:
        fold_config = replace(config, network=network)
        for centre in centres:
            tables.append(_fold(cases, centre, fold_config, output / network / centre, accelerator))
    # T40 and the ellipsoid come with every network; once is enough.
    results = pd.concat(tables).drop_duplicates(["case", "model"])
    results.to_csv(output / "results.csv", index=False)
    summary = summarise(results)
    summary.to_csv(output / "summary.csv", index=False)
    return summary


def _fold(cases: Sequence[Case], centre: str, config: TrainingConfig, run_dir: Path, accelerator: str) -> pd.DataFrame:
    results = run_dir / "results.csv"
    if not results.exists():
        checkpoint = fit([case for case in cases if case.centre != centre], config, run_dir, accelerator=accelerator)
        test = [case for case in cases if case.centre == centre]
        segmenter = torch_segmenter(load_module(checkpoint))
        table = evaluate(segmenter, test, config.network, invariance_seed=config.seed)
        partial = results.with_suffix(".partial")
        table.to_csv(partial, index=False)
        partial.replace(results)
    return pd.read_csv(results, dtype={"case": str, "centre": str})


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
    path.write_text(text)
