"""The report of a study: every table beside the paper's row, as Markdown; the figures lie beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from petseg_train.evaluation import METRICS, summarise
from petseg_train.figures import LABELS, MODELS
from petseg_train.networks import NETWORKS
from petseg_train.statistics import by_bladder, by_decile, by_stage, leaks, outliers, paired_tests, study_numbers

# Table 2 of Iantsen et al. (EJNMMI 2021): mean and standard deviation a test fold, and over the folds.
_PAPER_COLUMNS = ("Brest", "Nantes", "Montreal", "Barcelona", "Liege", "average")
PAPER = {
    ("dsc", "t40"): "0.33 ± 0.36|0.57 ± 0.41|0.37 ± 0.31|0.22 ± 0.24|0.18 ± 0.22|0.33 ± 0.15",
    ("dsc", "standard_unet"): "0.68 ± 0.20|0.79 ± 0.12|0.77 ± 0.13|0.83 ± 0.10|0.79 ± 0.13|0.77 ± 0.05",
    ("dsc", "residual_scse_unet"): "0.77 ± 0.15|0.81 ± 0.13|0.77 ± 0.21|0.84 ± 0.11|0.79 ± 0.13|0.80 ± 0.03",
    ("precision", "t40"): "0.30 ± 0.37|0.56 ± 0.43|0.29 ± 0.28|0.18 ± 0.21|0.14 ± 0.21|0.30 ± 0.16",
    ("precision", "standard_unet"): "0.61 ± 0.24|0.75 ± 0.15|0.74 ± 0.16|0.81 ± 0.17|0.79 ± 0.18|0.74 ± 0.08",
    ("precision", "residual_scse_unet"): "0.69 ± 0.20|0.73 ± 0.16|0.77 ± 0.22|0.81 ± 0.18|0.77 ± 0.19|0.75 ± 0.05",
    ("recall", "t40"): "0.48 ± 0.43|0.74 ± 0.35|0.65 ± 0.40|0.38 ± 0.36|0.38 ± 0.37|0.52 ± 0.17",
    ("recall", "standard_unet"): "0.88 ± 0.15|0.87 ± 0.10|0.85 ± 0.15|0.90 ± 0.09|0.84 ± 0.14|0.87 ± 0.02",
    ("recall", "residual_scse_unet"): "0.93 ± 0.10|0.96 ± 0.04|0.83 ± 0.19|0.91 ± 0.08|0.87 ± 0.14|0.90 ± 0.05",
}
PROPOSED, STANDARD = "residual_scse_unet", "standard_unet"


def write_report(
    results: pd.DataFrame,
    calibration: pd.DataFrame | None,
    about: Mapping[str, str],
    figures: Iterable[str],
) -> str:
    """The report as Markdown.

    Parameters
    ----------
    results : a row a case and model.
    calibration : of the simulated cohort, None for a cohort of patients.
    about : what was run, by name.
    figures : file names of the figures that are there, beside the report.
    """
    models = [model for model in MODELS if model in set(results["model"])]
    summary = summarise(results)
    parts = ["# The study", _about(about)]
    if calibration is not None:
        parts += ["## The simulated cohort", _CALIBRATION, markdown_table(calibration)]
    parts += ["## Results", _RESULTS]
    parts += [f"**{LABELS[metric]}**\n\n{_scores(summary, models, metric)}" for metric in METRICS]
    parts += [_FURTHER, _further(results, models)]
    if {PROPOSED, STANDARD} <= set(models):
        parts += ["## Proposed against standard", _TESTS, markdown_table(_tests(results))]
    for model in (model for model in models if model in NETWORKS):
        parts += _analyses(results[results["model"] == model], model)
    parts += ["## Figures", *(f"![{name}]({name})" for name in figures)]
    return "\n\n".join(parts) + "\n"


_CALIBRATION = """\
Printed, so that a reader can judge how near the cohort comes to the paper's (tumours of 37 ml in the mean, T40 at
0.33 ± 0.15). `contrast`: mean intensity of the tumour / of the body. `touch`: tumours that touch the bladder. `flab`:
DSC of FLAB's first run with the exact mask; `again`, `edited`: masks that the simulated expert ran again with three
classes, or replaced by the exact one. `muscle`, `liver`: noise, standard deviation / mean."""
_RESULTS = """\
Each fold was trained on the other centres and tested on the one named. Mean ± standard deviation over the fold's cases;
"average" is the mean ± standard deviation of the folds' means. Where the folds are the paper's, its row is below."""
_FURTHER = """\
**Further measures** (of all cases that have what is measured). The surface Dice counts what lies within 4 mm, which is
a voxel in plane of some scanners and a little less than one of others (4.07 mm): it does not compare one centre with
another."""
_BLADDER = "its mean over the largest of the tumour"
_TESTS = """\
Difference of the means, matched-pairs rank-biserial effect, p of the Wilcoxon signed-rank and the Kolmogorov-Smirnov
test, and both after Holm's correction over the table. `paper`: both uncorrected p below 0.05, the paper's criterion.
`corrected`: the corrected p of the Wilcoxon test below 0.05."""


def _about(about: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in about.items())


def _tests(results: pd.DataFrame) -> pd.DataFrame:
    tests = paired_tests(results, PROPOSED, STANDARD)
    for column in tests:
        if "_p" in str(column):
            tests[column] = [f"{p:.3f}" if p >= 0.001 else "< 0.001" for p in tests[column]]
    return tests.round(3)


def _scores(summary: pd.DataFrame, models: Sequence[str], metric: str) -> str:
    """Ours by centre, and the paper's row below each; an average over some folds only says so."""
    centres = [centre for centre in dict.fromkeys(summary["centre"]) if centre != "average"]
    rows = []
    for model in models:
        of_model = summary[summary["model"] == model]
        numbers = zip(of_model["centre"], of_model[f"{metric}_mean"], of_model[f"{metric}_std"])
        cells = {str(centre): f"{mean:.2f} ± {std:.2f}" for centre, mean, std in numbers}
        if len(cells) <= len(centres):
            cells["average"] += f" ({len(cells) - 1} of {len(centres)} folds)"
        rows.append({"": MODELS[model], **{name: cells.get(name, "") for name in (*centres, "average")}})
        if set(centres) == set(_PAPER_COLUMNS[:-1]):
            rows.append({"": "(paper)", **dict(zip(_PAPER_COLUMNS, PAPER[metric, model].split("|")))})
    return markdown_table(pd.DataFrame(rows))


