"""Synthetic DICOM series: small, legal, and spoilt on request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.filereader import dcmread
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless

PET_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.128"
CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"

# 70 kg, 350 MBq, and the scan 1 h 49 min 46.2 s, which is one half-life, after the injection:
# 70 000 g / (350e6 Bq / 2) = 4e-4 g/Bq.
WEIGHT_KG, DOSE_BQ, HALF_LIFE_S = 70.0, 350e6, 6586.2
FACTOR = 4e-4
INJECTION, SCAN, DAY = "100000.000000", "114946.200000", "20240229"

AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))


def pet_series(
    stored: npt.ArrayLike | None = None,
    *,
    spacing_mm: Sequence[float] = (3.0, 2.0, 4.0),
    origin_lps_mm: Sequence[float] = (-10.0, 20.0, -300.0),
    orientation: Sequence[Sequence[float]] = AXIAL,
    slopes: Sequence[float] | None = None,
    shear_mm: float = 0.0,
    number: int = 1,
    study: str = "1.2.3",
) -> list[Dataset]:
    """Slices of a PET with BQML and START, in the order of their positions.

    `stored` is `(z, y, x)`, int16; slice k lies k spacings along row x column, and `shear_mm` further along the
    column for each slice, as with a tilted gantry.
    """
    voxels = default_voxels() if stored is None else np.asarray(stored, np.int16)
    row, column = (np.asarray(cosines, float) for cosines in orientation)
    step = np.cross(row, column) * spacing_mm[0] + column * shear_mm
    series = f"{study}.{number}.1"
    datasets = []
    for index, plane in enumerate(voxels):
        dataset = _image(plane, PET_IMAGE_STORAGE, "PT", index, study=study, series=series, number=number)
        dataset.ImagePositionPatient = [f"{value:.6f}" for value in np.asarray(origin_lps_mm) + index * step]
        dataset.ImageOrientationPatient = [f"{value:.9f}" for value in (*row, *column)]
        dataset.PixelSpacing = [f"{value:.9f}" for value in spacing_mm[1:]]
        dataset.RescaleSlope = f"{slopes[index] if slopes else 1.0:.10g}"
        dataset.RescaleIntercept = 0
        _add_pet_attributes(dataset, len(voxels))
        datasets.append(dataset)
    return datasets


def ct_series(count: int = 3, *, number: int = 2, study: str = "1.2.3") -> list[Dataset]:
    """Slices of a CT of the same study."""
    plane, series = np.zeros((4, 4), np.int16), f"{study}.{number}.2"
    return [
        _image(plane, CT_IMAGE_STORAGE, "CT", index, study=study, series=series, number=number)
        for index in range(count)
    ]


def default_voxels() -> npt.NDArray[np.int16]:
    """Four slices of 2 x 3 pixels, every value different: 100, 101, ... 123."""
    return np.arange(100, 124, dtype=np.int16).reshape(4, 2, 3)


def injection(dataset: Dataset) -> Dataset:
    """The item of RadiopharmaceuticalInformationSequence."""
    return dataset.RadiopharmaceuticalInformationSequence[0]


def edited(datasets: list[Dataset], edit: Callable[[Dataset], object]) -> list[Dataset]:
    """The same series with `edit` applied to every slice."""
    for dataset in datasets:
        edit(dataset)
    return datasets


def write(datasets: Sequence[Dataset], folder: Path, prefix: str = "IM") -> list[Path]:
    """Write the slices under names that say nothing of their order, and return the paths sorted by name."""
    folder.mkdir(parents=True, exist_ok=True)
    names = np.random.default_rng(7).permutation(len(datasets))
    paths = []
    for name, dataset in zip(names, datasets, strict=True):
        path = folder / f"{prefix}{name:03d}"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return sorted(paths)


def compress_jpeg2000(dataset: Dataset, folder: Path) -> Dataset:
    """Replace the pixels by JPEG 2000 (lossless), compressed by GDCM through SimpleITK."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "compressed.dcm"
    image = sitk.GetImageFromArray(dataset.pixel_array[None])
    sitk.WriteImage(image, str(path), useCompression=True, imageIO="GDCMImageIO")
    compressed = dcmread(path)
    assert compressed.file_meta.TransferSyntaxUID == JPEG2000Lossless
    dataset.PixelData = encapsulate(list(generate_frames(compressed.PixelData, number_of_frames=1)))
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    return dataset


def _image(
    plane: npt.NDArray[np.int16], sop_class: str, modality: str, index: int, *, study: str, series: str, number: int
) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, f"{series}.{index + 1}"
    dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.Modality, dataset.Manufacturer = modality, "Synthetic"
    dataset.PatientName, dataset.PatientID = "Doe^Jane", "SECRET-4711"
    dataset.SeriesDescription = "Doe Jane WB"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
    dataset.SeriesNumber, dataset.InstanceNumber = number, 100 - index
    dataset.FrameOfReferenceUID = "1.2.3.4"
    dataset.Rows, dataset.Columns = plane.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.PixelData = plane.astype("<i2").tobytes()
    return dataset


def _add_pet_attributes(dataset: Dataset, count: int) -> None:
    dataset.Units, dataset.DecayCorrection = "BQML", "START"
    dataset.CorrectedImage = ["NORM", "DTIM", "ATTN", "SCAT", "DECY", "RAN"]
    dataset.SeriesType, dataset.NumberOfSlices = ["WHOLE BODY", "IMAGE"], count
    dataset.SeriesDate = dataset.AcquisitionDate = DAY
    dataset.SeriesTime = dataset.AcquisitionTime = SCAN
    dataset.FrameReferenceTime, dataset.ActualFrameDuration = 0, 120_000
    dataset.PatientWeight = WEIGHT_KG
    item, code = Dataset(), Dataset()
    item.Radiopharmaceutical = "FDG"
    item.RadiopharmaceuticalStartTime = INJECTION
    item.RadiopharmaceuticalStartDateTime = DAY + INJECTION
    item.RadionuclideTotalDose, item.RadionuclideHalfLife = DOSE_BQ, HALF_LIFE_S
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "C-111A1", "SRT", "^18^Fluorine"
    item.RadionuclideCodeSequence = [code]
    dataset.RadiopharmaceuticalInformationSequence = [item]
