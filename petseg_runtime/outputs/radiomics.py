"""Radiomic features of each lesion, as the Image Biomarker Standardisation Initiative (IBSI) defines them, by mirp.

mirp is not part of the slim runtime; the extra `radiomics` brings it.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from petseg_runtime.errors import UsageError
from petseg_runtime.io.images import write_image
from petseg_runtime.outputs.files import scratch_folder, whole_file
from petseg_runtime.outputs.quiet import QUIET
from petseg_runtime.volume import Geometry, Unit, Volume

# mirp's names of the families of features; what else it returns speaks of files and settings.
_FAMILIES = ("morph_", "loc_", "stat_", "ivh_", "ih_", "cm_", "rlm_", "szm_", "dzm_", "ngt_", "ngl_")


@dataclass(frozen=True)
class RadiomicsSettings:
    """How a lesion is prepared for its features (IBSI chapter 2).

    Attributes
    ----------
    spacing_mm : side of the isotropic voxels that image and mask are resampled to; None leaves the scan's own.
    bin_width : width of a grey level in SUVbw; without the unit there are `bins` levels between the lesion's least and
        largest value instead.
    intensities : range that voxels must lie in to count; None counts all.
    spline_order, anti_aliasing : how the scan is resampled; its mask is linearly. What filters out aliasing smooths the
        scan also where it is not resampled at all, and a maximum would be less than the quantities say.
    """

    spacing_mm: float | None = 4.0
    bin_width: float = 0.5
    bins: int = 32
    intensities: tuple[float, float] | None = None
    spline_order: int = 3
    anti_aliasing: bool = False


def check_installed() -> None:
    """Raise UsageError if mirp is not there, before any work is done."""
    from importlib.util import find_spec

    if find_spec("mirp") is None:
        raise UsageError("--radiomics needs mirp, which is not installed. Run: pip install 'petseg[radiomics]'")


def radiomic_features(
    volume: Volume, labels: npt.NDArray[np.integer], folder: Path, settings: RadiomicsSettings = RadiomicsSettings()
) -> list[dict[str, Any]]:
    """Features of each lesion, from the first; three-dimensional, textures merged over all directions.

    Parameters
    ----------
    labels : whole numbers `(z, y, x)` on the scan's grid, 0 outside, 1 to n in the lesions.
    folder : mirp reads files, so the scan lies here as some meanwhile.

    Returns
    -------
    A record a lesion: `lesion`, its number, and mirp's names of the features. A lesion that mirp cannot measure,
    because it is too small for a resampled voxel, has its number only.

    Raises
    ------
    UsageError : if the disk of the folder is full.
    """
    from mirp import extract_features

    count = int(labels.max())
    records: dict[int, dict[str, Any]] = {label: {"lesion": label} for label in range(1, count + 1)}
    if volume.unit is Unit.SUVBW:
        levels = {
            "base_discretisation_method": "fixed_bin_size",
            "base_discretisation_bin_width": settings.bin_width,
        }
    else:
        levels = {"base_discretisation_method": "fixed_bin_number", "base_discretisation_n_bins": settings.bins}
    with scratch_folder(folder) as lent, _unlogged():
        image, mask = lent / "image.nii.gz", lent / "mask.nii.gz"
        _lend(volume.array, volume.geometry, image)
        for label, record in records.items():
            _lend((labels == label).astype(np.uint8), volume.geometry, mask)
            try:
                tables = extract_features(
                    image=str(image),
                    mask=str(mask),
                    image_modality="PET",
                    by_slice=False,
                    new_spacing=settings.spacing_mm,
                    spline_order=settings.spline_order,
                    anti_aliasing=settings.anti_aliasing,
                    resegmentation_intensity_range=settings.intensities and list(settings.intensities),
                    **levels,
                )
            except Exception:  # what mirp does with a mask that resampling left empty
                tables = None
            for table in tables or []:
                record |= {name: table[name].iloc[0] for name in table.columns if name.startswith(_FAMILIES)}
    return list(records.values())


def unmeasured(records: Sequence[dict[str, Any]]) -> str:
    """A sentence that names the lesions without features; empty if there is none."""
    numbers = ", ".join(str(record["lesion"]) for record in records if len(record) == 1)
    return (
        f"mirp could not measure lesion {numbers}: too small, mostly. It has no radiomic features." if numbers else ""
    )


def _lend(array: npt.NDArray[Any], geometry: Geometry, path: Path) -> None:
    try:
        write_image(array, geometry, path)
    except (RuntimeError, OSError) as error:
        raise UsageError("No space is left for the temporary files of --radiomics. Choose another --output.") from error


def write_radiomics(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the features as CSV, a row a lesion; only the heading without lesions."""
    columns = list(dict.fromkeys(name for record in records for name in record)) or ["lesion"]
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, restval="")
        writer.writeheader()
        writer.writerows(records)


@contextmanager
def _unlogged() -> Iterator[None]:
    """Mirp turns on the root logger's messages, which name files; with a handler there it leaves it alone."""
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    try:
        with QUIET:
            yield
    finally:
        root.removeHandler(handler)
