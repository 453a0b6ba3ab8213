"""A cohort: a CSV with one row a case, and its cases brought onto the network's grid.

The CSV has the columns case, centre, image and mask (paths relative to the CSV), and any others, which are
carried along. So any hospital's patients can be trained on and evaluated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.progress import track

from petseg_runtime import read_volume
from petseg_runtime.errors import InputError
from petseg_runtime.io.images import read_mask
from petseg_runtime.manifest import PreprocessingSpec
from petseg_runtime.preprocessing import preprocess, resample_mask
from petseg_runtime.volume import FloatArray, MaskArray, Volume

REQUIRED_COLUMNS = ("case", "centre", "image", "mask")

# Image and mask are written by different programs, which round their geometry differently.
SAME_GRID_MM = 0.5


@dataclass(frozen=True)
class Case:
    """One patient: where the image and the tumour mask are, and the other columns of the row."""

    name: str
    centre: str
    image: Path
    mask: Path
    extra: dict[str, object]

    def read(self) -> tuple[Volume, MaskArray]:
        """The scan and its tumour mask `(z, y, x)` on the same grid.

        Raises
        ------
        InputError : if a file is unreadable, or the mask does not lie on the image's grid.
        """
        volume = read_volume(self.image)
        return volume, read_mask_on(volume, self.mask, f"Case {self.name}: the mask")


@dataclass(frozen=True)
class TrainingCase:
    """A case on the network's grid: normalised image, binary mask `(z, y, x)`, and air on the image's scale."""

    name: str
    image: FloatArray
    mask: MaskArray
    air: float


def read_mask_on(volume: Volume, path: Path, name: str) -> MaskArray:
    """The mask `(z, y, x)` of a file, which must lie on the volume's grid; `name` is what a refusal calls it.

    Raises
    ------
    InputError : if the file is unreadable, or lies on another grid.
    """
    mask, geometry = read_mask(path)
    corners = np.vstack([np.zeros(3), np.diag(geometry.shape)])  # the first voxel's, and one along each axis
    apart_mm = np.abs(geometry.to_lps_mm(corners) - volume.geometry.to_lps_mm(corners)).max()
    if geometry.shape != volume.geometry.shape or apart_mm > SAME_GRID_MM:
        raise InputError(
            f"{name} has a grid {geometry.shape} that does not lie on the image's grid {volume.geometry.shape}. "
            "Resample it onto the image."
        )
    return mask


def read_cohort(csv: Path) -> list[Case]:
    """Cases of the CSV, in its order.

    Raises
    ------
    InputError : if the file or a required column is absent, a case is named twice, or an image or mask does not exist.
    """
    try:
        table = pd.read_csv(csv, dtype=dict.fromkeys(REQUIRED_COLUMNS, str))
    except (OSError, ValueError) as error:
        raise InputError(f"Cohort {csv.name} cannot be read as CSV: {error}") from error
    absent = [column for column in REQUIRED_COLUMNS if column not in table.columns]
    if absent:
        raise InputError(f"Cohort {csv.name} lacks the columns {', '.join(absent)}; it needs {REQUIRED_COLUMNS}.")
    if table.empty or table[list(REQUIRED_COLUMNS)].isna().any(axis=None):
        raise InputError(f"Cohort {csv.name} has no rows, or an empty cell in {REQUIRED_COLUMNS}.")
    twice = table["case"][table["case"].duplicated()].tolist()
    if twice:
        raise InputError(f"Cohort {csv.name} names cases twice: {twice[:5]}. Give each row its own name.")
    cases = []
    for row in table.to_dict("records"):
        extra = {str(key): value for key, value in row.items() if key not in REQUIRED_COLUMNS}
        case = Case(row["case"], row["centre"], csv.parent / row["image"], csv.parent / row["mask"], extra)
        for path in (case.image, case.mask):
            if not path.exists():
                raise InputError(f"Cohort {csv.name}, case {case.name}: {path.name} does not exist.")
        cases.append(case)
    return cases


def load_training_cases(cases: Iterable[Case], spec: PreprocessingSpec) -> list[TrainingCase]:
    """Read and preprocess each case once, with the runtime's own preprocessing. Shows a progress bar."""
    return [_load(case, spec) for case in track(list(cases), description="Preprocessing", transient=True)]


def _load(case: Case, spec: PreprocessingSpec) -> TrainingCase:
    volume, mask = case.read()
    network_input = preprocess(volume, spec)
    return TrainingCase(case.name, network_input.array, resample_mask(mask, network_input.frame), network_input.air)
