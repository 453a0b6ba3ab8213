"""DICOM results: valid by an independent validator, the same voxels by independent readers, in every orientation."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from collections.abc import Iterator
from dataclasses import replace
from logging import getLogger
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.path import Path as Polygon
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag
from runtime.dicom_factory import pet_series, write
from runtime.test_dicom import ORIENTATIONS, needs

from petseg_runtime.cli import main
from petseg_runtime.errors import InputError
from petseg_runtime.io.dicom import read_pet_series
from petseg_runtime.io.scans import RESULT_SUFFIXES
from petseg_runtime.outputs.contours import outlines
from petseg_runtime.outputs.dicom import write_dicom
from petseg_runtime.outputs.dicom_rtstruct import structure_set
from petseg_runtime.outputs.dicom_source import Equipment, identity_of, read_source
from petseg_runtime.outputs.quiet import QUIET
from petseg_runtime.quantification import quantify
from petseg_runtime.segmentation import Segmentation
from petseg_runtime.volume import Volume

EQUIPMENT = Equipment("petseg-test", "3", "ab" * 32, threshold=0.5, overlap=0.25, tta=False, backend="none")
KINDS = ("dicom-seg", "dicom-sr", "dicom-rtstruct")
WARNINGS = ("A lesion reaches the edge of the scan.", "The highest SUVbw of the scan is 720.")
SHAPE = (5, 12, 14)


def two_lesions() -> np.ndarray:
    """One with a hole and a corner that touches another part diagonally, and one of a single voxel."""
    labels = np.zeros(SHAPE, np.uint32)
    labels[1:4, 2:9, 3:10] = 1
    labels[2, 4:7, 5:8] = 0
    labels[2, 5, 6] = 1
    labels[3, 9, 10] = 1
    labels[4, 11, 13] = 2
    return labels


def scan_in(folder: Path, orientation: str = "axial") -> Volume:
    stored = np.random.default_rng(3).integers(100, 9000, SHAPE)
    return read_pet_series(write(pet_series(stored, orientation=ORIENTATIONS[orientation]), folder))


def segmentation_of(volume: Volume, labels: np.ndarray) -> Segmentation:
    probabilities = np.where(labels > 0, 0.8, 0.1).astype(np.float32)
    statistics = quantify(volume, labels, probabilities)
    return Segmentation((labels > 0).astype(np.uint8), labels, probabilities, volume.geometry, statistics, {})


def results_of(volume: Volume, labels: np.ndarray, folder: Path) -> dict[str, Path]:
    source = read_source(volume.source, volume.geometry)
    files = {suffix: folder / f"scan{suffix}" for suffix in ("_seg.dcm", "_sr.dcm", "_probseg.dcm", "_rtstruct.dcm")}
    write_dicom(source, segmentation_of(volume, labels), EQUIPMENT, WARNINGS, files)
    return files


def index_of(volume: Volume, positions_lps_mm: np.ndarray) -> np.ndarray:
    """Array index `(n, 3)` of positions: the inverse of the geometry, by linear algebra of its own."""
    geometry = volume.geometry
    axes = np.array(geometry.direction_lps) * geometry.spacing_mm
    return np.linalg.solve(axes, (positions_lps_mm - np.array(geometry.origin_lps_mm)).T).T


def frames_of_seg(volume: Volume, file: Path) -> Iterator[tuple[int, np.ndarray, Dataset]]:
    """Slice, pixels, groups of each frame: pixels by ITK, which knows nothing of highdicom, places by the frame."""
    dataset = pydicom.dcmread(file)
    frames = sitk.GetArrayFromImage(sitk.ReadImage(str(file))).reshape(-1, *volume.array.shape[1:])
    for pixels, groups in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        position = np.array([groups.PlanePositionSequence[0].ImagePositionPatient], float)
        z, y, x = index_of(volume, position)[0]
        assert (y, x) == pytest.approx((0, 0), abs=1e-3)
        assert z == pytest.approx(round(z), abs=1e-3)
        yield round(z), pixels, groups


def labels_of_seg(volume: Volume, file: Path) -> np.ndarray:
    """Label map of a binary SEG."""
    labels = np.zeros(volume.array.shape, np.uint32)
    for index, pixels, groups in frames_of_seg(volume, file):
        # With one segment it stands in the groups that all frames share.
        identification = groups.get("SegmentIdentificationSequence")
        labels[index][pixels > 0] = identification[0].ReferencedSegmentNumber if identification else 1
    return labels


def labels_of_rtstruct(volume: Volume, file: Path) -> np.ndarray:
    """Label map of an RTSTRUCT: the voxels whose centres lie in a contour, by matplotlib."""
    labels = np.zeros(volume.array.shape, np.uint32)
    rows_and_columns = np.argwhere(np.ones(volume.array.shape[1:]))
    for region in pydicom.dcmread(file).ROIContourSequence:
        for contour in region.get("ContourSequence", []):
            points = index_of(volume, np.reshape(contour.ContourData, (-1, 3)).astype(float))
            (index,) = set(points[:, 0].round(2))
            inside = Polygon(points[:, 1:]).contains_points(rows_and_columns).reshape(volume.array.shape[1:])
            labels[int(index)][inside] = region.ReferencedROINumber
    return labels


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_other_readers_get_the_same_voxels(orientation: str, tmp_path: Path) -> None:
    volume = scan_in(tmp_path / "in", orientation)
    labels = two_lesions()
    files = results_of(volume, labels, tmp_path)
    np.testing.assert_array_equal(labels_of_seg(volume, files["_seg.dcm"]), labels)
    np.testing.assert_array_equal(labels_of_rtstruct(volume, files["_rtstruct.dcm"]), labels)


def test_probabilities_come_back_to_a_255th(tmp_path: Path) -> None:
    volume = scan_in(tmp_path / "in")
    files = results_of(volume, two_lesions(), tmp_path)
    read = np.zeros(SHAPE)
    for index, pixels, _ in frames_of_seg(volume, files["_probseg.dcm"]):
        read[index] = pixels / 255
    np.testing.assert_allclose(read, np.where(two_lesions() > 0, 0.8, 0.1), atol=0.501 / 255)


@pytest.mark.parametrize("orientation", ["axial", "oblique"])
@pytest.mark.parametrize("lesions", [2, 1, 0])
def test_the_validator_finds_no_error(lesions: int, orientation: str, tmp_path: Path) -> None:
    volume = scan_in(tmp_path / "in", orientation)
    labels = two_lesions()
    labels[labels > lesions] = 0
    files = results_of(volume, labels, tmp_path)
    assert set(files) == {"_seg.dcm", "_sr.dcm", "_probseg.dcm", "_rtstruct.dcm"}
    for file in files.values():
        assert errors_in(file) == []


def errors_in(file: Path) -> list[str]:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian's dicom3tools)")
    said = subprocess.run(["dciodvfy", str(file)], capture_output=True, text=True, check=False)
    return [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")]


def test_no_tumour_is_a_valid_result(tmp_path: Path) -> None:
    volume = scan_in(tmp_path / "in")
    files = results_of(volume, np.zeros(SHAPE, np.uint32), tmp_path)
    assert not labels_of_seg(volume, files["_seg.dcm"]).any()
    assert pydicom.dcmread(files["_seg.dcm"]).SegmentSequence[0].SegmentLabel == "Tumour (none found)"
    structures = pydicom.dcmread(files["_rtstruct.dcm"])
    assert [region.ROIName for region in structures.StructureSetROISequence] == ["Tumour (none found)"]
    assert "Absent" in str(pydicom.dcmread(files["_sr.dcm"]))


def test_results_refer_to_the_slices_and_name_the_model(tmp_path: Path) -> None:
    volume = scan_in(tmp_path / "in")
    slices = [pydicom.dcmread(file) for file in volume.source]
    files = results_of(volume, two_lesions(), tmp_path)
    for file in files.values():
        result = pydicom.dcmread(file)
        assert result.PatientID == slices[0].PatientID
        assert result.StudyInstanceUID == slices[0].StudyInstanceUID
        assert result.SeriesInstanceUID != slices[0].SeriesInstanceUID
        text = result.to_json()
        assert "petseg-test" in text
        assert EQUIPMENT.model_sha256 in text
        assert all(one.SOPInstanceUID in text for one in slices[1:4])


def test_results_say_what_the_outline_depends_on_beside_the_scan(tmp_path: Path) -> None:
    """Two results of one scan that differ would have nothing to tell them by (PS3.3 10.16)."""
    volume = scan_in(tmp_path / "in")
    source = read_source(volume.source, volume.geometry)
    used = replace(EQUIPMENT, threshold=0.35, overlap=0.5, tta=True, backend="OpenVINO f32")
    labels = two_lesions()
    files = {suffix: tmp_path / f"scan{suffix}" for suffix in ("_seg.dcm", "_sr.dcm", "_rtstruct.dcm")}
    write_dicom(source, segmentation_of(volume, labels), used, (), files)
    seg, report, structures = map(pydicom.dcmread, files.values())
    said = f"model_sha256={used.model_sha256},threshold=0.35,overlap=0.5,tta=yes,backend=OpenVINO f32"
    assert seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters == said
    assert all(f'"{parameter}"' in report.to_json() for parameter in said.split(","))
    assert said.replace("=", " ").replace(",", ", ") in structures.StructureSetDescription


def test_an_odd_number_of_bytes_is_padded_with_null(tmp_path: Path) -> None:
    """Three frames of 12 x 14 bits are 63 bytes (PS3.5 6.2, OB)."""
    labels = two_lesions()
    labels[labels > 1] = 0
    pixels = pydicom.dcmread(results_of(scan_in(tmp_path / "in"), labels, tmp_path)["_seg.dcm"]).PixelData
    assert (len(pixels), pixels[-1]) == (64, 0)


def test_what_is_made_of_a_deidentified_series_says_so_too(tmp_path: Path) -> None:
    def deidentified(dataset: Dataset, _: int) -> None:
        dataset.PatientIdentityRemoved, dataset.DeidentificationMethod = "YES", ["von Hand in Köln", "twice"]
        dataset.SpecificCharacterSet = "ISO_IR 192"
        code, broken = Dataset(), Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "113100", "DCM", "Köln Profile"
        broken.CodeValue = "113101"
        dataset.DeidentificationMethodCodeSequence = [code, broken]

    volume = scan_in(tmp_path / "in")
    spoilt(volume, deidentified)
    for file in results_of(volume, two_lesions(), tmp_path).values():
        result = pydicom.dcmread(file)
        assert (result.PatientIdentityRemoved, list(result.DeidentificationMethod)) == (
            "YES",
            ["von Hand in Köln", "twice"],
        )
        (code,) = result.DeidentificationMethodCodeSequence
        assert (code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning) == ("113100", "DCM", "Köln Profile")
        assert errors_in(file) == []


@pytest.mark.parametrize(("vr", "value"), [("LO", "no sequence"), ("US", 5)])
def test_malformed_words_on_deidentification_are_left_out(vr: str, value: object, tmp_path: Path) -> None:
    def odd(dataset: Dataset, _: int) -> None:
        dataset.add_new(0x00120062, "LO", "MAYBE")
        dataset.add_new(0x00120063, "LO", "m" * 65)
        dataset.add_new(0x00120064, vr, value)

    volume = scan_in(tmp_path / "in")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spoilt(volume, odd)
    assert (
        "DeidentificationMethod, DeidentificationMethodCodeSequence"
        in read_source(volume.source, volume.geometry).notes[0]
    )
    for file in results_of(volume, two_lesions(), tmp_path).values():
        result = pydicom.dcmread(file)
        assert not {"PatientIdentityRemoved", "DeidentificationMethod"} & set(result.dir())
        assert "DeidentificationMethodCodeSequence" not in result


def test_the_report_holds_the_quantities_of_each_lesion(tmp_path: Path) -> None:
    """Name, derivation, value and unit of every measurement, group by group (TID 1500)."""
    volume = scan_in(tmp_path / "in")
    statistics = quantify(volume, two_lesions(), segmentation_of(volume, two_lesions()).probabilities)
    report = pydicom.dcmread(results_of(volume, two_lesions(), tmp_path)["_sr.dcm"])
    (measurements,) = (item for item in report.ContentSequence if item.ValueType == "CONTAINER")
    groups = [group.ContentSequence for group in measurements.ContentSequence]
    found = [
        [
            (
                item.ConceptNameCodeSequence[0].CodeMeaning,
                tuple(sub.ConceptCodeSequence[0].CodeMeaning for sub in item.get("ContentSequence", [])),
                float(item.MeasuredValueSequence[0].NumericValue),
                item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue,
            )
            for item in group
            if item.ValueType == "NUM"
        ]
        for group in groups
    ]
    tumour = statistics.tumour
    expected = [
        [
            ("Metabolic Volume", (), tumour.mtv_ml, "mL"),
            ("Total Lesion Glycolysis", (), tumour.tlg_g, "g"),
        ]
    ] + [
        [
            ("Metabolic Volume", (), lesion.mtv_ml, "mL"),
            ("Maximum 3D Diameter of a Mesh", (), lesion.diameter_mm, "mm"),
            ("SUVbw", ("Maximum",), lesion.suv_max, "g/ml{SUVbw}"),
            ("SUVbw", ("Mean",), lesion.suv_mean, "g/ml{SUVbw}"),
            ("SUVbw", ("Peak Value Within ROI",), lesion.suv_peak, "g/ml{SUVbw}"),
            ("Total Lesion Glycolysis", (), lesion.tlg_g, "g"),
            ("Mean tumour probability", (), lesion.mean_probability, "1"),
        ]
        for lesion in statistics.lesions
    ]
    assert [[(name, how, unit) for name, how, _, unit in group] for group in found] == [
        [(name, how, unit) for name, how, _, unit in group] for group in expected
    ]
    for ours, theirs in zip(found, expected, strict=True):
        assert [value for _, _, value, _ in ours] == pytest.approx([value for _, _, value, _ in theirs], rel=1e-6)


def test_who_reads_a_result_in_an_archive_is_told_what_to_mind(tmp_path: Path) -> None:
    files = results_of(scan_in(tmp_path / "in"), two_lesions(), tmp_path)
    report, structures = (pydicom.dcmread(files[name]) for name in ("_sr.dcm", "_rtstruct.dcm"))
    (measurements,) = (item for item in report.ContentSequence if item.ValueType == "CONTAINER")
    comments = [item.TextValue for item in measurements.ContentSequence[0].ContentSequence if item.ValueType == "TEXT"]
    assert comments[-3:] == ["Research use only, not for diagnosis.", *WARNINGS]
    assert structures.StructureSetDescription.endswith(" ".join(WARNINGS))
    assert "Research use only" in structures.StructureSetDescription


@pytest.mark.parametrize(("count", "kept"), [(4, 4), (5, 4), (12, 4)])
def test_warnings_that_a_structure_set_has_no_room_for_are_left_out_whole(
    count: int, kept: int, tmp_path: Path
) -> None:
    """1,024 characters, of which the first sentences take 113: four warnings of 200 fit, a fifth does not."""
    volume = scan_in(tmp_path / "in")
    texts = [f"{number:02} " + "x" * 196 + "." for number in range(count)]
    source = read_source(volume.source, volume.geometry)
    structures = structure_set(two_lesions(), volume.geometry, source.slices, EQUIPMENT, texts)
    said = structures.StructureSetDescription
    assert len(said) <= 1024
    assert said.endswith(" ".join(texts[:kept]) + (" More in the run's record." if count > kept else ""))
    assert said.count("x.") == kept


def test_the_warnings_of_libraries_stay_back_until_the_last_thread_is_done(
    capfd, recwarn: pytest.WarningsRecorder
) -> None:
    """They hold names of patients; and Python keeps one set of filters for all threads."""
    reading, writing = Event(), Event()

    def read() -> None:
        with QUIET:
            reading.set()
            writing.wait(10)  # leaves first what it entered first

    def write() -> None:
        reading.wait(10)
        with QUIET:
            writing.set()
            reader.join()
            warnings.warn("Jane Doe", stacklevel=1)
            getLogger("highdicom.base").warning("Jane Doe")

    propagates, filters = getLogger("highdicom").propagate, list(warnings.filters)
    reader, writer = Thread(target=read), Thread(target=write)
    reader.start()
    writer.start()
    writer.join()
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert getLogger("highdicom").propagate == propagates
    assert list(warnings.filters) == filters


def spoilt(volume: Volume, edit) -> None:
    """Edit the files of a scan that has been read."""
    for index, file in enumerate(volume.source):
        dataset = pydicom.dcmread(file)
        edit(dataset, index)
        dataset.save_as(file)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda d, _: delattr(d, "StudyInstanceUID"), r"StudyInstanceUID \(0020,000D\) is absent"),
        (lambda d, _: setattr(d, "SOPInstanceUID", "1.2.3.4711"), r"SOPInstanceUID \(0008,0018\) is the same"),
        (lambda d, i: d.add_new(0x00080018, "LO", f"SECRET.{i}"), r"SOPInstanceUID \(0008,0018\) is malformed"),
        (lambda d, _: d.add_new(0x0020000E, "LO", "1.2.SECRET"), r"SeriesInstanceUID \(0020,000E\) is malformed"),
    ],
    ids=["no study", "same", "malformed", "series"],
)
def test_a_series_that_nothing_can_refer_to_is_refused(edit, says: str, tmp_path: Path, capfd) -> None:
    volume = scan_in(tmp_path / "in")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spoilt(volume, edit)
    with pytest.raises(InputError, match=says) as refused:
        results_of(volume, two_lesions(), tmp_path / "out")
    assert "SECRET" not in str(refused.value)
    assert not (tmp_path / "out").exists()
    assert capfd.readouterr() == ("", "")


def test_what_anonymisers_leave_is_made_fit(tmp_path: Path, capfd) -> None:
    def anonymised(dataset: Dataset, _: int) -> None:
        del dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID
        dataset.PatientName = "Doe"
        dataset.ClinicalTrialSponsorName, dataset.ClinicalTrialProtocolID = "", "6668"
        dataset.add_new(0x00080050, "LO", "An accession number that is far too long")
        dataset.add_new(0x00100030, "LO", "1950-01-01")
        dataset.PatientSex = "F"
        dataset.StudyID = "7"

    volume = scan_in(tmp_path / "in")
    spoilt(volume, anonymised)
    notes = read_source(volume.source, volume.geometry).notes
    assert notes == (
        "Left empty in the DICOM results, because the series has it malformed or too long: AccessionNumber, "
        "PatientBirthDate.",
        "The series has no SeriesInstanceUID: the DICOM results refer to one made up for them.",
        "The series has no FrameOfReferenceUID: the DICOM results have one made up for them, by which no other system "
        "knows that they lie on the scan.",
    )
    files = results_of(volume, two_lesions(), tmp_path)
    assert capfd.readouterr() == ("", "")
    for file in files.values():
        result = pydicom.dcmread(file)
        assert (result.AccessionNumber, result.StudyID, result.PatientSex) == ("", "7", "F")
        assert result.PatientName == "Doe"
        assert errors_in(file) == []
    seg, structures = (pydicom.dcmread(files[name]) for name in ("_seg.dcm", "_rtstruct.dcm"))
    study = structures.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
    own = seg.ReferencedSeriesSequence[0].SeriesInstanceUID
    assert study.RTReferencedSeriesSequence[0].SeriesInstanceUID == own


def test_names_in_other_scripts_come_through(tmp_path: Path) -> None:
    def japanese(dataset: Dataset, _: int) -> None:
        dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
        dataset.PatientName = "Yamada^Tarou=山田^太郎=やまだ^たろう"

    volume = scan_in(tmp_path / "in")
    spoilt(volume, japanese)
    for file in results_of(volume, two_lesions(), tmp_path).values():
        assert pydicom.dcmread(file).PatientName.ideographic == "山田^太郎"
        assert errors_in(file) == []


def raw_text(dataset: Dataset, tag: int, vr: str, value: bytes) -> None:
    dataset[tag] = RawDataElement(BaseTag(tag), vr, len(value), value, 0, False, True)


def test_a_letter_that_holds_a_backslash_is_a_letter(tmp_path: Path) -> None:
    """In GB18030 the second byte of a letter may be 5CH (PS3.5 6.1.2.5.3)."""

    name = "\u6b55^A".encode("gb18030")
    assert b"\\" in name
    volume = scan_in(tmp_path / "in")
    spoilt(volume, lambda dataset, _: setattr(dataset, "SpecificCharacterSet", "GB18030"))
    spoilt(volume, lambda dataset, _: raw_text(dataset, 0x00100010, "PN", name))
    for file in results_of(volume, two_lesions(), tmp_path).values():
        assert str(pydicom.dcmread(file).PatientName) == "\u6b55^A"
        assert errors_in(file) == []


@pytest.mark.parametrize("value", [b"KLINIK\\4711", b"47\n11 "])
def test_a_text_that_is_not_one_line_is_left_empty_with_a_note(value: bytes, tmp_path: Path) -> None:
    volume = scan_in(tmp_path / "in")
    spoilt(volume, lambda dataset, _: raw_text(dataset, 0x00100020, "LO", value))
    assert "PatientID" in read_source(volume.source, volume.geometry).notes[0]
    assert identity_of(Path(volume.source[0]))["PatientID"] == ""
    for file in results_of(volume, two_lesions(), tmp_path).values():
        assert pydicom.dcmread(file).PatientID == ""


@pytest.mark.parametrize(
    "name", ["\u5c71\u7530\u3000\u592a\u90ce", "\u0645\u06cc\u200c\u0631^\u0627", "Jean\u00a0Paul^A"]
)
def test_spaces_and_joiners_of_other_scripts_are_letters(name: str, tmp_path: Path) -> None:
    def other(dataset: Dataset, _: int) -> None:
        dataset.SpecificCharacterSet, dataset.PatientName = "ISO_IR 192", name

    volume = scan_in(tmp_path / "in")
    spoilt(volume, other)
    for file in results_of(volume, two_lesions(), tmp_path).values():
        assert str(pydicom.dcmread(file).PatientName) == name


def test_bytes_that_are_not_of_the_character_set_are_left_out_with_a_note(tmp_path: Path) -> None:
    volume = scan_in(tmp_path / "in")
    spoilt(volume, lambda dataset, _: setattr(dataset, "SpecificCharacterSet", "ISO_IR 192"))
    spoilt(volume, lambda dataset, _: raw_text(dataset, 0x00100010, "PN", b"M\xfcller^A "))
    assert "PatientName" in read_source(volume.source, volume.geometry).notes[0]


def test_a_name_is_as_long_as_the_standard_allows_in_each_way_of_writing(tmp_path: Path) -> None:
    name = "A" * 60 + "^B=" + "\u03a9" * 60 + "^B"

    def long(dataset: Dataset, _: int) -> None:
        dataset.SpecificCharacterSet, dataset.PatientName = "ISO_IR 192", name

    volume = scan_in(tmp_path / "in")
    spoilt(volume, long)
    assert read_source(volume.source, volume.geometry).notes == ()
    for file in results_of(volume, two_lesions(), tmp_path).values():
        assert str(pydicom.dcmread(file).PatientName) == name


@pytest.mark.parametrize(
    ("tag", "vr", "value", "written"),
    [
        (0x00100030, "DA", b"19500000", ""),
        (0x00080020, "DA", b"00000000", ""),
        (0x00080020, "DA", b"2020.03.04", "20200304"),
        (0x00080030, "TM", b"10:11:12", "101112"),
        (0x00080030, "TM", b"101112.1234567 ", "101112.123456"),
        (0x00080030, "TM", b"995959", ""),
    ],
)
def test_a_moment_that_is_none_costs_no_result(tag: int, vr: str, value: bytes, written: str, tmp_path: Path) -> None:
    volume = scan_in(tmp_path / "in")
    spoilt(volume, lambda dataset, _: raw_text(dataset, tag, vr, value))
    assert bool(read_source(volume.source, volume.geometry).notes) is (written == "")
    for file in results_of(volume, two_lesions(), tmp_path).values():
        assert str(pydicom.dcmread(file)[tag].value or "") == written
        assert errors_in(file) == []


def test_results_say_who_gave_the_patients_number(tmp_path: Path) -> None:
    volume = scan_in(tmp_path / "in")
    spoilt(volume, lambda dataset, _: setattr(dataset, "IssuerOfPatientID", "HOSPITAL"))
    for file in results_of(volume, two_lesions(), tmp_path).values():
        assert pydicom.dcmread(file).IssuerOfPatientID == "HOSPITAL"


def test_the_report_does_not_name_petseg_as_the_scanner(tmp_path: Path) -> None:
    volume = scan_in(tmp_path / "in")
    report = pydicom.dcmread(results_of(volume, two_lesions(), tmp_path)["_sr.dcm"])
    named = [item.Manufacturer for item in report.get("ContributingEquipmentSequence", [])]
    assert "PETSeg" not in named


def test_no_name_of_a_result_ends_with_another() -> None:
    """Else two scans, a and a_prob, would write one file."""
    assert not [(one, two) for one in RESULT_SUFFIXES for two in RESULT_SUFFIXES if one != two and one.endswith(two)]


def test_a_long_outline_is_written_whole(tmp_path: Path) -> None:
    """More points than the two bytes of a length in Explicit VR can count."""
    stored = np.random.default_rng(0).integers(100, 9000, (2, 180, 180))
    volume = read_pet_series(write(pet_series(stored), tmp_path / "in"))
    labels = np.zeros(volume.array.shape, np.uint32)
    labels[0, ::2, :] = labels[0, :, 0] = 1  # a comb
    labels[0, ::2, ::3] = 1
    labels[0, 1::2, 5::7] = 1
    file = results_of(volume, labels, tmp_path)["_rtstruct.dcm"]
    contour = pydicom.dcmread(file).ROIContourSequence[0].ContourSequence[0]
    assert sum(len(value) + 1 for value in map(str, contour.ContourData)) > 2**16
    np.testing.assert_array_equal(labels_of_rtstruct(volume, file), labels)


def test_contours_lie_on_their_own_slices(tmp_path: Path) -> None:
    """A slice that lies a hair off the straight grid: its contours are in its plane, as a planning system expects."""
    datasets = pet_series(np.random.default_rng(3).integers(100, 9000, SHAPE))
    datasets[2].ImagePositionPatient = [
        *datasets[2].ImagePositionPatient[:2],
        datasets[2].ImagePositionPatient[2] + 0.2,
    ]
    volume = read_pet_series(write(datasets, tmp_path / "in"))
    structures = pydicom.dcmread(results_of(volume, two_lesions(), tmp_path)["_rtstruct.dcm"])
    heights = {dataset.SOPInstanceUID: float(dataset.ImagePositionPatient[2]) for dataset in datasets}
    for contour in structures.ROIContourSequence[0].ContourSequence:
        own = heights[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
        np.testing.assert_allclose(np.array(contour.ContourData[2::3], float), own, atol=1e-3)


@pytest.mark.parametrize("folder", ["sts-dicom/STS_007", "acrin-study"])
def test_results_of_real_scans_are_valid_and_come_back_voxel_for_voxel(folder: str, tmp_path: Path) -> None:
    path = needs(folder)
    kinds = [option for kind in ("nifti", *KINDS) for option in ("--output-type", kind)]
    assert main([str(path), "-o", str(tmp_path), "-q", "--save-probabilities", *kinds]) == 0
    name = path.name
    for suffix in ("_seg.dcm", "_sr.dcm", "_probseg.dcm", "_rtstruct.dcm"):
        assert errors_in(tmp_path / f"{name}{suffix}") == []
    if shutil.which("plastimatch") is None:
        pytest.skip("plastimatch is not installed")
    mask_file = tmp_path / f"{name}_petseg.nii.gz"
    arguments = [
        "--input",
        tmp_path / f"{name}_rtstruct.dcm",
        "--fixed",
        mask_file,
        "--output-prefix",
        tmp_path / "read",
    ]
    subprocess.run(["plastimatch", "convert", *arguments, "--prefix-format", "nii.gz"], check=True, capture_output=True)
    read = [sitk.GetArrayFromImage(sitk.ReadImage(str(file))) > 0 for file in (tmp_path / "read").iterdir()]
    np.testing.assert_array_equal(np.any(read, axis=0), sitk.GetArrayFromImage(sitk.ReadImage(str(mask_file))) > 0)


@given(st.integers(0, 2**31), st.floats(0.1, 0.9))
def test_outlines_hold_the_centres_of_exactly_the_pixels_inside(seed: int, share: float) -> None:
    """By matplotlib, which counts windings, and by adding the polygons up, as readers without holes do."""
    mask = np.random.default_rng(seed).random((7, 9)) < share
    centres = np.argwhere(np.ones(mask.shape))
    inside = np.zeros(mask.shape, int)
    for polygon in outlines(mask):
        inside += Polygon(polygon).contains_points(centres).reshape(mask.shape)
    np.testing.assert_array_equal(inside, mask)
