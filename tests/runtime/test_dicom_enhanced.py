"""Enhanced PET: what stands in functional groups gives the numbers that the same slices give one by one."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from highdicom.legacy import LegacyConvertedEnhancedPETImage
from pydicom.dataset import Dataset
from pydicom.filereader import dcmread
from pydicom.uid import ImplicitVRLittleEndian, RLELossless
from runtime.dicom_factory import DAY, FACTOR, HALF_LIFE_S, INJECTION, SCAN, default_voxels, pet_series
from runtime.test_dicom import ORIENTATIONS

from petseg_runtime.cli import main
from petseg_runtime.errors import InputError
from petseg_runtime.io.dicom import read_headers, read_pet_series
from petseg_runtime.io.scans import find_scans

ENHANCED_PET = "1.2.840.10008.5.1.4.1.1.130"
SLOPES = (1.0, 2.0, 0.5, 4.0)


def item(**values: object) -> Dataset:
    made = Dataset()
    for name, value in values.items():
        setattr(made, name, value)
    return made


def real_world(slope: float, unit: str = "Bq/ml") -> Dataset:
    code = item(CodeValue=unit, CodingSchemeDesignator="UCUM", CodeMeaning=unit)
    return item(RealWorldValueSlope=slope, RealWorldValueIntercept=0.0, MeasurementUnitsCodeSequence=[code])


def enhanced(
    folder: Path,
    *,
    slopes: tuple[float, ...] = SLOPES,
    unit: str = "Bq/ml",
    orientation: tuple = ORIENTATIONS["axial"],
    frames: list[dict[str, object]] | None = None,
    syntax: str | None = None,
    **changes: object,
) -> Path:
    """The series of the factory as an Enhanced PET, frames from head to feet; attributes as in PS3.3 A.56."""
    series = pet_series(orientation=orientation)[::-1]
    file = copy.deepcopy(series[0])
    for name in (
        *("Units", "DecayCorrection", "CorrectedImage", "SeriesType", "NumberOfSlices", "FrameReferenceTime"),
        *("ActualFrameDuration", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"),
        *("RescaleIntercept", "AcquisitionDate", "AcquisitionTime"),
    ):
        delattr(file, name)
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = ENHANCED_PET
    file.NumberOfFrames, file.PixelData = len(series), b"".join(one.PixelData for one in series)
    file.DecayCorrected, file.AttenuationCorrected, file.DecayCorrectionDateTime = "YES", "YES", DAY + SCAN
    file.SeriesTime = "150000"  # written anew an hour later
    file.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence=[item(PixelSpacing=series[0].PixelSpacing, SliceThickness=99)],
            PlaneOrientationSequence=[item(ImageOrientationPatient=series[0].ImageOrientationPatient)],
            PixelValueTransformationSequence=[item(RescaleSlope=7, RescaleIntercept=0, RescaleType="US")],
        )
    ]
    file.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=one.ImagePositionPatient)],
            RealWorldValueMappingSequence=[real_world(99.0, "{counts}"), real_world(slope, unit)],
            FrameContentSequence=[item(FrameAcquisitionDateTime=DAY + SCAN, **(frames[index] if frames else {}))],
        )
        for index, (one, slope) in enumerate(zip(series, slopes, strict=True))
    ]
    for name, value in changes.items():
        if value is None:
            delattr(file, name)
        else:
            setattr(file, name, value)
    if syntax:
        file.file_meta.TransferSyntaxUID = syntax
    folder.mkdir(parents=True, exist_ok=True)
    file.save_as(folder / "enhanced.dcm", enforce_file_format=True)
    return folder / "enhanced.dcm"


def end_of_meta(content: bytes) -> int:
    """Of a file's own header: FileMetaInformationGroupLength (0002,0000) counts from behind itself."""
    return 144 + int.from_bytes(content[140:144], "little")


def in_eight_bits(file: Dataset) -> None:
    file.BitsAllocated, file.BitsStored, file.HighBit = 8, 8, 7


def as_doubles(file: Dataset) -> None:
    """Real numbers in place of whole ones (PS3.3 C.7.6.25)."""
    del file.PixelData
    file.add_new(0x7FE00009, "OD", bytes(8 * 24))


