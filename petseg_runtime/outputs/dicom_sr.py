"""DICOM structured report: the quantities of each lesion, by template TID 1500 (PS3.16)."""

from __future__ import annotations

from collections.abc import Sequence

import highdicom as hd
from highdicom.sr.coding import CodedConcept
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from petseg_runtime.outputs.dicom_source import Equipment
from petseg_runtime.quantification import LesionStatistics, ScanStatistics

SERIES_NUMBER = 903

_ML = CodedConcept("mL", "UCUM", "milliliter")
_MM = CodedConcept("mm", "UCUM", "millimeter")
_G = CodedConcept("g", "UCUM", "gram")
_SUV = CodedConcept("g/ml{SUVbw}", "UCUM", "Standardized Uptake Value body weight")
_ONE = CodedConcept("1", "UCUM", "no units")
_SUVBW = CodedConcept("126401", "DCM", "SUVbw")
_VOLUME = CodedConcept("126032", "DCM", "Metabolic Volume")
_GLYCOLYSIS = CodedConcept("126033", "DCM", "Total Lesion Glycolysis")
_DIAMETER = CodedConcept("L0JK", "IBSI", "Maximum 3D Diameter of a Mesh")
_PROBABILITY = CodedConcept("mean-probability", "99PETSEG", "Mean tumour probability")
_MAXIMUM = CodedConcept("56851009", "SCT", "Maximum")
_MEAN = CodedConcept("373098007", "SCT", "Mean")
_PEAK = CodedConcept("126031", "DCM", "Peak Value Within ROI")  # no quantity but a derivation, CID 7464
_PROCEDURE = CodedConcept("44136-0", "LN", "PET Unspecified body region")
_ABSENT = CodedConcept("2667000", "SCT", "Absent")

_RESEARCH = "Research use only, not for diagnosis."

_Group = hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations | hd.sr.MeasurementsAndQualitativeEvaluations


def measurement_report(
    statistics: ScanStatistics,
    segmentation: hd.seg.Segmentation,
    source: Sequence[Dataset],
    equipment: Equipment,
    warnings: Sequence[str] = (),
) -> hd.sr.Comprehensive3DSR:
    """The quantities, each lesion's group referring to its segment; without lesions the finding is absent.

    Parameters
    ----------
    segmentation : of the same lesions, see `dicom_seg.lesion_segmentation`.
    source : headers of the PET slices, see `dicom_source.read_source`.
    warnings : what to mind, each a comment on the whole tumour.
    """
    groups: list[_Group] = [_whole_tumour(statistics, equipment, warnings)]
    groups += [_lesion(lesion, segmentation, source, equipment) for lesion in statistics.lesions]
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=[equipment.model_sha256, equipment.software]),
        name=equipment.manufacturer,
        manufacturer_name=equipment.manufacturer,
        model_name=equipment.model_name,
        serial_number=equipment.serial_number,
    )
    observer = hd.sr.ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=_PROCEDURE,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    return hd.sr.Comprehensive3DSR(
        evidence=[*source, segmentation],  # highdicom names the equipment of the first as the scanner
        content=content[0],
        series_instance_uid=generate_uid(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=equipment.manufacturer,
        is_complete=True,
        series_description="PETSeg quantities",
    )


def _lesion(
    lesion: LesionStatistics, segmentation: hd.seg.Segmentation, source: Sequence[Dataset], equipment: Equipment
) -> _Group:
    segment = segmentation.SegmentSequence[lesion.label - 1]
    values = [
        (_VOLUME, lesion.mtv_ml, _ML, None),
        (_DIAMETER, lesion.diameter_mm, _MM, None),
        (_SUVBW, lesion.suv_max, _SUV, _MAXIMUM),
        (_SUVBW, lesion.suv_mean, _SUV, _MEAN),
        (_SUVBW, lesion.suv_peak, _SUV, _PEAK),
        (_GLYCOLYSIS, lesion.tlg_g, _G, None),
        (_PROBABILITY, lesion.mean_probability, _ONE, None),
    ]
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=segment.TrackingUID, identifier=segment.TrackingID),
        referenced_segment=hd.sr.ReferencedSegment(
            sop_class_uid=segmentation.SOPClassUID,
            sop_instance_uid=segmentation.SOPInstanceUID,
            segment_number=lesion.label,
            source_series=hd.sr.SourceSeriesForSegmentation(source[0].SeriesInstanceUID),
        ),
        finding_type=codes.SCT.Neoplasm,
        algorithm_id=_algorithm(equipment),
        measurements=_measurements(values),
    )


def _whole_tumour(statistics: ScanStatistics, equipment: Equipment, warnings: Sequence[str]) -> _Group:
    """All lesions together, with what to mind; without any, the finding is absent and the volume 0."""
    tumour = statistics.tumour
    values = [(_VOLUME, tumour.mtv_ml, _ML, None), (_GLYCOLYSIS, tumour.tlg_g, _G, None)]
    finding = [] if statistics.lesions else [hd.sr.QualitativeEvaluation(name=codes.SCT.Neoplasm, value=_ABSENT)]
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=generate_uid(), identifier="Whole tumour"),
        finding_type=codes.SCT.Neoplasm,
        algorithm_id=_algorithm(equipment),
        measurements=_measurements(values),
        qualitative_evaluations=finding,
    )
    for text in (_RESEARCH, *warnings):
        comment = hd.sr.TextContentItem(codes.DCM.Comment, text, hd.sr.RelationshipTypeValues.CONTAINS)
        group[0].ContentSequence.append(comment)
    return group


def _measurements(
    values: Sequence[tuple[CodedConcept, float | None, CodedConcept, CodedConcept | None]],
) -> list[hd.sr.Measurement]:
    return [
        hd.sr.Measurement(name=name, value=value, unit=unit, derivation=derivation)
        for name, value, unit, derivation in values
        if value is not None
    ]


def _algorithm(equipment: Equipment) -> hd.sr.AlgorithmIdentification:
    return hd.sr.AlgorithmIdentification(
        name=equipment.model_name,
        version=equipment.model_version,
        parameters=[f"{name}={value}" for name, value in equipment.parameters.items()],
    )
