"""The results of a scan as DICOM objects that refer to its slices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydicom.dataset import Dataset

from petseg_runtime.errors import InputError
from petseg_runtime.outputs.dicom_rtstruct import structure_set
from petseg_runtime.outputs.dicom_seg import lesion_segmentation, probability_segmentation
from petseg_runtime.outputs.dicom_source import Equipment, Source
from petseg_runtime.outputs.dicom_sr import measurement_report
from petseg_runtime.outputs.files import whole_file
from petseg_runtime.outputs.quiet import QUIET
from petseg_runtime.segmentation import Segmentation


def write_dicom(
    source: Source,
    segmentation: Segmentation,
    equipment: Equipment,
    kinds: Sequence[str],
    save_probabilities: bool,
    warnings: Sequence[str],
    stem: Path,
) -> list[Path]:
    """Write what `kinds` ask for ("dicom-seg", "dicom-sr", "dicom-rtstruct") and return the files.

    Parameters
    ----------
    source : see `dicom_source.read_source`.
    save_probabilities : write them as a fractional segmentation too, where a segmentation is written.
    warnings : what to mind, for whoever reads the report or the structure set in an archive.
    stem : folder and name that the files' names begin with.

    Raises
    ------
    InputError : if the series' headers allow no such object.
    """
    with QUIET:
        try:
            results = _results(source.slices, segmentation, equipment, kinds, save_probabilities, warnings)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"The headers of the series do not allow DICOM results ({type(error).__name__}). Leave out "
                f"--output-type {' and '.join(kind for kind in kinds if kind != 'nifti')}."
            ) from error
        files = []
        for suffix, dataset in results.items():
            files.append(stem.with_name(f"{stem.name}{suffix}"))
            with whole_file(files[-1]) as temporary:
                dataset.save_as(temporary, enforce_file_format=True)
    return files


def _results(
    slices: Sequence[Dataset],
    segmentation: Segmentation,
    equipment: Equipment,
    kinds: Sequence[str],
    save_probabilities: bool,
    warnings: Sequence[str],
) -> dict[str, Dataset]:
    """The objects by the suffix of their files' names."""
    labels, geometry, results = segmentation.lesion_labels, segmentation.geometry, dict[str, Dataset]()
    if "dicom-seg" in kinds or "dicom-sr" in kinds:
        lesions = lesion_segmentation(labels, slices, equipment)
        results["_seg.dcm"] = lesions
        if "dicom-sr" in kinds:
            results["_sr.dcm"] = measurement_report(segmentation.statistics, lesions, slices, equipment, warnings)
    if "dicom-seg" in kinds and save_probabilities:
        results["_probseg.dcm"] = probability_segmentation(segmentation.probabilities, slices, equipment)
    if "dicom-rtstruct" in kinds:
        results["_rtstruct.dcm"] = structure_set(labels, geometry, slices, equipment, warnings)
    return results