def _further(results: pd.DataFrame, models: Sequence[str]) -> str:
    names = {
        "hd95_mm_median": "HD95, median (mm)",
        "surface_dice_mean": "surface Dice at 4 mm",
        "volume_error_median": "volume error, median",
        "dsc_exact_mean": "DSC with the exact mask",
        "cases_leaking_into_the_bladder": "cases with > 1 % in the bladder",
    }
    summary = study_numbers(results, models)
    rows = [{"": MODELS[model], **{names[k]: v for k, v in summary[model].items() if k in names}} for model in models]
    return markdown_table(pd.DataFrame(rows).round(2))


def _analyses(results: pd.DataFrame, model: str) -> list[str]:
    parts = [f"## Where the {MODELS[model]} network fails"]
    low = outliers(results)
    named = ", ".join(
        f"{case} ({dsc:.2f}; {ml:.1f} ml)" for case, dsc, ml in zip(low["case"], low["dsc"], low["truth_ml"])
    )
    parts.append(f"**Outliers** (DSC below Q1 - 1.5 IQR of the fold): {len(low)}. {named}")
    if "bladder_leakage" in results:
        leaking = leaks(results)
        named = ", ".join(
            f"{case} ({100 * float(share):.0f} %)" for case, share in zip(leaking["case"], leaking["bladder_leakage"])
        )
        known = int(results["bladder_leakage"].notna().sum())
        which = f" with a mask of the bladder ({len(results) - known} have none)" if known < len(results) else ""
        parts.append(f"**Bladder**: in {len(leaking)} of {known} cases{which} more than 1 % of the mask. {named}")
    for column, title in (("truth_ml", "tumour volume (ml)"), ("contrast", "tumour contrast")):
        parts += [f"**By decile of {title}**", markdown_table(by_decile(results, column).round(2))]
    if "bladder_uptake" in results and results["bladder_uptake"].notna().any():
        parts += [f"**By uptake of the bladder** ({_BLADDER})", markdown_table(by_bladder(results).round(2))]
    if "stage" in results and results["stage"].notna().any():
        without = int(results["stage"].isna().sum())
        left_out = f" ({without} of {len(results)} cases have none)" if without else ""
        parts += [f"**By FIGO stage**{left_out}", markdown_table(by_stage(results).round(2))]
    return parts


def markdown_table(table: pd.DataFrame) -> str:
    """A table as Markdown; what is missing is left blank."""
    rows = [list(map(str, table.columns)), ["---"] * len(table.columns)]
    rows += [["" if pd.isna(value) else str(value) for value in row] for row in table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
