"""What the paper asks of the scores: tests between two models, outliers, and groups of cases. Pure functions of tables.

All take the table of `petseg_train.evaluation.evaluate`, a row a case and model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import ks_2samp, rankdata, wilcoxon

from petseg_train.evaluation import METRICS

ALPHA = 0.05


def paired_tests(results: pd.DataFrame, model: str, baseline: str) -> pd.DataFrame:
    """Whether two models score differently: a row a centre that both were tested on, and metric.

    Columns: centre, metric, cases, difference (mean of model - baseline), effect (matched-pairs rank-biserial
    correlation: 1 where the model is better in every case, -1 where it is worse), p of the Wilcoxon signed-rank and of
    the Kolmogorov-Smirnov test, both with Holm's correction over all rows, paper (whether both p, uncorrected, lie
    below `ALPHA`, the paper's criterion) and corrected (whether the corrected p of the Wilcoxon test does). Empty where
    no centre has both models.
    """
    rows = []
    for centre, group in results.groupby("centre", sort=False):
        if not {model, baseline} <= set(group["model"]):
            continue
        table = group.pivot(index="case", columns="model", values=list(METRICS))
        for metric in METRICS:
            ours, theirs = (table[metric][name].to_numpy(dtype=float) for name in (model, baseline))
            difference = ours - theirs
            rows.append(
                {
                    "centre": centre,
                    "metric": metric,
                    "cases": len(ours),
                    "difference": difference.mean(),
                    "effect": rank_biserial(difference),
                    "wilcoxon_p": float(wilcoxon(difference).pvalue) if difference.any() else 1.0,
                    "ks_p": float(ks_2samp(ours, theirs).pvalue),
                }
            )
    tests = pd.DataFrame(rows)
    if not rows:
        return tests
    for name in ("wilcoxon", "ks"):
        tests[f"{name}_p_holm"] = holm(tests[f"{name}_p"].to_numpy(dtype=float))
    tests["paper"] = tests[["wilcoxon_p", "ks_p"]].max(axis=1) < ALPHA
    tests["corrected"] = tests["wilcoxon_p_holm"] < ALPHA
    return tests


def rank_biserial(difference: npt.NDArray[np.float64]) -> float:
    """(W+ - W-) / (W+ + W-) of the signed ranks; 0 where nothing differs. Kerby, Compr Psychol 3:11.IT.3.1, 2014."""
    nonzero = difference[difference != 0]
    if not len(nonzero):
        return 0.0
    ranks = rankdata(np.abs(nonzero))
    return float((ranks * np.sign(nonzero)).sum() / ranks.sum())


def holm(p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The p values, corrected for their number. Holm, Scand J Stat 6:65-70, 1979."""
    order = np.argsort(p)
    corrected = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    unordered = np.empty_like(corrected)
    unordered[order] = np.minimum(corrected, 1.0)
    return unordered


def outliers(results: pd.DataFrame, metric: str = "dsc") -> pd.DataFrame:
    """Cases below Q1 - 1.5 (Q3 - Q1) of their model and centre; the paper's footnote prints the sign wrong."""
    scores = results.groupby(["model", "centre"], sort=False)[metric]
    low, high = scores.transform(lambda s: s.quantile(0.25)), scores.transform(lambda s: s.quantile(0.75))
    return results[results[metric] < low - 1.5 * (high - low)]


def by_decile(results: pd.DataFrame, column: str) -> pd.DataFrame:
    """One model's scores by decile of a column, from its lowest tenth to its highest. Cases without a value are out."""
    known = results.dropna(subset=[column])
    rank = known[column].rank(method="first").to_numpy(dtype=int) - 1
    return _grouped(known, pd.Series(1 + rank * 10 // len(known), known.index, name="decile"), column)


def by_bladder(results: pd.DataFrame) -> pd.DataFrame:
    """One model's scores by the bladder's uptake (mean) as a multiple of the tumour's (largest), in four ranges."""
    known = results.dropna(subset=["bladder_uptake"])
    ranges = pd.cut(known["bladder_uptake"], [0, 0.5, 1, 2, np.inf], labels=["to 0.5", "to 1", "to 2", "above 2"])
    return _grouped(known, ranges.astype(str).rename("bladder / tumour"), "bladder_uptake").sort_values(
        "bladder_uptake_mean", ignore_index=True
    )


def by_stage(results: pd.DataFrame) -> pd.DataFrame:
    """Scores of one model by FIGO stage."""
    return _grouped(results, results["stage"], "truth_ml")


def _grouped(results: pd.DataFrame, groups: pd.Series, column: str) -> pd.DataFrame:
    grouped = results.groupby(groups, sort=True)
    table = pd.DataFrame({"cases": grouped.size(), f"{column}_mean": grouped[column].mean()})
    for metric in METRICS:
        table[f"{metric}_mean"], table[f"{metric}_std"] = grouped[metric].mean(), grouped[metric].std()
    return table.reset_index()


def leaks(results: pd.DataFrame, more_than: float = 0.01) -> pd.DataFrame:
    """Cases whose mask lies in the bladder by more than that share."""
    return results[results["bladder_leakage"] > more_than]


def study_summary(results: pd.DataFrame, models: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """`study_numbers` as JSON knows numbers: None where one is not finite."""
    return {
        model: {name: value if np.isfinite(value) else None for name, value in numbers.items()}
        for model, numbers in study_numbers(results, models).items()
    }


def study_numbers(results: pd.DataFrame, models: Sequence[str]) -> dict[str, dict[str, float]]:
    """The study in a few numbers for each model: mean and spread over the centres, as in the paper's last column.

    The median Hausdorff distance is infinite where half of the tumours were missed.
    """
    summary: dict[str, dict[str, float]] = {}
    for model in models:
        rows = results[results["model"] == model]
        centres = rows.groupby("centre")[list(METRICS)].mean()
        numbers = {"folds": float(len(centres))} | {
            f"{metric}_mean": float(centres[metric].mean()) for metric in METRICS
        }
        numbers |= {f"{metric}_std": float(centres[metric].std()) for metric in METRICS}
        numbers["hd95_mm_median"] = float(rows["hd95_mm"].median())
        numbers["surface_dice_mean"] = float(rows["surface_dice"].mean())
        numbers["volume_error_median"] = float(rows["volume_error"].median())
        if "bladder_leakage" in rows:
            numbers["cases_leaking_into_the_bladder"] = len(leaks(rows))
        if "dsc_exact" in rows:
            numbers["dsc_exact_mean"] = float(rows["dsc_exact"].mean())
        summary[model] = numbers
    return summary
