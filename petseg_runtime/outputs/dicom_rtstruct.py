"""DICOM RT Structure Set: the lesions as contours in the planes of the PET slices (PS3.3 A.19)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from petseg_runtime.outputs.contours import outlines
from petseg_runtime.outputs.dicom_source import PATIENT_AND_STUDY, Equipment
from petseg_runtime.volume import Geometry

SERIES_NUMBER = 904

_LONGEST_SHORT_TEXT = 1024  # PS3.5 table 6.2-1, ST
_MORE = "More in the run's record."

_STUDY_COMPONENT = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management, which readers expect of the study referred to
_COPIED = (*PATIENT_AND_STUDY, "SpecificCharacterSet", "FrameOfReferenceUID")
_COLOURS = ((220, 0, 30), (0, 110, 220), (0, 150, 60), (230, 140, 0), (140, 60, 200))


def structure_set(
    labels: npt.NDArray[np.integer],
    geometry: Geometry,
    source: Sequence[Dataset],
    equipment: Equipment,
    warnings: Sequence[str] = (),
) -> Dataset:
    """Each lesion as a region of its own; without lesions one region without contours says so.

    The contours hold the centres of exactly the voxels of the lesion. They cut its corners, so what they enclose is a
    little less than its voxels: 2 % of a slice of 250 pixels, 8 % of one of 19, half of a single one. Their interpreted
    type is left empty: it is the physician who makes a gross tumour volume of an outline.

    Parameters
    ----------
    labels : whole numbers `(z, y, x)`, 0 outside, 1 to n in the lesions; slice k lies on `source[k]`.
    source : headers of the PET slices, see `dicom_source.read_source`.
    warnings : what to mind, for its description.
    """
    count = int(labels.max())
    names = [f"Lesion {number}" for number in range(1, count + 1)] or ["Tumour (none found)"]
    dataset = _header(source[0], equipment, warnings)
    frame_uid = source[0].FrameOfReferenceUID
    dataset.ReferencedFrameOfReferenceSequence = [_referenced_frame(source)]
    dataset.StructureSetROISequence = [
        _item(
            ROINumber=number,
            ReferencedFrameOfReferenceUID=frame_uid,
            ROIName=name,
            ROIGenerationAlgorithm="AUTOMATIC",
            ROIGenerationDescription=f"{equipment.model_name} {equipment.model_version}"[:64],
        )
        for number, name in enumerate(names, start=1)
    ]
    dataset.ROIContourSequence = [_contours(labels, number, geometry, source) for number in range(1, len(names) + 1)]
    dataset.RTROIObservationsSequence = [
        _item(ObservationNumber=number, ReferencedROINumber=number, RTROIInterpretedType="", ROIInterpreter="")
        for number in range(1, len(names) + 1)
    ]
    return dataset


def _header(first: Dataset, equipment: Equipment, warnings: Sequence[str]) -> Dataset:
    now = datetime.now()
    dataset = _item(
        SOPClassUID=RTStructureSetStorage,
        SOPInstanceUID=generate_uid(),
        InstanceCreationDate=now.strftime("%Y%m%d"),
        InstanceCreationTime=now.strftime("%H%M%S"),
        Modality="RTSTRUCT",
        SeriesInstanceUID=generate_uid(),
        SeriesNumber=SERIES_NUMBER,
        SeriesDescription="PETSeg tumour",
        OperatorsName="",
        PositionReferenceIndicator="",
        Manufacturer=equipment.manufacturer,
        ManufacturerModelName=equipment.model_name,
        DeviceSerialNumber=equipment.serial_number,
        SoftwareVersions=equipment.software,
        StructureSetLabel="TUMOUR",
        StructureSetDescription=_description(equipment, warnings),
        StructureSetDate=now.strftime("%Y%m%d"),
        StructureSetTime=now.strftime("%H%M%S"),
        ApprovalStatus="UNAPPROVED",
    )
    for keyword in _COPIED:
        if keyword in first:
            dataset[keyword] = first[keyword]
    dataset.file_meta = FileMetaDataset()
    # Explicit VR has two bytes for the length of ContourData, too few for a long outline.
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def _description(equipment: Equipment, warnings: Sequence[str]) -> str:
    """What made it and what to mind: as many warnings as there is room for, each of them whole."""
    made_with = ", ".join(f"{name} {value}" for name, value in equipment.parameters.items())
    about = f"Research use only. Made by {equipment.model_name} {equipment.model_version}, {made_with}."
    texts = [about, *warnings]
    if len(" ".join(texts)) > _LONGEST_SHORT_TEXT:
        while len(texts) > 1 and len(" ".join([*texts, _MORE])) > _LONGEST_SHORT_TEXT:
            texts.pop()
        texts.append(_MORE)
    return " ".join(texts)


def _referenced_frame(source: Sequence[Dataset]) -> Dataset:
    first = source[0]
    series = _item(SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=[_image(one) for one in source])
    study = _item(
        ReferencedSOPClassUID=_STUDY_COMPONENT,
        ReferencedSOPInstanceUID=first.StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )
    return _item(FrameOfReferenceUID=first.FrameOfReferenceUID, RTReferencedStudySequence=[study])


def _contours(labels: npt.NDArray[np.integer], number: int, geometry: Geometry, source: Sequence[Dataset]) -> Dataset:
    region = _item(ReferencedROINumber=number, ROIDisplayColor=list(_COLOURS[(number - 1) % len(_COLOURS)]))
    contours = []
    inside = labels == number
    for index in np.flatnonzero(inside.any(axis=(1, 2))).tolist():
        # The slice's own position, which may lie a hair off the straight grid: planning systems match planes closely.
        origin = np.array(source[index].ImagePositionPatient, dtype=np.float64)
        for polygon in outlines(inside[index]):
            in_plane_mm = (polygon * geometry.spacing_mm[1:]) @ np.array(geometry.direction_lps)[:, 1:].T
            contours.append(
                _item(
                    ContourImageSequence=[_image(source[index])],
                    ContourGeometricType="CLOSED_PLANAR",
                    NumberOfContourPoints=len(polygon),
                    ContourData=[f"{value:.4f}" for value in (origin + in_plane_mm).ravel()],
                )
            )
    if contours:
        region.ContourSequence = contours
    return region


def _image(dataset: Dataset) -> Dataset:
    return _item(ReferencedSOPClassUID=dataset.SOPClassUID, ReferencedSOPInstanceUID=dataset.SOPInstanceUID)


def _item(**values: object) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item