def expected(slopes: tuple[float, ...] = SLOPES) -> np.ndarray:
    """From feet to head, as axis z runs; the file's frames run the other way."""
    return default_voxels() * np.array(slopes[::-1])[:, None, None]


@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian], ids=["explicit", "implicit"])
def test_each_slice_has_its_own_real_world_value(syntax: str | None, tmp_path: Path) -> None:
    volume = read_pet_series([enhanced(tmp_path, syntax=syntax)])
    np.testing.assert_allclose(volume.array, expected() * FACTOR, rtol=1e-6)
    assert "DecayCorrectionDateTime (0018,9701)" in volume.notes[1]
    assert "Took PET series 1 (4 slices, attenuation corrected, BQML)" in volume.notes[0]


@pytest.mark.parametrize("said", ["BQML", "GML", "CNTS"])
@pytest.mark.parametrize("attribute", ["Units", "RescaleType"])
def test_a_real_world_value_goes_before_what_else_says_a_unit(attribute: str, said: str, tmp_path: Path) -> None:
    """The slope of the rescaling, 7, is of the numbers as they are shown, whatever it is called."""
    file = dcmread(enhanced(tmp_path))
    if attribute == "Units":
        file.Units = said
    else:
        file.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0].RescaleType = said
    file.save_as(tmp_path / "enhanced.dcm")
    np.testing.assert_allclose(read_pet_series([tmp_path / "enhanced.dcm"]).array, expected() * FACTOR, rtol=1e-6)


def test_a_unit_alone_does_not_go_before_what_says_of_what_it_is(tmp_path: Path) -> None:
    """g/ml is of SUVbw and of SUVlbm: the attributes of the file tell, and their slope holds, 7."""
    file = dcmread(enhanced(tmp_path, unit="g/ml", PatientSize=1.75, PatientSex="M"))
    file.Units, file.SUVType = "GML", "LBM"
    file.save_as(tmp_path / "enhanced.dcm")
    factor = 70 / (1.10 * 70 - 120 * (70 / 175) ** 2)  # Morgan's formula
    volume = read_pet_series([tmp_path / "enhanced.dcm"])
    np.testing.assert_allclose(volume.array, 7 * default_voxels() * factor, rtol=1e-6)
    file.Units = "BQML"
    del file.SUVType
    file.save_as(tmp_path / "enhanced.dcm")
    volume = read_pet_series([tmp_path / "enhanced.dcm"])
    np.testing.assert_allclose(volume.array, 7 * default_voxels() * FACTOR, rtol=1e-6)


@pytest.mark.parametrize(("code", "is_lean"), [("126401", False), ("126406", True), ("126400", False)])
def test_the_quantity_tells_where_the_unit_does_not(code: str, is_lean: bool, tmp_path: Path) -> None:
    """PS3.16 CID 85: SUVbw, SUVlbm(James128), and a standardised uptake value without more."""
    file = dcmread(enhanced(tmp_path, unit="g/ml", PatientSize=1.75, PatientSex="M"))
    for group in file.PerFrameFunctionalGroupsSequence:
        concept = item(CodeValue=code, CodingSchemeDesignator="DCM", CodeMeaning="SUV")
        group.RealWorldValueMappingSequence[1].QuantityDefinitionSequence = [item(ConceptCodeSequence=[concept])]
    file.save_as(tmp_path / "enhanced.dcm")
    factor = 70 / (1.10 * 70 - 128 * (70 / 175) ** 2) if is_lean else 1
    np.testing.assert_allclose(read_pet_series([tmp_path / "enhanced.dcm"]).array, expected() * factor, rtol=1e-6)


@pytest.mark.parametrize("attribute", ["Units", "RescaleType"])
def test_without_a_real_world_value_the_rescaling_holds(attribute: str, tmp_path: Path) -> None:
    file = dcmread(enhanced(tmp_path, unit="{counts}"))
    if attribute == "Units":
        file.Units = "BQML"
    else:
        file.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0].RescaleType = "BQML"
    file.save_as(tmp_path / "enhanced.dcm")
    volume = read_pet_series([tmp_path / "enhanced.dcm"])
    np.testing.assert_allclose(volume.array, 7 * default_voxels() * FACTOR, rtol=1e-6)


