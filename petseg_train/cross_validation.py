"""Leave one centre out: train on the others, test on it, for each centre and network. Resumes per fold and epoch.

Two folders, since one is worth keeping and the other is large: `output` holds `splits.json` (the config and the cases
of each fold), `folds/<network>/<centre>.csv` with the scores of each finished fold, and the tables of all; `work`
holds checkpoints, logs, preprocessed volumes and predicted masks. A fold whose scores lie in `output` is finished,
wherever its checkpoint has gone, so a study may be done in pieces and on several machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from petseg_runtime.outputs.files import prepare_folder, sync, whole_file
from petseg_train.cohort import Case, check_study_cohort, cohort_digest, further_digest
from petseg_train.config import TrainingConfig, check_claim, claim
from petseg_train.evaluation import evaluate, summarise
from petseg_train.inference import torch_segmenter
from petseg_train.networks import NETWORKS
from petseg_train.training import build_network, fit, load_module, split_tuning


def cross_validate(
    cases: Sequence[Case],
    config: TrainingConfig,
    networks: Sequence[str],
    output: Path,
    work: Path | None = None,
    accelerator: str = "auto",
    window_invariance: bool = True,
    cohort: str | None = None,
) -> pd.DataFrame:
    """Train and test every fold; returns the scores, a row a case and model, of all that are finished.

    They are written to `output` as `results.csv`, and what `summarise` makes of them as `summary.csv`.

    `cohort` says which cases these are, so that scores of others are not taken for theirs; default the digest of their
    files. A simulated cohort is known by its seed, wherever it was made.

    Networks may be added later, or trained by processes side by side, one network each: the tables hold every fold
    that is finished. `work` is `output` where it is None; `window_invariance` scores each test case for it as well.

    Raises
    ------
    UsageError : if `output` holds a study of other folds or settings.
    InputError : if a study cannot be done on the cohort, see `check_study_cohort`.
    """
    work = output if work is None else work
    configs = [replace(config, network=network) for network in networks]
    build_networks(config, networks)
    prepare_folder(output)
    further = {"further": further_digest(cases)} if cohort is None else {}
    cohort = cohort_digest(cases) if cohort is None else cohort
    splits = _splits(cases, config, cohort, further)
    otherwise = f"{output.name} holds a study of other settings or other cases."
    check_claim(output / "splits.json", splits, otherwise)
    centres = list(dict.fromkeys(case.centre for case in cases))
    todo = [
        (fold_config, centre)
        for fold_config in configs
        for centre in centres
        if not _is_finished(_scores(output, fold_config.network, centre), window_invariance)
    ]
    if todo:
        check_study_cohort(cases, config.preprocessing)
    claim(output / "splits.json", splits, otherwise)  # only now: a refused cohort is repaired, and is then another
    for fold_config, centre in todo:
        scores = _run_fold(cases, centre, fold_config, work, accelerator, window_invariance, cohort)
        prepare_folder(_scores(output, fold_config.network, centre).parent)
        _write_table(scores, _scores(output, fold_config.network, centre))
    results = _read_results(output, centres)
    _write_table(results, output / "results.csv")
    _write_table(summarise(results), output / "summary.csv")
    return results


def build_networks(config: TrainingConfig, networks: Sequence[str]) -> None:
    """Build each network of a study once, before hours of work.

    Raises
    ------
    UsageError : if the settings do not fit one, see `build_network`.
    """
    for network in networks:
        build_network(replace(config, network=network))


def _read_results(output: Path, centres: Sequence[str]) -> pd.DataFrame:
    """The scores of all finished folds, a row a case and model."""
    finished = [_scores(output, network, centre) for network in NETWORKS for centre in centres]
    tables = [_read_scores(path) for path in finished if _is_finished(path, window_invariance=False)]
    # T40 and the ellipsoid come with every network; once is enough.
    return pd.concat(tables).drop_duplicates(["case", "model"]).reset_index(drop=True)


def _read_scores(path: Path) -> pd.DataFrame:
    # A case or a centre may be called NA; what has no value was written as an empty cell.
    return pd.read_csv(path, dtype={"case": str, "centre": str, "stage": str}, keep_default_na=False, na_values=[""])


def _is_finished(scores: Path, window_invariance: bool) -> bool:
    """Whether a fold's scores are there, with the columns that are asked."""
    try:
        columns = _read_scores(scores).columns
    except (FileNotFoundError, pd.errors.EmptyDataError):  # an empty file is what a power cut leaves
        return False
    return not window_invariance or "window_invariance" in columns


def run_folder(work: Path, network: str, centre: str) -> Path:
    """Where a fold's checkpoint and its predicted masks (`masks/<case>.nii.gz`) lie."""
    return work / network / centre


def _scores(output: Path, network: str, centre: str) -> Path:
    return output / "folds" / network / f"{centre}.csv"


def _run_fold(
    cases: Sequence[Case],
    centre: str,
    config: TrainingConfig,
    work: Path,
    accelerator: str,
    window_invariance: bool,
    cohort: str,
) -> pd.DataFrame:
    folder = run_folder(work, config.network, centre)
    training = [case for case in cases if case.centre != centre]
    checkpoint = fit(training, config, folder, accelerator=accelerator, cache=work / "preprocessed", cohort=cohort)
    segmenter = torch_segmenter(load_module(checkpoint, accelerator))
    test = [case for case in cases if case.centre == centre]
    seed = config.seed if window_invariance else None
    return evaluate(segmenter, test, config.network, seed, folder / "masks")


def _write_table(table: pd.DataFrame, path: Path) -> None:
    with whole_file(path) as temporary:
        table.to_csv(temporary, index=False)
        sync(temporary)


def _splits(cases: Sequence[Case], config: TrainingConfig, cohort: str, further: dict[str, Any]) -> dict[str, Any]:
    """What a study is known by: config, cohort and folds; and the digest of what only scores depend on."""
    folds = {}
    for centre in dict.fromkeys(case.centre for case in cases):
        training, tuning = split_tuning([case for case in cases if case.centre != centre], config)
        folds[centre] = {
            "training": [case.name for case in training],
            "tuning": [case.name for case in tuning],
            "test": [case.name for case in cases if case.centre == centre],
        }
    settings = {key: value for key, value in config.to_dict().items() if key != "network"}
    return {"config": settings, "cohort": cohort, "folds": folds} | further
