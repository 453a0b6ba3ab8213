"""The PET slices that a DICOM result refers to, and the equipment that made it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from petseg_runtime import __version__
from petseg_runtime.io.dicom_elements import Elements

# Attributes of Type 2 of the Patient and General Study modules: a result must have them, if only empty.
PATIENT_AND_STUDY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)

# AccessionNumber and StudyID are of value representation SH: this many characters.
_SHORT_STRINGS, _SHORT_STRING = (0x00080050, 0x00200010), 16
# The modules of a clinical trial, which make no sense without its sponsor; anonymisers leave the rest.
_TRIAL_SPONSOR, _TRIAL_LAST = 0x00120010, 0x00120051


@dataclass(frozen=True)
class Equipment:
    """Who made a result: the model, by name, version and digest, and this software (PS3.3 C.7.5.1, C.7.5.2)."""

    model_name: str
    model_version: str
    model_sha256: str

    manufacturer: str = "PETSeg"
    software: str = __version__

    @property
    def serial_number(self) -> str:
        """The model's digest: two devices differ in it when they may differ in what they outline."""
        return self.model_sha256[:64]


def read_source(files: Sequence[Path], between_slices_mm: float) -> list[Dataset]:
    """Headers of the slices in the order given, fit to be referred to.

    Empty attributes stand in for absent ones of Type 2, and the distance of the slices for an absent thickness. Texts
    that are longer than the standard allows are cut, and what is left of a clinical trial without its sponsor is
    dropped. A slice whose data set has lost its SOPInstanceUID has it in the file's own header. A series without
    SeriesInstanceUID, as some anonymisers leave it, gets one that follows from its study and number, so that all
    results of it agree.
    """
    slices: list[Dataset] = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    for dataset in slices:
        for keyword in PATIENT_AND_STUDY:
            if keyword not in dataset:
                setattr(dataset, keyword, None)
        if not dataset.get("SliceThickness"):
            dataset.SliceThickness = f"{between_slices_mm:.6g}"
        for tag in _SHORT_STRINGS:
            text = Elements(dataset).text(tag)
            if len(text) > _SHORT_STRING:
                dataset[tag] = DataElement(tag, "SH", text[:_SHORT_STRING])
        if not Elements(dataset).text(_TRIAL_SPONSOR):
            for tag in [tag for tag in dataset.keys() if _TRIAL_SPONSOR <= tag <= _TRIAL_LAST]:  # noqa: SIM118
                del dataset[tag]
        if "SOPInstanceUID" not in dataset:
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
        if not dataset.get("SeriesInstanceUID"):
            number = str(dataset.get("SeriesNumber", ""))
            dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[str(dataset.StudyInstanceUID), number])
        if not dataset.get("FrameOfReferenceUID"):
            dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=[str(dataset.SeriesInstanceUID), "frame"])
    return slices