@pytest.mark.parametrize(
    "unit", ["{SUVlbm(James128)}g/ml", "g/ml{SUVlbm(James128)}", "{SUVlbm(Janma)}g/ml", "{SUVlbm(Janmahasatian)} g/ml"]
)
def test_a_unit_of_many_letters_is_a_long_code(unit: str, tmp_path: Path) -> None:
    """PS3.5 table 6.2-1: a short string holds 16. For a man of 70 kg and 1.75 m, as `test_suv` has them."""
    file = dcmread(enhanced(tmp_path, PatientSize=1.75, PatientSex="M"))
    for group in file.PerFrameFunctionalGroupsSequence:
        code = group.RealWorldValueMappingSequence[1].MeasurementUnitsCodeSequence[0]
        del code.CodeValue
        code.LongCodeValue = unit
    file.save_as(tmp_path / "enhanced.dcm")
    james_kg, janmahasatian_kg = 1.10 * 70 - 128 * (70 / 175) ** 2, 9270 * 70 / (6680 + 216 * 70 / 1.75**2)
    factor = 70 / (james_kg if "James" in unit else janmahasatian_kg)
    np.testing.assert_allclose(read_pet_series([tmp_path / "enhanced.dcm"]).array, expected() * factor, rtol=1e-6)


@pytest.mark.parametrize("unit", ["{SUVbw}g/ml", "g/ml{SUVbw}", "g/ml"])
def test_suv_is_taken_as_it_is(unit: str, tmp_path: Path) -> None:
    np.testing.assert_allclose(read_pet_series([enhanced(tmp_path, unit=unit)]).array, expected(), rtol=1e-6)


@pytest.mark.parametrize("dose", [40.0, 350.0, 350e6])
def test_the_dose_is_in_mbq_by_the_standard_and_in_bq_in_many_files(dose: float, tmp_path: Path) -> None:
    """PS3.3 C.8.22.4."""
    injected = pet_series()[0].RadiopharmaceuticalInformationSequence
    injected[0].RadionuclideTotalDose = dose
    volume = read_pet_series([enhanced(tmp_path, RadiopharmaceuticalInformationSequence=injected)])
    megabecquerels = dose if dose < 1e4 else dose / 1e6
    np.testing.assert_allclose(volume.array, expected() * FACTOR * 350 / megabecquerels, rtol=1e-6)


def test_slices_that_are_not_corrected_for_decay_refer_to_their_own_moment(tmp_path: Path) -> None:
    """A half-life after the injection, and four more seconds for each frame."""
    injected = datetime.strptime(DAY + INJECTION, "%Y%m%d%H%M%S.%f")
    delays = [HALF_LIFE_S + 4 * index for index in range(4)]
    moments = [injected + timedelta(seconds=delay) for delay in delays]
    frames = [{"FrameReferenceDateTime": moment.strftime("%Y%m%d%H%M%S.%f")} for moment in moments]
    path = enhanced(tmp_path, frames=frames, DecayCorrected="NO", DecayCorrectionDateTime=None)
    factors = [70_000 / (350e6 * 2 ** (-delay / HALF_LIFE_S)) for delay in delays][::-1]
    np.testing.assert_allclose(read_pet_series([path]).array, expected() * np.array(factors)[:, None, None], rtol=1e-5)


@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS.keys())
def test_slices_lie_where_they_lie_one_by_one(orientation: tuple, tmp_path: Path) -> None:
    single = tmp_path / "single"
    single.mkdir()
    for number, one in enumerate(pet_series(orientation=orientation, slopes=SLOPES[::-1])):
        one.save_as(single / f"{number}", enforce_file_format=True)
    other = read_pet_series([enhanced(tmp_path, orientation=orientation)])
    same = read_pet_series(sorted(single.iterdir()))
    np.testing.assert_allclose(other.array, same.array, rtol=1e-6)
    corners = [[0, 0, 0], [3, 1, 2], [3, 0, 0]]
    np.testing.assert_allclose(other.geometry.to_lps_mm(corners), same.geometry.to_lps_mm(corners), atol=1e-5)


