"""Scores of a model on cases, with T40 and the ellipsoid beside it, as one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rich.progress import track

from petseg_runtime.errors import UsageError
from petseg_runtime.io.images import write_image
from petseg_runtime.outputs.files import prepare_folder, whole_file
from petseg_runtime.preprocessing import body_threshold_of
from petseg_runtime.segmenter import Segmenter
from petseg_runtime.volume import FloatArray, MaskArray, Triple, Volume
from petseg_train.cohort import Case
from petseg_train.comparators import ellipsoid
from petseg_train.config import PREPROCESSING
from petseg_train.ground_truth.thresholds import t40
from petseg_train.metrics import BoolArray, dice, hausdorff95_mm, leakage, precision, recall, surface_dice
from petseg_train.window_invariance import window_invariance

METRICS = ("dsc", "precision", "recall")

_SURFACE_TOLERANCE_MM = 4.0  # the network's voxel in plane


def evaluate(
    segmenter: Segmenter,
    cases: Sequence[Case],
    model: str,
    invariance_seed: int | None = None,
    masks: Path | None = None,
) -> pd.DataFrame:
    """One row a case and method: the model, T40 and the ellipsoid, scored on the scan's own grid.

    Columns: case, centre, model, dsc, precision, recall, hd95_mm, surface_dice (within 4 mm), truth_ml, predicted_ml,
    volume_error (predicted / true volume - 1), contrast (mean intensity of the tumour / of the body, as in the paper);
    where the cohort has them: stage, bladder_leakage (share of the prediction inside the bladder), bladder_uptake (mean
    intensity of the bladder / largest of the tumour) and dsc_exact;
    and window_invariance (mean) and window_invariance_lowest where `invariance_seed` is given.
    `masks` is a folder that keeps the model's masks, `<case>.nii.gz`.

    Raises
    ------
    UsageError : if `model` is the name of another method.
    InputError : if a case cannot be read or segmented, by its name.
    """
    if model in (t40.__name__, ellipsoid.__name__):
        raise UsageError(f"The model is called {model}, as a method beside it is. Export it under another name.")
    if masks is not None:
        prepare_folder(masks)
    rows = []
    for case in track(list(cases), description="Evaluating", transient=True):
        volume, truth = case.read()
        reference = _reference(case, volume, truth)
        with case.named():
            mask = segmenter.segment(volume).mask
        if masks is not None:
            with whole_file(masks / f"{case.name}.nii.gz") as temporary:
                write_image(mask, volume.geometry, temporary)
        row = _row(reference, model, mask)
        if invariance_seed is not None:
            scored = window_invariance(segmenter, volume, np.random.default_rng(invariance_seed))
            row |= {"window_invariance": scored.mean, "window_invariance_lowest": scored.lowest}
        rows.append(row)
        rows += [_row(reference, method.__name__, method(volume)) for method in (t40, ellipsoid)]
    return pd.DataFrame(rows)


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation of each metric: per model and centre, and over the centres ("average").

    As in the paper's Table 2: the average is the mean over the centres' means, its deviation that of those means.
    Standard deviations are those of a sample (n - 1).
    """
    per_centre = results.groupby(["model", "centre"], sort=False)[list(METRICS)].agg(["mean", "std"])
    per_centre.columns = ["_".join(column) for column in per_centre.columns]
    per_centre.insert(0, "cases", results.groupby(["model", "centre"], sort=False).size())
    means = per_centre[[f"{metric}_mean" for metric in METRICS]].groupby("model", sort=False)
    average = means.mean().join(means.std().rename(columns=lambda name: name.replace("_mean", "_std")))
    average["cases"] = results.groupby("model", sort=False).size()
    average.index = pd.MultiIndex.from_product([average.index, ["average"]], names=["model", "centre"])
    return pd.concat([per_centre, average[per_centre.columns]]).reset_index()


def body_intensities(volume: Volume) -> FloatArray:
    """The scan's values within the body, which is where preprocessing finds it."""
    threshold, _ = body_threshold_of(volume, PREPROCESSING.body_threshold)
    values: FloatArray = volume.array[volume.array > threshold]
    return values


def contrast(volume: Volume, mask: BoolArray) -> float:
    """Mean intensity of the tumour over that of the body; nan without tumour."""
    return float(volume.array[mask].mean() / body_intensities(volume).mean()) if mask.any() else float("nan")


class _Reference(NamedTuple):
    """What every method's mask of a case is scored against: the truth, the further masks, and the row's own columns."""

    truth: BoolArray
    further: dict[str, MaskArray]
    spacing_mm: Triple
    voxel_ml: float
    columns: dict[str, Any]


def _reference(case: Case, volume: Volume, truth: MaskArray) -> _Reference:
    columns = {"case": case.name, "centre": case.centre, "contrast": contrast(volume, truth > 0)}
    if "stage" in case.extra:
        columns["stage"] = case.extra["stage"]
    further = case.read_further(volume)
    if "bladder" in further:
        columns["bladder_uptake"] = _bladder_uptake(volume, further["bladder"] > 0, truth > 0)
    geometry = volume.geometry
    return _Reference(truth > 0, further, geometry.spacing_mm, geometry.voxel_volume_ml, columns)


def _bladder_uptake(volume: Volume, bladder: BoolArray, tumour: BoolArray) -> float:
    """How the bladder outshines the tumour; nan without one of them."""
    is_known = bladder.any() and tumour.any()
    return float(volume.array[bladder].mean() / volume.array[tumour].max()) if is_known else float("nan")


def _row(reference: _Reference, model: str, mask: MaskArray) -> dict[str, Any]:
    predicted, true, further = mask > 0, reference.truth, reference.further
    truth_ml, predicted_ml = (float(voxels.sum()) * reference.voxel_ml for voxels in (true, predicted))
    row = {
        **reference.columns,
        "model": model,
        "dsc": dice(predicted, true),
        "precision": precision(predicted, true),
        "recall": recall(predicted, true),
        "hd95_mm": hausdorff95_mm(predicted, true, reference.spacing_mm),
        "surface_dice": surface_dice(predicted, true, reference.spacing_mm, _SURFACE_TOLERANCE_MM),
        "truth_ml": truth_ml,
        "predicted_ml": predicted_ml,
        "volume_error": predicted_ml / truth_ml - 1 if truth_ml else float("nan"),
    }
    if "bladder" in further:
        row["bladder_leakage"] = leakage(predicted, further["bladder"] > 0)
    if "exact" in further:
        row["dsc_exact"] = dice(predicted, further["exact"] > 0)
    return row
