"""The results of a scan as DICOM objects that refer to its slices."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
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
    warnings: Sequence[str],
    files: Mapping[str, Path],
) -> None:
    """Write the objects that `files` names.

    Parameters
    ----------
    source : see `dicom_source.read_source`.
    warnings : what to mind, for whoever reads the report or the structure set in an archive.
    files : by suffix: "_seg.dcm", "_sr.dcm" (which refers to the former), "_probseg.dcm" and "_rtstruct.dcm"; what else
        is in it is not written.

    Raises
    ------
    InputError : if the series' headers allow no such object.
    """
    with QUIET:
        try:
            results = _results(source.slices, segmentation, equipment, warnings, files)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"The headers of the series do not allow DICOM results ({type(error).__name__}). Leave out the DICOM "
                "--output-type."
            ) from error
        for suffix, dataset in results.items():
            with whole_file(files[suffix]) as temporary:
                dataset.save_as(temporary, enforce_file_format=True)


def _results(
    slices: Sequence[Dataset],
    segmentation: Segmentation,
    equipment: Equipment,
    warnings: Sequence[str],
    wanted: Container[str],
) -> dict[str, Dataset]:
    """The objects by the suffix of their files' names."""
    labels, results = segmentation.lesion_labels, dict[str, Dataset]()
    if "_seg.dcm" in wanted:
        results["_seg.dcm"] = lesions = lesion_segmentation(labels, slices, equipment)
        if "_sr.dcm" in wanted:
            results["_sr.dcm"] = measurement_report(segmentation.statistics, lesions, slices, equipment, warnings)
    if "_probseg.dcm" in wanted:
        results["_probseg.dcm"] = probability_segmentation(segmentation.probabilities, slices, equipment)
    if "_rtstruct.dcm" in wanted:
        results["_rtstruct.dcm"] = structure_set(labels, segmentation.geometry, slices, equipment, warnings)
    return results