def test_simpleitk_reads_the_same_slices(tmp_path: Path) -> None:
    path = enhanced(tmp_path)
    stored = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    assert stored.shape == read_pet_series([path]).array.shape


def test_a_legacy_converted_series_gives_what_its_slices_gave(tmp_path: Path) -> None:
    """Made by highdicom, whose author wrote the standard's conversion."""
    slices = pet_series(slopes=SLOPES)
    for one in slices:
        one.StudyDate, one.StudyTime, one.PatientBirthDate, one.PatientSex = DAY, "100000", "", "F"
        one.StudyID = one.AccessionNumber = one.ReferringPhysicianName = ""
        one.SliceThickness = 3
    converted = LegacyConvertedEnhancedPETImage(slices, "1.2.9", 1, "1.2.9.1", 1)
    converted.save_as(tmp_path / "converted.dcm", enforce_file_format=True)
    volume = read_pet_series([tmp_path / "converted.dcm"])
    np.testing.assert_allclose(volume.array, default_voxels() * np.array(SLOPES)[:, None, None] * FACTOR, rtol=1e-6)


def test_a_file_of_many_slices_is_one_file_of_one_scan(tmp_path: Path) -> None:
    path = enhanced(tmp_path / "study")
    (scan,) = find_scans(path.parent)
    assert scan.files == (path,)
    assert len(read_headers([path])) == 4


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"PerFrameFunctionalGroupsSequence": None}, "without the functional groups of its slices"),
        ({"AttenuationCorrected": "NO"}, "not attenuation corrected"),
        ({"unit": "{counts}"}, r"Units \(0054,1001\) is absent"),
        ({"PixelData": b"\0" * 40}, "is truncated"),
        ({"syntax": RLELossless}, "expected uncompressed"),
        ({"DecayCorrected": None}, r"DecayCorrection \(0054,1102\) is absent"),
        ({"DecayCorrectionDateTime": None}, r"DecayCorrection \(0054,1102\) is absent"),
        ({"DecayCorrectionDateTime": DAY}, r"DecayCorrection \(0054,1102\) is absent"),
        ({"DecayCorrectionDateTime": DAY + SCAN + "+0000"}, "own clock"),  # and the injection without an offset
    ],
    ids=str,
)
def test_refused(changes: dict, says: str, tmp_path: Path) -> None:
    if changes.get("syntax"):
        path = enhanced(tmp_path)
        content = path.read_bytes()
        path.write_bytes(content.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"))
    else:
        path = enhanced(tmp_path, **changes)
    with pytest.raises(InputError, match=says):
        read_pet_series([path])


@pytest.mark.parametrize(("written", "labelled"), [(None, ImplicitVRLittleEndian), (ImplicitVRLittleEndian, None)])
def test_the_pixels_begin_where_they_do_whatever_the_transfer_syntax_says(
    written: str | None, labelled: str | None, tmp_path: Path
) -> None:
    """pydicom sees how the header is written, and mends it. Something lies behind the pixels."""
    content, other = (enhanced(tmp_path, syntax=syntax).read_bytes() for syntax in (written, labelled))
    body = content[end_of_meta(content) :] + bytes(64)
    (tmp_path / "enhanced.dcm").write_bytes(other[: end_of_meta(other)] + body)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        volume = read_pet_series([tmp_path / "enhanced.dcm"])
    np.testing.assert_allclose(volume.array, expected() * FACTOR, rtol=1e-6)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda file: file.PerFrameFunctionalGroupsSequence.pop(0), "of 3 slices, and NumberOfFrames .* is 4"),
        (lambda file: file.PerFrameFunctionalGroupsSequence.pop(), "of 3 slices, and NumberOfFrames .* is 4"),
        (lambda file: delattr(file, "NumberOfFrames"), "NumberOfFrames .* is absent"),
        (lambda file: setattr(file, "PixelData", 2 * file.PixelData), "96 bytes of pixels, expected 48 of"),
        (in_eight_bits, "48 bytes .* expected 24"),
        (lambda file: setattr(file, "InConcatenationTotalNumber", 2), "is 2, but there are 1 files"),
        (as_doubles, "without PixelData"),
    ],
    ids=["first", "last", "frames", "surplus", "bits", "part", "doubles"],
)
def test_a_file_that_contradicts_itself_is_refused(spoil: Callable, says: str, tmp_path: Path) -> None:
    file = dcmread(enhanced(tmp_path))
    spoil(file)
    file.save_as(tmp_path / "enhanced.dcm")
    with pytest.raises(InputError, match=says):
        read_pet_series([tmp_path / "enhanced.dcm"])


