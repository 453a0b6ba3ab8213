"""DICOM Segmentation: the lesions, or the probabilities, on the slices that they were found in (PS3.3 A.51)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import highdicom as hd
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from petseg_runtime.outputs.dicom_source import Equipment
from petseg_runtime.volume import FloatArray

# Above any scanner's own series; nothing depends on them but the order in a viewer.
SERIES_NUMBER, PROBABILITY_SERIES_NUMBER = 901, 902
_STEPS = 255


def lesion_segmentation(
    labels: npt.NDArray[np.integer], source: Sequence[Dataset], equipment: Equipment
) -> hd.seg.Segmentation:
    """Each lesion as a binary segment of its own; without lesions one empty segment says so.

    Parameters
    ----------
    labels : whole numbers `(z, y, x)`, 0 outside, 1 to n in the lesions; slice k lies on `source[k]`.
    source : headers of the PET slices, see `dicom_source.read_source`.
    """
    count = int(labels.max())
    names = [f"Lesion {number}" for number in range(1, count + 1)] or ["Tumour (none found)"]
    pixels = labels.astype(np.uint16 if count > _STEPS else np.uint8)
    return _segmentation(pixels, "BINARY", names, source, equipment, SERIES_NUMBER)


def probability_segmentation(
    probabilities: FloatArray, source: Sequence[Dataset], equipment: Equipment
) -> hd.seg.Segmentation:
    """The probabilities `(z, y, x)`, in steps of 1/255, as one fractional segment."""
    pixels = np.clip(probabilities, 0, 1)
    return _segmentation(pixels, "FRACTIONAL", ["Tumour"], source, equipment, PROBABILITY_SERIES_NUMBER)


def _algorithm(equipment: Equipment) -> hd.AlgorithmIdentificationSequence:
    """The model as DICOM names an algorithm (PS3.3 10.16)."""
    return hd.AlgorithmIdentificationSequence(
        name=equipment.model_name,
        version=equipment.model_version,
        family=codes.DCM.ArtificialIntelligence,
        source=equipment.manufacturer,
        parameters=equipment.parameters,
    )


def _segmentation(
    pixels: npt.NDArray[np.generic],
    kind: str,
    names: Sequence[str],
    source: Sequence[Dataset],
    equipment: Equipment,
    series_number: int,
) -> hd.seg.Segmentation:
    descriptions = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Neoplasm,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=_algorithm(equipment),
            tracking_id=name,
            tracking_uid=generate_uid(),
        )
        for number, name in enumerate(names, start=1)
    ]
    segmentation = hd.seg.Segmentation(
        source_images=source,
        pixel_array=pixels,
        segmentation_type=kind,
        segment_descriptions=descriptions,
        series_instance_uid=generate_uid(),
        series_number=series_number,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=equipment.manufacturer,
        manufacturer_model_name=equipment.model_name,
        software_versions=equipment.software,
        device_serial_number=equipment.serial_number,
        max_fractional_value=_STEPS,
        content_label="TUMOUR",
        content_description="Research use only, not for diagnosis",
        series_description="PETSeg tumour" if kind == "BINARY" else "PETSeg tumour probability",
    )
    bits = segmentation.NumberOfFrames * segmentation.Rows * segmentation.Columns * segmentation.BitsAllocated
    if math.ceil(bits / 8) % 2:  # highdicom pads with the digit 0, the standard with NULL (PS3.5 6.2, OB)
        segmentation.PixelData = segmentation.PixelData[:-1] + b"\0"
    return segmentation
