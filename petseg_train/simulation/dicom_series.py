"""A simulated patient as the centre's scanner would send it: a DICOM PET series (PS3.3 A.21, C.8.9)."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, PositronEmissionTomographyImageStorage, generate_uid

from petseg_runtime.outputs.files import prepare_folder
from petseg_train.simulation.patient import F18_HALF_LIFE_S, Patient

_SCAN_START = datetime(2020, 1, 15, 10, 0, 0)
_LARGEST = 32767


def write_dicom_series(patient: Patient, folder: Path, identity: str) -> None:
    """Write one file a slice: Bq/ml with a slope a slice, decay-corrected to the start of the series.

    `identity` is the patient's ID and makes the UIDs, so it must be another where the pixels are.
    """
    prepare_folder(folder)
    shared = _shared_attributes(patient, identity)
    geometry = patient.volume.geometry
    for number, plane in enumerate(patient.volume.array * np.float32(patient.protocol.becquerel_per_ml), start=1):
        dataset = Dataset()
        dataset.update(shared)
        slope = float(f"{max(float(plane.max()), 1.0) / _LARGEST:.10g}")  # as DICOM's 16 characters hold it
        dataset.InstanceNumber = dataset.ImageIndex = number
        dataset.SOPInstanceUID = _uid(identity, f"slice {number}")
        x, y, z = (
            origin + (number - 1) * step
            for origin, step in zip(geometry.origin_lps_mm, (0.0, 0.0, geometry.spacing_mm[0]))
        )
        dataset.ImagePositionPatient = [f"{x:.6f}", f"{y:.6f}", f"{z:.6f}"]
        dataset.SliceLocation = f"{z:.6f}"
        dataset.RescaleSlope, dataset.RescaleIntercept = f"{slope:.10g}", "0"
        stored = np.clip(np.round(plane / slope), 0, _LARGEST).astype("<i2")
        dataset.SmallestImagePixelValue, dataset.LargestImagePixelValue = int(stored.min()), int(stored.max())
        dataset["SmallestImagePixelValue"].VR = dataset["LargestImagePixelValue"].VR = "SS"
        dataset.PixelData = stored.tobytes()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(folder / f"PT{number:04d}.dcm", enforce_file_format=True)


def _shared_attributes(patient: Patient, identity: str) -> Dataset:
    protocol, geometry = patient.protocol, patient.volume.geometry
    scanner = protocol.scanner
    injected = _SCAN_START - timedelta(seconds=round(protocol.uptake_s))
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.SOPClassUID = PositronEmissionTomographyImageStorage
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = f"{_SCAN_START:%Y%m%d}"
    dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = dataset.ContentTime = f"{_SCAN_START:%H%M%S}"
    dataset.AccessionNumber = dataset.ReferringPhysicianName = dataset.StudyID = dataset.PatientBirthDate = ""
    dataset.Modality, dataset.Manufacturer, dataset.ManufacturerModelName = "PT", scanner.manufacturer, scanner.model
    dataset.InstitutionName = patient.centre
    dataset.SeriesDescription = f"Simulated PET, {scanner.method}"
    dataset.PatientName = dataset.PatientID = identity
    dataset.PatientSex, dataset.PatientWeight = "F", f"{protocol.weight_kg:.2f}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = _uid(identity, "study"), _uid(identity, "series")
    dataset.FrameOfReferenceUID = _uid(identity, "frame")
    dataset.PositionReferenceIndicator, dataset.SeriesNumber, dataset.PatientPosition = "", 1, "HFS"
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [f"{geometry.spacing_mm[1]:.6f}", f"{geometry.spacing_mm[2]:.6f}"]
    dataset.SliceThickness = f"{geometry.spacing_mm[0]:.6f}"
    dataset.Rows, dataset.Columns = geometry.shape[1:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.Units, dataset.CountsSource, dataset.SeriesType = "BQML", "EMISSION", ["WHOLE BODY", "IMAGE"]
    dataset.NumberOfSlices, dataset.CollimatorType = geometry.shape[0], "NONE"
    dataset.CorrectedImage = ["NORM", "ATTN", "SCAT", "DECY", "RAN"]
    dataset.DecayCorrection, dataset.RandomsCorrectionMethod = "START", "SING"
    dataset.ReconstructionMethod, dataset.ScatterCorrectionMethod = scanner.method, "simulated"
    dataset.AttenuationCorrectionMethod = "measured, CT"
    dataset.ActualFrameDuration, dataset.FrameReferenceTime, dataset.DecayFactor = (
        str(round(1000 * protocol.bed_s)),
        "0",
        "1",
    )
    radiopharmaceutical = Dataset()
    radiopharmaceutical.Radiopharmaceutical = "FDG -- fluorodeoxyglucose"
    radiopharmaceutical.RadiopharmaceuticalStartTime = f"{injected:%H%M%S}"
    radiopharmaceutical.RadiopharmaceuticalStartDateTime = f"{injected:%Y%m%d%H%M%S}"
    radiopharmaceutical.RadionuclideTotalDose = f"{protocol.dose_mbq * 1e6:.0f}"
    radiopharmaceutical.RadionuclideHalfLife = f"{F18_HALF_LIFE_S:.1f}"
    radiopharmaceutical.RadionuclidePositronFraction = "0.97"
    radiopharmaceutical.RadionuclideCodeSequence = [_code("C-111A1", "SRT", "^18^Fluorine")]
    radiopharmaceutical.RadiopharmaceuticalCodeSequence = [_code("C-B1031", "SRT", "Fluorodeoxyglucose F^18^")]
    dataset.RadiopharmaceuticalInformationSequence = [radiopharmaceutical]
    dataset.PatientOrientationCodeSequence = [_code("F-10450", "SRT", "recumbent")]
    dataset.PatientGantryRelationshipCodeSequence = [_code("F-10470", "SRT", "headfirst")]
    return dataset


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _uid(identity: str, what: str) -> str:
    return str(generate_uid(entropy_srcs=["petseg simulation", identity, what]))