def test_a_file_that_contradicts_itself_does_not_stop_another_series(tmp_path: Path) -> None:
    uncorrected = dcmread(enhanced(tmp_path, AttenuationCorrected="NO"))
    uncorrected.SeriesInstanceUID, uncorrected.NumberOfFrames = "1.2.3.77", 5
    uncorrected.save_as(tmp_path / "uncorrected.dcm")
    good = enhanced(tmp_path / "good")
    volume = read_pet_series([good, tmp_path / "uncorrected.dcm"])
    np.testing.assert_allclose(volume.array, expected() * FACTOR, rtol=1e-6)


def test_padding_after_the_pixels_is_left_out(tmp_path: Path) -> None:
    file = dcmread(enhanced(tmp_path))
    file.PixelData += b"\xff\xff"
    file.save_as(tmp_path / "enhanced.dcm")
    np.testing.assert_allclose(read_pet_series([tmp_path / "enhanced.dcm"]).array, expected() * FACTOR, rtol=1e-6)


def test_two_offsets_from_utc_are_brought_together(tmp_path: Path) -> None:
    """The reference, with the injection written in the site's zone and the correction in UTC."""
    file = dcmread(enhanced(tmp_path))
    injected = file.RadiopharmaceuticalInformationSequence[0]
    injected.RadiopharmaceuticalStartDateTime = DAY + INJECTION + "+0100"
    file.DecayCorrectionDateTime = DAY + "104946.200000+0000"
    del injected.RadiopharmaceuticalStartTime
    file.save_as(tmp_path / "enhanced.dcm")
    np.testing.assert_allclose(read_pet_series([tmp_path / "enhanced.dcm"]).array, expected() * FACTOR, rtol=1e-6)


def test_a_vendors_private_copies_do_not_count(tmp_path: Path) -> None:
    file = dcmread(enhanced(tmp_path))
    for group in file.PerFrameFunctionalGroupsSequence:
        copies = item(RescaleSlope=1000, Units="BQML", ImagePositionPatient=[0, 0, 0])
        group.private_block(0x7053, "Philips PET Private Group", create=True).add_new(0x40, "SQ", [copies])
    file.save_as(tmp_path / "enhanced.dcm")
    np.testing.assert_allclose(read_pet_series([tmp_path / "enhanced.dcm"]).array, expected() * FACTOR, rtol=1e-6)


def test_scales_for_ranges_of_numbers_are_refused(tmp_path: Path) -> None:
    file = dcmread(enhanced(tmp_path))
    for group in file.PerFrameFunctionalGroupsSequence:
        group.RealWorldValueMappingSequence.append(real_world(10.0))
    file.save_as(tmp_path / "enhanced.dcm")
    with pytest.raises(InputError, match=r"Units \(0054,1001\) is absent"):
        read_pet_series([tmp_path / "enhanced.dcm"])


def test_frames_of_several_times_are_refused(tmp_path: Path) -> None:
    """Which a dynamic or gated scan is: nothing says which of them to take."""
    path = enhanced(tmp_path)
    file = dcmread(path)
    groups = file.PerFrameFunctionalGroupsSequence
    groups[1].PlanePositionSequence = groups[0].PlanePositionSequence
    file.save_as(path)
    with pytest.raises(InputError, match="4 slices lie at 3 positions"):
        read_pet_series([path])


def test_dicom_results_of_it_are_refused_before_any_work(known_model: Path, tmp_path: Path, capsys) -> None:
    enhanced(tmp_path / "study")
    arguments = [tmp_path / "study", "-m", known_model, "-o", tmp_path / "out", "--output-type", "dicom-seg"]
    assert main([str(argument) for argument in arguments]) == 3
    assert "Enhanced PET, and DICOM results are written for single slices only" in capsys.readouterr().err
