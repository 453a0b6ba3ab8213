"""Figures of a study, as in the paper: box plots a fold, slices with outlines, scores by decile; and the cohort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text

from petseg_runtime.io.images import read_mask
from petseg_runtime.outputs.files import whole_file
from petseg_runtime.volume import MaskArray, Volume
from petseg_train.cohort import Case
from petseg_train.evaluation import METRICS, body_intensities

LABELS = {"dsc": "DSC", "precision": "precision", "recall": "recall"}
MODELS = {"residual_scse_unet": "proposed", "standard_unet": "standard U-Net", "t40": "T40"}
_COLOURS = {"residual_scse_unet": "#2563a8", "standard_unet": "#d98324", "t40": "#8a8a8a"}
_TRUTH, _PREDICTION = "#1a9850", "#d7191c"
_HALF_WIDTH_MM, _HALF_BODY_MM = 90.0, 225.0  # of the slices and of the projections shown


def box_plots(results: pd.DataFrame, path: Path) -> None:
    """Figure 2: each metric by test fold, the models side by side; the numbers of cases under the centres' names."""
    models = [model for model in MODELS if model in set(results["model"])]
    cases = results.groupby("centre", sort=False)["case"].nunique()
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 3, sharey=True), METRICS):
        for offset, model in enumerate(models):
            folds = dict(iter(results[results["model"] == model].groupby("centre")[metric]))
            boxes = axes.boxplot(
                [folds.get(centre, []) for centre in cases.index],
                positions=np.arange(len(cases)) + (offset - (len(models) - 1) / 2) * 0.27,
                widths=0.22,
                patch_artist=True,
                manage_ticks=False,
                medianprops={"color": "black"},
                flierprops={"markersize": 3, "marker": "."},
            )
            for box in boxes["boxes"]:
                box.set_facecolor(_COLOURS[model])
        axes.set_xticks(range(len(cases)), [f"{centre}\n({count})" for centre, count in cases.items()])
        axes.set_title(LABELS[metric])
        axes.set_ylim(-0.02, 1.02)
        axes.grid(axis="y", alpha=0.3)
    handles = [Patch(color=_COLOURS[model], label=MODELS[model]) for model in models]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(models), frameon=False)
    _save(figure, path)


def decile_plots(deciles: Mapping[str, pd.DataFrame], path: Path) -> None:
    """Scores by decile of each column: the tables of `petseg_train.statistics.by_decile`, by the column's name."""
    figure = Figure(figsize=(5 * len(deciles), 3.4), layout="constrained")
    for axes, (name, table) in zip(np.atleast_1d(figure.subplots(1, len(deciles), sharey=True)), deciles.items()):
        for metric in METRICS:
            axes.plot(table["decile"], table[f"{metric}_mean"], marker="o", label=LABELS[metric])
        axes.set_xlabel(f"decile of {name}")
        axes.set_xticks(table["decile"])
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)


def slice_figure(cases: Sequence[tuple[str, Case, Path]], path: Path) -> None:
    """Figures 3 and 4: a column a case: its axial slice with most tumour, and the outlines of truth and prediction.

    `cases` are a title, the case, and the file of the predicted mask.
    """
    figure = Figure(figsize=(2.6 * len(cases), 8), layout="constrained")
    for column, (title, case, predicted) in zip(figure.subplots(3, len(cases), squeeze=False).T, cases):
        volume, truth = case.read()
        highest = float(np.percentile(volume.array[truth > 0], 99))
        upright = volume.geometry.orientation.to_canonical
        mask = upright(read_mask(predicted)[0])
        image, truth = upright(volume.array), upright(truth)
        z = int(np.argmax(truth.sum(axis=(1, 2))))
        box = _window(truth[z], volume.geometry.canonical_spacing_mm[1:])
        for axes, outline, colour in zip(column, (None, truth, mask), (None, _TRUTH, _PREDICTION)):
            axes.imshow(image[z][box], cmap="gray_r", vmin=0, vmax=highest, interpolation="bilinear")
            if outline is not None and outline[z][box].any():
                axes.contour(outline[z][box], [0.5], colors=[colour], linewidths=1.2)
            axes.set_axis_off()
        column[0].set_title(title, fontsize=9)
    _save(figure, path)


def cohort_figure(cases: Sequence[Case], path: Path) -> None:
    """Projections of one patient of each centre and, where the cohort has the column, scanner."""
    firsts: dict[str, Case] = {}
    for case in cases:
        firsts.setdefault(f"{case.centre}\n{case.extra.get('scanner', '')}", case)
    projections([(title, *case.read()) for title, case in firsts.items()], path)


def projections(cases: Sequence[tuple[str, Volume, MaskArray]], path: Path) -> None:
    """Coronal maximum-intensity projections with the tumour's outline, one scan a column.

    Grey ends at twelve times the body's median, which is near SUV 7, whatever the scan's unit.
    """
    figure = Figure(figsize=(2.3 * len(cases), 3.2), layout="constrained")
    for axes, (title, volume, mask) in zip(figure.subplots(1, len(cases), squeeze=False)[0], cases):
        upright = volume.geometry.orientation.to_canonical
        dz, _, dx = volume.geometry.canonical_spacing_mm
        highest = 12 * float(np.median(body_intensities(volume)))
        image, outline = (upright(array).max(axis=1)[::-1] for array in (volume.array, mask))
        middle, half = image.shape[1] // 2, round(_HALF_BODY_MM / dx)
        shown = slice(max(0, middle - half), middle + half)
        axes.imshow(image[:, shown], cmap="gray_r", vmin=0, vmax=highest, aspect=dz / dx)
        if outline[:, shown].any():
            axes.contour(outline[:, shown], [0.5], colors=[_PREDICTION], linewidths=0.8)
        axes.set_title(title, fontsize=8)
        axes.set_axis_off()
    _save(figure, path)


def _window(mask: MaskArray, spacing_mm: Sequence[float]) -> tuple[slice, slice]:
    """A square about the mask's middle, within the image."""
    box = []
    for axis, step in enumerate(spacing_mm):
        filled = np.flatnonzero(mask.any(axis=1 - axis))
        middle = int(filled.mean()) if len(filled) else mask.shape[axis] // 2
        half = round(_HALF_WIDTH_MM / step)
        box.append(slice(max(0, middle - half), min(mask.shape[axis], middle + half)))
    return box[0], box[1]


def _save(figure: Figure, path: Path) -> None:
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a centre may have dollar signs in its name
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110)
