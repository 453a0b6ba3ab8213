"""DICOM series: geometry, values, which series is taken, and every guard tripped once."""

from __future__ import annotations

import contextlib
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.filereader import dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)
from runtime.dicom_factory import (
    DAY,
    FACTOR,
    compress_jpeg2000,
    ct_series,
    default_voxels,
    edited,
    injection,
    pet_series,
    write,
)

from petseg_runtime.errors import InputError
from petseg_runtime.io.dicom import choose_pet_series, group_by_study, read_headers, read_pet_series
from petseg_runtime.io.suv_attributes import SuvOverrides
from petseg_runtime.volume import Unit

DATA = Path(__file__).parents[2].parent / "shared/data"

# Row and column cosines: turned by 30 and 20 degrees, feet first, sagittal, and flipped rows.
C30, S30, C20, S20 = np.cos(np.pi / 6), 0.5, np.cos(np.pi / 9), np.sin(np.pi / 9)
ORIENTATIONS = {
    "axial": ((1, 0, 0), (0, 1, 0)),
    "flipped row": ((-1, 0, 0), (0, 1, 0)),
    "flipped column": ((1, 0, 0), (0, -1, 0)),
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "oblique": ((C30, S30, 0), (-S30 * C20, C30 * C20, S20)),
}


def put(**values: object) -> Callable[[Dataset], None]:
    def edit(dataset: Dataset) -> None:
        for name, value in values.items():
            setattr(dataset, name, value)

    return edit


def drop(name: str) -> Callable[[Dataset], None]:
    return lambda dataset: delattr(dataset, name)


def float_pixels(dataset: Dataset) -> None:
    del dataset.PixelData
    dataset.FloatPixelData = np.ones(6, np.float32).tobytes()


def on_first(edit: Callable[[Dataset], None]) -> Callable[[list[Dataset]], list[Dataset]]:
    return lambda series: [*edited(series[:1], edit), *series[1:]]


def on_all(edit: Callable[[Dataset], None]) -> Callable[[list[Dataset]], list[Dataset]]:
    return lambda series: edited(series, edit)


def needs(folder: str) -> Path:
    if not (DATA / folder).is_dir():
        pytest.skip(f"{DATA / folder} is absent: the real data is not part of the project")
    return DATA / folder


def refusal_of(datasets: list[Dataset], folder: Path) -> str:
    with pytest.raises(InputError) as refused:
        read_pet_series(write(datasets, folder))
    message = str(refused.value)
    assert "\n" not in message
    for secret in ("Doe", "SECRET", "1.2.3", "2024"):
        assert secret not in message
    return message


# --- values and geometry -----------------------------------------------------------------------------


def test_voxels_are_stored_times_slope_times_factor(tmp_path: Path) -> None:
    stored = [[[1, 2], [3, 4]], [[10, 20], [30, 40]]]
    volume = read_pet_series(write(pet_series(stored, slopes=[1000.0, 500.0]), tmp_path))
    # Bq/ml: 1000 times the first slice, 500 times the second; then times 4e-4 g/Bq.
    expected = [[[0.4, 0.8], [1.2, 1.6]], [[2.0, 4.0], [6.0, 8.0]]]
    np.testing.assert_allclose(volume.array, expected, rtol=1e-6)
    assert volume.array.dtype == np.float32
    assert volume.unit is Unit.SUVBW


def test_the_intercept_is_added_before_the_factor(tmp_path: Path) -> None:
    series = edited(
        pet_series(np.full((2, 2, 2), 7), slopes=[10.0, 10.0]), lambda d: setattr(d, "RescaleIntercept", 30)
    )
    volume = read_pet_series(write(series, tmp_path))
    np.testing.assert_allclose(volume.array, 100 * FACTOR, rtol=1e-6)


def test_an_axial_series_in_feet_to_head_order(tmp_path: Path) -> None:
    geometry = read_pet_series(write(pet_series(), tmp_path)).geometry
    assert geometry.shape == (4, 2, 3)
    assert geometry.spacing_mm == pytest.approx((3.0, 2.0, 4.0))
    assert geometry.origin_lps_mm == pytest.approx((-10.0, 20.0, -300.0))
    np.testing.assert_allclose(geometry.direction_lps, [[0, 0, 1], [0, 1, 0], [1, 0, 0]], atol=1e-12)


@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS.keys())
def test_simpleitk_reads_the_same(orientation: tuple[tuple[float, ...], ...], tmp_path: Path) -> None:
    slopes = [1.5, 0.25, 3.0, 2.0]
    volume = read_pet_series(write(pet_series(orientation=orientation, slopes=slopes), tmp_path))
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path)))
    reader.SetOutputPixelType(sitk.sitkFloat64)
    image = reader.Execute()
    np.testing.assert_allclose(volume.array, sitk.GetArrayFromImage(image) * FACTOR, rtol=1e-6)
    np.testing.assert_allclose(volume.geometry.spacing_mm, image.GetSpacing()[::-1], atol=1e-6)
    np.testing.assert_allclose(volume.geometry.origin_lps_mm, image.GetOrigin(), atol=1e-6)
    direction = np.reshape(image.GetDirection(), (3, 3))[:, ::-1]
    np.testing.assert_allclose(volume.geometry.direction_lps, direction, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-np.pi, np.pi)] * 3),
    spacing_mm=st.tuples(*[st.floats(0.5, 8.0)] * 3),
    origin_mm=st.tuples(*[st.floats(-900, 900)] * 3),
)
def test_voxels_lie_where_the_standard_says(
    angles: tuple[float, ...], spacing_mm: tuple[float, ...], origin_mm: tuple[float, ...]
) -> None:
    """PS3.3 equation C.7.6.2.1-1, from the attributes of the slice that holds the voxel."""
    a, b, c = angles
    turn_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    turn_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    turn_x = np.array([[1, 0, 0], [0, np.cos(c), -np.sin(c)], [0, np.sin(c), np.cos(c)]])
    row, column, _ = (turn_z @ turn_y @ turn_x).T
    slices = pet_series(orientation=(row, column), spacing_mm=spacing_mm, origin_lps_mm=origin_mm)
    with tempfile.TemporaryDirectory() as folder:
        volume = read_pet_series(write(slices, Path(folder)))
    for dataset in slices:
        position, cosines = (
            np.array(dataset.ImagePositionPatient, float),
            np.array(dataset.ImageOrientationPatient, float),
        )
        between_rows, between_columns = dataset.PixelSpacing
        for j, i in np.ndindex(2, 3):
            expected = position + cosines[:3] * between_columns * i + cosines[3:] * between_rows * j
            value = dataset.pixel_array[j, i] * FACTOR
            (index,) = np.argwhere(np.isclose(volume.array, value, rtol=1e-5))  # every value is there once
            np.testing.assert_allclose(volume.geometry.to_lps_mm(index), expected, atol=1e-3)
    assert np.linalg.det(np.array(volume.geometry.direction_lps)[:, ::-1]) == pytest.approx(1.0)


def test_slice_thickness_is_not_the_spacing(tmp_path: Path) -> None:
    series = edited(pet_series(), put(SliceThickness=7.0))
    assert read_pet_series(write(series, tmp_path)).geometry.spacing_mm[0] == pytest.approx(3.0)


def test_rounded_cosines_and_positions_are_straightened(tmp_path: Path) -> None:
    series = pet_series(orientation=ORIENTATIONS["oblique"])
    for dataset in series:
        dataset.ImageOrientationPatient = [round(float(v), 4) for v in dataset.ImageOrientationPatient]
        dataset.ImagePositionPatient = [round(float(v), 1) for v in dataset.ImagePositionPatient]
    direction = np.array(read_pet_series(write(series, tmp_path)).geometry.direction_lps)
    np.testing.assert_allclose(direction @ direction.T, np.eye(3), atol=1e-12)


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless],
    ids=lambda uid: uid.name,
)
def test_every_encoding_gives_the_same_values(syntax: str, tmp_path: Path) -> None:
    series = pet_series(slopes=[1.0, 0.5, 2.0, 1.0])
    expected = read_pet_series(write(series, tmp_path / "plain"))
    for dataset in series:
        if syntax == RLELossless:
            dataset.compress(RLELossless)
        elif syntax == ExplicitVRBigEndian:
            dataset.PixelData = dataset.pixel_array.astype(">i2").tobytes()
            dataset["PixelData"].VR = "OW"
        dataset.file_meta.TransferSyntaxUID = syntax
    actual = read_pet_series(write(series, tmp_path / "encoded"))
    np.testing.assert_array_equal(actual.array, expected.array)
    assert actual.geometry == expected.geometry


def test_jpeg_2000_is_decoded_and_rescaled_by_gdcm(tmp_path: Path) -> None:
    stored = np.random.default_rng(1).integers(0, 30_000, (3, 40, 32)).astype(np.int16)
    series = pet_series(stored, slopes=[1.0, 0.125, 2.5])
    expected = read_pet_series(write(series, tmp_path / "plain"))
    for dataset in series:
        compress_jpeg2000(dataset, tmp_path / "compressor")
    actual = read_pet_series(write(series, tmp_path / "encoded"))
    np.testing.assert_allclose(actual.array, expected.array, rtol=1e-6)


def test_unused_high_bits_are_cleared_and_the_sign_kept(tmp_path: Path) -> None:
    """12 bits stored in 16: -2 is 0xFFE, and the four bits above hold an overlay."""
    series = pet_series(np.array([[[0x7FE, 5]], [[0x0FFE, 1]]], np.int16))
    for dataset in series:
        dataset.BitsStored, dataset.HighBit = 12, 11
        dataset.PixelData = (np.frombuffer(dataset.PixelData, np.uint16) | 0xA000).tobytes()
    volume = read_pet_series(write(series, tmp_path))
    np.testing.assert_allclose(volume.array / FACTOR, [[[0x7FE, 5]], [[-2, 1]]], rtol=1e-6)


def test_a_blank_slice_may_have_slope_zero(tmp_path: Path) -> None:
    stored = default_voxels()
    stored[1] = 0
    volume = read_pet_series(write(pet_series(stored, slopes=[1.0, 0.0, 1.0, 1.0]), tmp_path))
    assert not volume.array[1].any()


def test_slices_that_are_not_corrected_for_decay_have_factors_of_their_own(tmp_path: Path) -> None:
    series = edited(pet_series(np.full((2, 2, 2), 1000)), put(DecayCorrection="NONE", CorrectedImage=["ATTN"]))
    series[1].AcquisitionTime = "133932.400000"  # one half-life after the first
    volume = read_pet_series(write(series, tmp_path))
    np.testing.assert_allclose(volume.array[1], 2 * volume.array[0], rtol=1e-6)


def test_philips_factors_are_read_from_their_private_block(tmp_path: Path) -> None:
    def in_counts(dataset: Dataset) -> None:
        dataset.Units, dataset.Manufacturer = "CNTS", "Philips Medical Systems"
        dataset.private_block(0x7053, "ARCHIVE 1.0", create=True).add_new(0x00, "DS", "3")
        dataset.private_block(0x7053, "Philips PET Private Group", create=True).add_new(0x00, "DS", "0.0005")

    def nameless(dataset: Dataset) -> None:
        dataset.Units, dataset.Manufacturer = "CNTS", "Philips Medical Systems"
        dataset.add_new(0x70531000, "DS", "0.0005")

    no_vendor = edited(pet_series(), lambda d: (in_counts(d), setattr(d, "Manufacturer", "")))
    for name, series in (
        ("a", edited(pet_series(), in_counts)),
        ("no vendor", no_vendor),
        ("no creator", edited(pet_series(), nameless)),
    ):
        volume = read_pet_series(write(series, tmp_path / name))
        np.testing.assert_allclose(volume.array, default_voxels() * 5e-4, rtol=1e-6)
    other = edited(pet_series(), lambda d: (nameless(d), setattr(d, "Manufacturer", "Other")))
    assert "neither private SUV factor" in refusal_of(other, tmp_path / "b")


def test_height_and_sex_are_read_for_lean_mass(tmp_path: Path) -> None:
    lean = put(Units="GML", SUVType="LBMJAMES128", PatientSize="1.75", PatientSex="M")
    volume = read_pet_series(write(edited(pet_series(), lean), tmp_path))
    np.testing.assert_allclose(volume.array, default_voxels() * 70 / 56.52, rtol=1e-6)


def test_what_the_user_says_stands_in_for_the_header(tmp_path: Path) -> None:
    files = write(edited(pet_series(), drop("PatientWeight")), tmp_path)
    volume = read_pet_series(files, SuvOverrides(weight_kg=35.0))
    np.testing.assert_allclose(volume.array, default_voxels() * FACTOR / 2, rtol=1e-6)


def test_suv_in_the_file_is_left_as_it_is(tmp_path: Path) -> None:
    series = edited(
        pet_series(np.full((2, 2, 2), 5)), lambda d: d.update({"Units": None}) or setattr(d, "Units", "GML")
    )
    volume = read_pet_series(write(series, tmp_path))
    np.testing.assert_array_equal(volume.array, 5)
    assert "SUVbw already" in volume.notes[1]


# --- which series ------------------------------------------------------------------------------------


def test_the_corrected_series_is_taken_and_the_rest_is_named(tmp_path: Path) -> None:
    uncorrected = edited(pet_series(number=7, stored=np.full((4, 2, 3), 9)), put(CorrectedImage=["NORM", "DECY"]))
    write(pet_series(), tmp_path, "A")
    write(uncorrected, tmp_path, "B")
    write(ct_series(3), tmp_path, "C")
    volume = read_pet_series(list(tmp_path.iterdir()))
    assert volume.array.max() == pytest.approx(123 * FACTOR)
    assert volume.notes[0] == (
        "Took PET series 1 (4 slices, attenuation corrected, BQML) out of 3 series; left out: "
        "PET series 7 (4 slices, not attenuation corrected), CT series 2 (3 slices)."
    )


def test_series_are_told_apart_without_series_instance_uid(tmp_path: Path) -> None:
    everything = pet_series() + edited(pet_series(number=7), put(CorrectedImage=["NORM", "DECY"])) + ct_series(3)
    for dataset in everything:
        del dataset.SeriesInstanceUID
    volume = read_pet_series(write(everything, tmp_path))
    assert volume.geometry.shape == (4, 2, 3)


def test_a_lonely_series_is_said_to_be_the_only_one(tmp_path: Path) -> None:
    volume = read_pet_series(write(pet_series(), tmp_path))
    assert volume.notes[0] == "Took PET series 1 (4 slices, attenuation corrected, BQML), the only series."


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (put(Units="PROPCNTS"), "attenuation corrected, PROPCNTS"),
        (put(SeriesType=["GATED", "IMAGE"]), "attenuation corrected, BQML, dynamic or gated"),
        (put(SeriesType=["WHOLE BODY", "REPROJECTION"]), "a projection or screen capture"),
        (put(ImageType=["DERIVED", "SECONDARY", "MIP"]), "a projection or screen capture"),
        (put(SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), "not PET Image Storage"),
        (put(NumberOfFrames=3), "several frames in one file"),
        (put(AttenuationCorrectionMethod="none"), "not attenuation corrected"),
    ],
)
def test_a_second_series_that_is_no_rival_is_left_out(
    spoil: Callable[[Dataset], None], said: str, tmp_path: Path
) -> None:
    volume = read_pet_series(write(pet_series() + edited(pet_series(number=2), spoil), tmp_path))
    assert f"left out: PET series 2 (4 slices, {said}" in volume.notes[0]


@pytest.mark.parametrize(("wanted", "number"), [("1", 1), ("5", 5), ("earl", 5), ("WB", 1), ("Whole body earl 2", 5)])
def test_one_of_two_reconstructions_is_chosen_by_number_or_description(
    wanted: str, number: int, tmp_path: Path
) -> None:
    earl = edited(pet_series(number=5, stored=np.full((4, 2, 3), 9)), put(SeriesDescription="Whole body EARL 2"))
    volume = read_pet_series(write(pet_series() + earl + ct_series(3), tmp_path), wanted=wanted)
    assert volume.array.max() == pytest.approx((9 if number == 5 else 123) * FACTOR)
    assert volume.notes[0].startswith(f"Took PET series {number} (4 slices, attenuation corrected, BQML), which")
    assert "left out: PET series" in volume.notes[0]
    assert "WB" not in volume.notes[0]


@pytest.mark.parametrize(
    ("character_set", "description", "wanted"),
    [
        ("ISO_IR 192", "Ganzkörper EARL", "ganzkörper"),
        ("ISO_IR 100", "Ganzkörper EARL", "GANZKÖRPER"),
        (["", "ISO 2022 IR 87"], "全身 EARL", "全身"),
        ("ISO_IR 192", ["Thorax", "EARL"], "earl"),  # of one value by the standard, and not by everyone
    ],
    ids=str,
)
def test_a_description_is_read_in_its_character_set(
    character_set: str | list[str], description: str | list[str], wanted: str, tmp_path: Path
) -> None:
    earl = edited(pet_series(number=5), put(SpecificCharacterSet=character_set, SeriesDescription=description))
    volume = read_pet_series(write(pet_series() + earl, tmp_path), wanted=wanted)
    assert volume.notes[0].startswith("Took PET series 5 ")


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("6", "No PET series here has the SeriesNumber (0020,0011) 6: PET series 1 (4 slices"),
        ("2", "No PET series here has the SeriesNumber (0020,0011) 2"),  # that of the CT
        ("tof", "No PET series here has 'tof' in the SeriesDescription (0008,103E): PET series 1 (4 slices"),
        ("7", "No PET series here is corrected for attenuation"),
        ("WB", "2 PET series here have 'WB' in the SeriesDescription (0008,103E): PET series 1 (4 slices"),
        ("", "2 PET series here may be segmented"),
    ],
)
def test_a_choice_that_leaves_none_or_several_is_refused(wanted: str, says: str, tmp_path: Path) -> None:
    uncorrected = edited(pet_series(number=7), put(CorrectedImage=["NORM", "DECY"], SeriesDescription="NAC"))
    files = write(pet_series() + pet_series(number=5) + uncorrected + ct_series(3), tmp_path)
    with pytest.raises(InputError, match=re.escape(says)):
        read_pet_series(files, wanted=wanted)


def test_of_several_that_were_asked_for_none_is_preferred(tmp_path: Path) -> None:
    """Without a choice activity goes before SUV of lean mass: a part of both descriptions is no choice."""
    lean = put(Units="GML", SUVType="LBM", PatientSize="1.75", PatientSex="M", SeriesDescription="WB EARL1")
    other = edited(pet_series(number=6), put(SeriesDescription="WB not EARL"))
    files = write(edited(pet_series(number=5), lean) + other, tmp_path)
    with pytest.raises(
        InputError, match=r"2 PET series here have 'EARL' in the SeriesDescription .* Pass --series with"
    ):
        read_pet_series(files, wanted="EARL")
    assert read_pet_series(files, wanted="EARL1").notes[0].startswith("Took PET series 5")


def test_a_whole_description_goes_before_a_part_of_one(tmp_path: Path) -> None:
    files = write(pet_series() + edited(pet_series(number=5), put(SeriesDescription="Doe Jane WB EARL")), tmp_path)
    assert read_pet_series(files, wanted="doe jane wb").notes[0].startswith("Took PET series 1 ")
    assert read_pet_series(files, wanted=" doe jane wb earl ").notes[0].startswith("Took PET series 5 ")


def test_a_description_in_another_character_set_than_it_says_is_no_fault_of_the_scan(tmp_path: Path) -> None:
    wrong = edited(pet_series(), put(SpecificCharacterSet="ISO_IR 100", SeriesDescription="Ganzkörper"))
    files = write(wrong, tmp_path)
    for file in files:
        file.write_bytes(file.read_bytes().replace(b"ISO_IR 100", b"ISO_IR 192"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_pet_series(files).array.shape == (4, 2, 3)


def test_activity_goes_before_an_suv_of_another_size(tmp_path: Path) -> None:
    lean = put(Units="GML", SUVType="LBM", PatientSize="1.75", PatientSex="M")
    write(pet_series(), tmp_path, "A")
    write(edited(pet_series(number=7), lean), tmp_path, "B")
    volume = read_pet_series(list(tmp_path.iterdir()))
    assert volume.notes[0].startswith("Took PET series 1 (4 slices, attenuation corrected, BQML) out of 2 series")


def test_ge_says_in_its_private_flag_that_a_series_is_not_corrected(tmp_path: Path) -> None:
    def flag(dataset: Dataset) -> None:
        dataset.private_block(0x0009, "GEMS_IDEN_01", create=True).add_new(0x01, "LO", "GE_ADVANTAGE")
        dataset.private_block(0x0009, "GEMS_PETD_01", create=True).add_new(0x8C, "SL", 0)

    assert "not attenuation corrected" in refusal_of(edited(pet_series(), flag), tmp_path)


def test_a_private_flag_of_another_length_says_nothing(tmp_path: Path) -> None:
    def flag(dataset: Dataset) -> None:
        dataset.private_block(0x0009, "GEMS_PETD_01", create=True).add_new(0x8C, "UN", b"dummy ")

    assert read_pet_series(write(edited(pet_series(), flag), tmp_path)).warnings == ()


def test_a_derived_secondary_series_is_a_pet(tmp_path: Path) -> None:
    series = edited(pet_series(), put(ImageType=["DERIVED", "SECONDARY"]))
    assert read_pet_series(write(series, tmp_path)).geometry.shape == (4, 2, 3)


def test_a_single_slice_is_no_rival_of_a_volume(tmp_path: Path) -> None:
    volume = read_pet_series(write(pet_series() + pet_series(number=2)[:1], tmp_path))
    assert "left out: PET series 2 (1 slice, " in volume.notes[0]


def test_a_shortfall_of_slices_at_an_end_is_refused(tmp_path: Path) -> None:
    files = write(pet_series()[:-1], tmp_path)
    with pytest.raises(InputError, match=r"NumberOfSlices \(0054,0081\) is 4, but there are 3 slices"):
        read_pet_series(files)


@pytest.mark.parametrize(
    ("part", "region", "said"),
    [
        ("BRAIN", "", "says BRAIN"),
        ("HEADNECK", "", "says HEAD"),
        ("", "Entire brain", "says BRAIN"),
        ("PHANTOM", "", "says PHANTOM"),
        ("PELVIS", "Pelvis", ""),
        ("WHOLEBODY", "", ""),
        ("CHESTABDPELVIS", "", ""),
        ("", "Neck of uterus", ""),
        ("", "", ""),
    ],
)
def test_a_region_that_models_of_the_pelvis_do_not_know_is_warned_of(
    part: str, region: str, said: str, tmp_path: Path
) -> None:
    def edit(dataset: Dataset) -> None:
        dataset.BodyPartExamined = part
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "99TEST", region
        dataset.AnatomicRegionSequence = [code] if region else []

    warnings = read_pet_series(write(edited(pet_series(), edit), tmp_path)).warnings
    assert [warning.startswith("BodyPartExamined") and said in warning for warning in warnings] == [True] * bool(said)


def test_a_description_in_no_character_set_of_dicom_is_read_all_the_same(tmp_path: Path) -> None:
    said = put(SpecificCharacterSet="ISO_IR 100", SeriesDescription="WB Köln")
    files = write([*edited(pet_series(), said), *edited(pet_series(number=2), said)], tmp_path)
    for file in files:
        put_bytes(file, "SpecificCharacterSet", b"idna")
    with pytest.raises(InputError, match="2 PET series here have 'wb k'"):
        read_pet_series(files, wanted="wb k")


def test_a_malformed_region_stops_nothing(tmp_path: Path) -> None:
    def edit(dataset: Dataset) -> None:
        dataset.add_new(0x00082218, "LO", "pelvis")

    assert read_pet_series(write(edited(pet_series(), edit), tmp_path)).warnings == ()


def test_pictures_beside_a_volume_do_not_stop_it(tmp_path: Path) -> None:
    """Projections all around are a series in which no two slices are alike; a fused one is in colour."""
    around = pet_series(number=9)
    for degrees, dataset in enumerate(around):
        turn = np.radians(10 * degrees)
        dataset.ImageOrientationPatient = [f"{value:.6f}" for value in (np.cos(turn), np.sin(turn), 0, 0, 0, -1)]
    fused = edited(pet_series(number=5), put(SamplesPerPixel=3, PhotometricInterpretation="RGB"))
    (note, *_) = read_pet_series(write([*pet_series(number=2), *around, *fused], tmp_path / "study")).notes
    assert note.startswith("Took PET series 2 (4 slices, attenuation corrected, BQML) out of 6 series")
    assert "PET series 5 (4 slices, in colour)" in note
    assert "4 times PET series 9 (1 slice, attenuation corrected, BQML)" in note
    assert "single slice" in refusal_of(around[:1], tmp_path / "alone")
    assert "holds two kinds of slices" in refusal_of(around, tmp_path / "around")


def test_choose_pet_series_returns_the_headers(tmp_path: Path) -> None:
    series, note = choose_pet_series(read_headers(write(pet_series() + ct_series(), tmp_path)))
    assert {header.modality for header in series} == {"PT"}
    assert len(series) == 4
    assert note.startswith("Took PET series 1")


def test_headers_are_grouped_by_patient_and_study(tmp_path: Path) -> None:
    other = edited(pet_series(), put(PatientID="SECRET-4712"))
    files = write(pet_series() + ct_series() + pet_series(study="1.2.4") + other, tmp_path)
    assert sorted(len(study) for study in group_by_study(read_headers(files))) == [4, 4, 7]


def test_a_damaged_file_stops_the_study_in_its_folder_only(tmp_path: Path) -> None:
    write(pet_series(), tmp_path / "a")
    write(pet_series(study="1.2.4"), tmp_path / "b")
    (tmp_path / "b" / "torn").write_bytes(b"\0" * 128 + b"DICM" + b"\x02\0\0\0UL\x04\0")
    a, b = group_by_study(read_headers(sorted(p for p in tmp_path.rglob("*") if p.is_file())))
    assert read_pet_series([header.path for header in a]).geometry.shape == (4, 2, 3)
    with pytest.raises(InputError, match="torn"):
        read_pet_series([header.path for header in b])


def test_a_damaged_file_alone_is_a_study_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "torn"
    path.write_bytes(b"\0" * 128 + b"DICM" + b"\x02\0\0\0UL\x04\0")
    ((header,),) = group_by_study(read_headers([path]))
    assert "torn" in header.damage


def test_other_files_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("a text that is longer than the preamble of a DICOM file " * 9)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "group.txt").write_bytes(b"\x08\0\x10\0" + b"as a data set begins" * 20)
    files = write(pet_series(), tmp_path)
    (study,) = group_by_study(read_headers([*sorted(tmp_path.glob("*.txt")), *files]))
    assert len(study) == 4
    assert group_by_study(read_headers(sorted(tmp_path.glob("*.txt")))) == []


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"\0" * 2000], ids=["empty", "short", "zeros"])
def test_a_blank_file_among_slices_of_its_suffix_stops_the_study(content: bytes, tmp_path: Path) -> None:
    """The last slice of a copy that broke off: positions tell of no gap there."""
    files = write(pet_series(), tmp_path)
    files[-1].write_bytes(content)
    with pytest.raises(InputError, match=f"{files[-1].name} is no DICOM file, it is blank"):
        read_pet_series(files)


def test_slices_are_told_by_their_numbers(tmp_path: Path) -> None:
    """Where names end with a UID the suffix differs; and an empty lock beside the slices is none."""
    for number, dataset in enumerate(pet_series()):
        dataset.save_as(tmp_path / f"PT.1.2.840.{100 + number}", enforce_file_format=True)
    (tmp_path / "LOCKFILE").touch()
    assert read_pet_series(sorted(tmp_path.iterdir())).array.shape == (4, 2, 3)
    (tmp_path / "PT.1.2.840.103").write_bytes(b"\0" * 500)
    with pytest.raises(InputError, match="is blank"):
        read_pet_series(sorted(tmp_path.iterdir()))


def test_what_only_begins_like_dicom_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "raw.img").write_bytes(b"\x02\0\0\0" + bytes(range(256)) * 4)
    assert len(read_headers([tmp_path / "raw.img", *write(pet_series(), tmp_path / "a")])) == 4


def test_a_series_of_which_half_says_nothing_of_attenuation_is_refused(tmp_path: Path) -> None:
    series = pet_series()
    for dataset in series[:2]:
        dataset.CorrectedImage = None
    for dataset in series:
        del dataset.NumberOfSlices
    assert "CorrectedImage (0028,0051) is absent in 2 slices and said in 2 slices" in refusal_of(series, tmp_path)


def test_a_file_that_is_dicom_by_its_name_only_stops_the_study(tmp_path: Path) -> None:
    files = write(pet_series(), tmp_path)
    (tmp_path / "slice.DCM").write_text("<html>not found</html>")
    with pytest.raises(InputError, match=r"slice\.DCM is no DICOM file"):
        read_pet_series([*files, tmp_path / "slice.DCM"])


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=["explicit", "implicit"])
@pytest.mark.parametrize("keep_meta", [True, False])
def test_slices_without_the_preamble_of_a_file_are_read(syntax: str, keep_meta: bool, tmp_path: Path) -> None:
    for number, dataset in enumerate(pet_series()):
        dataset.file_meta.TransferSyntaxUID = syntax
        if keep_meta:
            dataset.save_as(tmp_path / f"{number}", enforce_file_format=True)
            (tmp_path / f"{number}").write_bytes((tmp_path / f"{number}").read_bytes()[132:])
        else:
            del dataset.file_meta
            dataset.save_as(tmp_path / f"{number}", implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
    volume = read_pet_series(sorted(tmp_path.iterdir()))
    np.testing.assert_allclose(volume.array, default_voxels() * FACTOR, rtol=1e-6)


@pytest.mark.parametrize("sop_class", ["1.2.840.10008.5.1.4.1.1.66", "1.3.12.2.1107.5.9.1"])
def test_raw_data_of_the_scanner_beside_the_slices_is_left_out(sop_class: str, tmp_path: Path) -> None:
    raw = edited(pet_series(number=9)[:1], put(SOPClassUID=sop_class, PatientSize="1"))
    for dataset in raw:
        del dataset.PixelData
    volume = read_pet_series(write(pet_series(), tmp_path / "a") + write(raw, tmp_path / "b"))
    assert "PET series 9 (1 slice, not PET Image Storage)" in volume.notes[0]


# --- what is refused: the choice ---------------------------------------------------------------------


def test_no_dicom_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match="None of the files is DICOM"):
        read_pet_series(list(tmp_path.iterdir()))


def test_ct_instead_of_pet_is_refused(tmp_path: Path) -> None:
    assert "no PET series here (Modality (0008,0060) PT), only CT series 2 (3 slices)" in refusal_of(
        ct_series(), tmp_path
    )


def test_a_series_without_attenuation_correction_is_refused(tmp_path: Path) -> None:
    message = refusal_of(edited(pet_series(), put(CorrectedImage=["NORM", "DECY"])), tmp_path)
    assert "ATTN in CorrectedImage (0028,0051)" in message
    assert "PET series 1 (4 slices, not attenuation corrected)" in message


def test_two_corrected_series_are_refused_with_a_list(tmp_path: Path) -> None:
    message = refusal_of(pet_series() + pet_series(number=5), tmp_path)
    assert "PET series 1 (4 slices, attenuation corrected, BQML), PET series 5 (4 slices" in message
    assert "--series" in message


def test_two_studies_are_refused(tmp_path: Path) -> None:
    assert "2 studies or patients" in refusal_of(pet_series() + pet_series(study="1.2.4"), tmp_path)


def test_two_units_in_one_series_are_refused(tmp_path: Path) -> None:
    series = pet_series()
    edited(series[2:], put(Units="CNTS"))
    message = refusal_of(series, tmp_path)
    assert "PET series 1 holds two kinds of slices: Units (0054,1001) is" in message
    assert "BQML in 2 slices" in message


def test_two_sizes_in_one_series_are_refused(tmp_path: Path) -> None:
    message = refusal_of([*pet_series()[:3], pet_series(np.ones((4, 3, 3)))[3]], tmp_path)
    assert "PET series 1 holds two kinds of slices: Rows (0028,0010) x Columns (0028,0011) is" in message
    assert "2 x 3 in 3 slices" in message
    assert "3 x 3 in 1 slice" in message


def test_two_orientations_in_one_series_are_refused(tmp_path: Path) -> None:
    series = pet_series()
    series[3].ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    assert "holds two kinds of slices: ImageOrientationPatient (0020,0037)" in refusal_of(series, tmp_path)


# --- what is refused: slices, headers, pixels --------------------------------------------------------


SPOILT: list[tuple[str, Callable[[list[Dataset]], list[Dataset]], str]] = [
    ("slice missing", lambda s: [*s[:2], s[3]], "1 slice is missing between -297.00 mm and -291.00 mm"),
    ("uneven", on_first(put(ImagePositionPatient=[-10, 20, -301.2])), "slices are 3.00 to 4.20 mm apart"),
    ("single slice", lambda s: s[:1], "single slice"),
    ("position twice", on_first(put(ImagePositionPatient=[-10, 20, -297])), "4 slices lie at 3 positions"),
    (
        "dynamic",
        lambda s: edited(
            s + edited(pet_series()[:2], put(AcquisitionTime="140500")),
            put(SeriesInstanceUID="1.2", SeriesType=["DYNAMIC", "IMAGE"]),
        ),
        "6 slices lie at 4 positions: a dynamic or gated scan, or files given twice (SeriesType (0054,1000) is DYNAMIC",
    ),
    ("no position", on_first(drop("ImagePositionPatient")), "no ImagePositionPatient (0020,0032)"),
    ("no orientation", on_all(drop("ImageOrientationPatient")), "ImageOrientationPatient (0020,0037) is None"),
    ("skewed", on_all(put(ImageOrientationPatient=[1, 0, 0, 0.1, 1, 0])), "two unit vectors at a right angle"),
    ("drifting", on_first(put(ImageOrientationPatient=[1, 0.005, 0, -0.005, 1, 0])), "in some slices and"),
    ("two spacings", on_first(put(PixelSpacing=[2, 4.1])), "PixelSpacing (0028,0030) is (2.0, 4.0) in some slices"),
    ("no spacing", on_all(drop("PixelSpacing")), "PixelSpacing (0028,0030) is None"),
    ("spacing 0", on_all(put(PixelSpacing=[0, 4])), "PixelSpacing (0028,0030) is (0.0, 4.0), expected two positive"),
    ("two frames of reference", on_first(put(FrameOfReferenceUID="1.9")), "FrameOfReferenceUID (0020,0052)"),
    ("no rows", on_all(drop("Rows")), "is None x 3"),
    ("too large", on_all(put(Rows=65535, Columns=65535)), "more than a PET scan can have"),
    ("truncated claim", on_all(put(Rows=2000, Columns=2000)), "is truncated"),
    ("pixels too long", on_all(put(PixelData=b"\0" * 14)), "14 bytes of PixelData (7FE0,0010), expected 12"),
    ("pixels too short", on_all(put(PixelData=b"\0" * 10)), "is truncated: 10 bytes, expected 12"),
    ("no pixels", on_first(drop("PixelData")), "ends before its pixels, it is truncated"),
    ("float pixels", on_first(float_pixels), "has no PixelData (7FE0,0010)"),
    (
        "colour",
        on_first(put(SamplesPerPixel=3, PhotometricInterpretation="RGB")),
        "of PET series 1 (1 slice, in colour), of which 1 lie",
    ),
    ("inverted", on_first(put(PhotometricInterpretation="MONOCHROME1")), "expected MONOCHROME2 and 1"),
    ("bits", on_first(put(BitsAllocated=12)), "BitsAllocated (0028,0100) 12"),
    ("high bit", on_first(put(HighBit=14)), "HighBit (0028,0102) 14"),
    ("no sign", on_first(drop("PixelRepresentation")), "PixelRepresentation (0028,0103) absent, expected 0 or 1"),
    ("odd sign", on_first(put(PixelRepresentation=2)), "PixelRepresentation (0028,0103) 2, expected 0 or 1"),
    ("lossy", on_first(put(LossyImageCompression="01")), "compressed with loss"),
    ("no slope", on_first(drop("RescaleSlope")), "RescaleSlope (0028,1053) absent"),
    ("no intercept", on_first(drop("RescaleIntercept")), "RescaleIntercept (0028,1052) absent"),
    ("negative slope", on_first(put(RescaleSlope=-1)), "RescaleSlope (0028,1053) -1"),
    ("slope 0", on_first(put(RescaleSlope=0)), "RescaleSlope (0028,1053) 0 but is not blank"),
    ("huge slope", on_first(put(RescaleSlope="1e300")), "NaN or infinite"),
    ("no uptake", on_all(put(PixelData=b"\0" * 12)), "no value above 0"),
    ("two weights", on_first(put(PatientWeight=71)), "PatientWeight (0010,1030) has 2 different values"),
    ("no weight", on_all(drop("PatientWeight")), "PatientWeight (0010,1030) is absent"),
    (
        "no injection",
        on_all(drop("RadiopharmaceuticalInformationSequence")),
        "RadionuclideTotalDose (0018,1074) is absent",
    ),
    ("unit", on_all(put(Units="CNTS")), "Units (0054,1001) is CNTS, and neither private SUV factor"),
    ("no class", on_first(drop("SOPClassUID")), "no SOPClassUID (0008,0016)"),
]


@pytest.mark.parametrize(("spoil", "says"), [case[1:] for case in SPOILT], ids=[case[0] for case in SPOILT])
def test_refused(spoil: Callable[[list[Dataset]], list[Dataset]], says: str, tmp_path: Path) -> None:
    assert says in refusal_of(spoil(pet_series()), tmp_path)


def test_a_tilted_series_is_refused(tmp_path: Path) -> None:
    assert "tilted gantry" in refusal_of(pet_series(shear_mm=0.5), tmp_path)


def put_bytes(file: Path, name: str, value: bytes) -> None:
    """Overwrite the value of an element; pydicom refuses to write what must be read here."""
    (element,), raw = [e for e in dcmread(file) if e.keyword == name], file.read_bytes()
    tag = element.tag.group.to_bytes(2, "little") + element.tag.element.to_bytes(2, "little") + element.VR.encode()
    start = raw.index(tag) + len(tag)
    end = start + 2 + int.from_bytes(raw[start : start + 2], "little")
    file.write_bytes(raw[:start] + len(value).to_bytes(2, "little") + value + raw[end:])


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("RescaleSlope", b"nan ", "RescaleSlope (0028,1053) is not a number"),
        ("RescaleSlope", b"1e999 ", "RescaleSlope (0028,1053) is not a finite number"),
        ("RescaleSlope", b"1_0 ", "RescaleSlope (0028,1053) is not a number"),
        ("SeriesNumber", b"1.5 ", "SeriesNumber (0020,0011) is not a whole number"),
        ("Rows", b"\0\0\0\0\0\0", "Rows (0028,0010) is not a binary number"),
    ],
)
def test_a_malformed_value_names_its_attribute(name: str, value: bytes, says: str, tmp_path: Path) -> None:
    files = write(pet_series(), tmp_path)
    put_bytes(files[0], name, value)
    with pytest.raises(InputError) as refused:
        read_pet_series(files)
    assert says in str(refused.value)
    assert files[0].name in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PatientWeight", b"70,5", "PatientWeight (0010,1030) is not one finite number"),
        ("PatientSize", b"1,75", ""),  # not needed for SUVbw
        ("SeriesTime", b"116060", ""),  # AcquisitionTime and FrameReferenceTime lead to the start
        ("AcquisitionDate", b"20240230", "AcquisitionDate (0008,0022) or AcquisitionTime (0008,0032) is absent or mal"),
    ],
)
def test_a_malformed_value_is_refused_where_suv_needs_it(name: str, value: bytes, says: str, tmp_path: Path) -> None:
    # A frame of T = 2 min has its average activity T / 2 - ln 2 T² / (24 half-lives) = 59.937 s after its start.
    files = write(edited(pet_series(), put(PatientSize=1.75, FrameReferenceTime=59_937)), tmp_path)
    for file in files:
        put_bytes(file, name, value)
    if not says:
        assert read_pet_series(files).array.max() == pytest.approx(123 * FACTOR)
        return
    with pytest.raises(InputError) as refused:
        read_pet_series(files)
    assert says in str(refused.value)


def test_the_user_stands_in_for_a_malformed_weight(tmp_path: Path) -> None:
    files = write(pet_series(), tmp_path)
    for file in files:
        put_bytes(file, "PatientWeight", b"70,0")
    assert read_pet_series(files, SuvOverrides(weight_kg=70.0)).array.max() == pytest.approx(123 * FACTOR)


def test_a_malformed_half_life_does_not_stop_what_is_corrected_to_the_injection(tmp_path: Path) -> None:
    files = write(edited(pet_series(), put(DecayCorrection="ADMIN")), tmp_path)
    for file in files:
        raw = file.read_bytes()
        assert b"6586.2" in raw
        file.write_bytes(raw.replace(b"6586.2", b"6586,2"))
    assert read_pet_series(files).array.max() == pytest.approx(123 * FACTOR / 2)  # a half-life less of decay


def test_times_that_suv_does_not_need_may_differ_between_slices(tmp_path: Path) -> None:
    series = edited(pet_series(), put(Units="GML", SUVType="BW"))
    series[2].SeriesTime = "120000"
    assert read_pet_series(write(series, tmp_path)).array.max() == 123


@pytest.mark.parametrize("moment", ["20240229", "00010101000000.00"])
def test_an_injection_date_time_must_be_one(moment: str, tmp_path: Path) -> None:
    series = edited(pet_series(), lambda d: setattr(injection(d), "RadiopharmaceuticalStartDateTime", moment))
    assert read_pet_series(write(series, tmp_path / "a")).array.max() == pytest.approx(123 * FACTOR)  # by the time
    series = edited(series, lambda d: delattr(injection(d), "RadiopharmaceuticalStartTime"))
    assert "StartTime (0018,1072) are absent, or not a date and time" in refusal_of(series, tmp_path / "b")


def test_an_injection_in_utc_is_refused_where_nothing_says_the_zone_of_the_scan(tmp_path: Path) -> None:
    moment = "20240229090000.000000+0000"
    series = edited(pet_series(), lambda d: setattr(injection(d), "RadiopharmaceuticalStartDateTime", moment))
    series = edited(series, lambda d: delattr(injection(d), "RadiopharmaceuticalStartTime"))
    assert "not a date and time of the site's own clock" in refusal_of(series, tmp_path)


@pytest.mark.parametrize(("signed", "value"), [(0, 65535), (1, -32768)])
def test_padding_is_no_uptake(signed: int, value: int, tmp_path: Path) -> None:
    """PS3.3 C.7.5.1.1.2; with a range, all of it."""
    series = edited(pet_series(), put(PixelRepresentation=signed))
    for dataset in series:
        kind = "<i2" if signed else "<u2"
        pixels = np.frombuffer(dataset.PixelData, kind).copy()
        pixels[:2] = value, value + 1 if signed else value - 1
        dataset.PixelData = pixels.tobytes()
        dataset.add_new(0x00280120, "SS" if signed else "US", value)
        dataset.add_new(0x00280121, "SS" if signed else "US", value + 1 if signed else value - 1)
    volume = read_pet_series(write(series, tmp_path))
    expected = default_voxels() * FACTOR
    expected.reshape(4, -1)[:, :2] = 0
    np.testing.assert_allclose(volume.array, expected, rtol=1e-6)
    assert "PixelPaddingValue (0028,0120)" in volume.notes[2]


def test_a_series_that_does_not_say_whether_it_is_corrected_is_taken_and_warned_of(tmp_path: Path) -> None:
    unsaid = edited(pet_series(), put(CorrectedImage=None))
    volume = read_pet_series(write(unsaid, tmp_path / "a"))
    assert "nothing says that the scan is corrected for attenuation" in volume.warnings[0]
    assert "attenuation correction not said" in volume.notes[0]
    method = edited(pet_series(), put(CorrectedImage=None, AttenuationCorrectionMethod="measured,CTAC"))
    assert read_pet_series(write(method, tmp_path / "b")).warnings == ()
    both = pet_series(number=7) + unsaid
    assert "Took PET series 7" in read_pet_series(write(both, tmp_path / "c")).notes[0]
    for number, text in enumerate(
        ("NONE", "NAC", "off", "NO", "not corrected", "UNCORRECTED", "ATTENUATION NOT CORRECTED", "CTAC OFF")
    ):
        denied = edited(unsaid, put(AttenuationCorrectionMethod=text))
        assert "ATTN in CorrectedImage" in refusal_of(denied, tmp_path / f"d{number}")
    for number, text in enumerate(("CT without contrast", "Attenuation corrected", "AC_CT")):
        said = edited(unsaid, put(AttenuationCorrectionMethod=text))
        assert read_pet_series(write(said, tmp_path / f"s{number}")).warnings == ()
    unclear = edited(pet_series(), put(CorrectedImage=None, AttenuationCorrectionMethod="N/A"))
    assert "nothing says" in read_pet_series(write(unclear, tmp_path / "e")).warnings[0]


def test_the_last_day_of_the_calendar_is_no_date_of_a_scan(tmp_path: Path) -> None:
    last = edited(pet_series(), put(AcquisitionDate="99991231", SeriesDate="99991231"))
    assert "AcquisitionDate (0008,0022) or AcquisitionTime (0008,0032) is absent or malformed" in refusal_of(
        edited(last, put(StudyDate=DAY)), tmp_path / "dated"
    )
    volume = read_pet_series(write(edited(last, drop("StudyDate")), tmp_path / "undated"))
    assert volume.array.max() == pytest.approx(123 * FACTOR)


@pytest.mark.parametrize("placeholder", ["", "00010101", "19000101"])
def test_a_scan_without_any_date_is_timed_by_its_clocks(placeholder: str, tmp_path: Path) -> None:
    """HIPAA's safe harbor takes dates away and leaves times of day; only their distance counts for F-18."""
    dates = put(AcquisitionDate=placeholder, SeriesDate=placeholder, StudyDate=placeholder)
    volume = read_pet_series(write(edited(pet_series(), dates), tmp_path))
    assert volume.array.max() == pytest.approx(123 * FACTOR)
    assert any("no date of the scan" in warning for warning in volume.warnings)


def test_files_given_twice_count_once(tmp_path: Path) -> None:
    files = write(pet_series(), tmp_path)
    again = [Path(shutil.copy(file, tmp_path / f"{file.name} (1)")) for file in files]
    volume = read_pet_series([*again, *files])
    assert volume.array.shape[0] == len(files)
    assert volume.array.max() == pytest.approx(123 * FACTOR)
    assert "4 files are copies of others, byte for byte, and were left out." in volume.notes
    put_bytes(again[0], "PatientWeight", b"70.1")
    with pytest.raises(InputError, match="5 slices lie at 4 positions"):
        read_pet_series([*again, *files])


def test_a_private_scan_start_is_of_the_site_s_own_clock(tmp_path: Path) -> None:
    """One in UTC, where nothing tells the site's zone, and a midnight, of which only the date was meant, count not."""
    for number, start in enumerate((f"{DAY}101500.00+0000", f"{DAY}000000.00")):

        def add(dataset: Dataset, start: str = start) -> None:
            dataset.private_block(0x0009, "GEMS_PETD_01", create=True).add_new(0x0D, "DT", start)

        volume = read_pet_series(write(edited(pet_series(), add), tmp_path / str(number)))
        assert volume.array.max() == pytest.approx(123 * FACTOR)


@pytest.mark.parametrize(
    "spoil",
    [
        put(CorrectedImage=["DECY"]),
        put(SeriesNumber=None),
        put(ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"]),
    ],
    ids=["not corrected", "without a number", "a capture"],
)
def test_slices_of_the_series_itself_are_never_left_out(spoil: Callable[[Dataset], None], tmp_path: Path) -> None:
    series = edited(pet_series(), put(NumberOfSlices=None))
    spoil(series[-1])
    assert "lie where it has no slice" in refusal_of(series, tmp_path / "halves")


def test_an_uncorrected_series_may_have_the_uid_of_the_corrected_one(tmp_path: Path) -> None:
    uncorrected = edited(pet_series(), put(CorrectedImage=["DECY"]))
    for number, dataset in enumerate(uncorrected):
        dataset.SOPInstanceUID = f"1.2.3.99.{number}"
        dataset.ImagePositionPatient = [f"{float(value) + 1e-4:.5f}" for value in dataset.ImagePositionPatient]
    write(pet_series(), tmp_path, "A")
    write(uncorrected, tmp_path, "B")
    assert read_pet_series(list(tmp_path.iterdir())).array.shape == (4, 2, 3)


def test_that_no_slice_is_missing_at_an_end_is_only_known_by_their_number(tmp_path: Path) -> None:
    counted = read_pet_series(write(pet_series(), tmp_path / "a"))
    uncounted = read_pet_series(write(edited(pet_series(), put(NumberOfSlices=None)), tmp_path / "b"))
    note = "NumberOfSlices (0054,0081) is absent"
    assert [any(note in line for line in volume.notes) for volume in (counted, uncounted)] == [False, True]


def test_more_activity_than_was_injected_is_warned_of_and_then_refused(tmp_path: Path) -> None:
    """Sixteen litres at SUV 5 are 80 kg: of a patient of 70 kg, 1.14 times the dose; at SUV 7 it is 1.6 times."""
    stored = np.ones((20, 40, 40), np.int16)
    spacing_mm = (10.0, 7.0710678, 7.0710678)  # 0.5 ml a voxel
    for suv, outcome in ((5, "quiet"), (7, "warned"), (23, "refused")):
        series = edited(pet_series(stored, spacing_mm=spacing_mm), put(RescaleSlope=f"{suv / FACTOR:.6f}"))
        folder = tmp_path / outcome
        if outcome == "refused":
            assert "5.3 times the activity that was injected" in refusal_of(series, folder)
            continue
        warnings = read_pet_series(write(series, folder)).warnings
        assert any("times the activity" in warning for warning in warnings) is (outcome == "warned")


@pytest.mark.parametrize(
    "syntax", ["1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91"]
)
def test_a_transfer_syntax_with_loss_is_refused_whatever_else_is_said(syntax: str, tmp_path: Path) -> None:
    series = pet_series()
    for dataset in series:
        dataset.PixelData = encapsulate([b"\0" * 20])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = syntax
    assert "compressed with loss" in refusal_of(series, tmp_path)


@pytest.mark.parametrize("zone", ["+01:00", "+1", "0100", "UTC+1"])
def test_a_malformed_zone_says_no_more_than_none(zone: str, tmp_path: Path) -> None:
    """Of a correction to a moment in UTC nobody can say how long after ten o'clock by the site's clocks it is."""
    series = edited(pet_series(), put(DecayCorrectionDateTime="20240229104946.2+0000"))
    known = edited(series, put(TimezoneOffsetFromUTC="+0100"))
    assert read_pet_series(write(known, tmp_path / "known")).array.max() == pytest.approx(123 * FACTOR)
    malformed = edited(series, put(TimezoneOffsetFromUTC=zone))
    assert "of the site's own clock" in refusal_of(malformed, tmp_path / "malformed")


def test_a_date_time_with_an_offset_is_brought_to_the_zone_of_the_scan(tmp_path: Path) -> None:
    """09:00 UTC is ten o'clock at +0100, which is what the start time says."""
    series = pet_series()
    for dataset in series:
        dataset.TimezoneOffsetFromUTC = "+0100"
        injection(dataset).RadiopharmaceuticalStartDateTime = "20240229090000.000000+0000"
    assert read_pet_series(write(series, tmp_path)).array.max() == pytest.approx(123 * FACTOR)


@pytest.mark.parametrize(
    ("acquired", "injected"),
    [
        ("20240229104946.20+0000", "20240229090000+0000"),  # the site is at +0100
        ("20240229114946.20+0100", "20240229090000+0000"),
        ("20240229024946.20+0000", "20240229010000+0000"),  # at +0900
        ("20240229151946.20+0000", "20240229133000+0000"),  # at -0330
        ("20240229113446.20+0100", "20240229100000+0100"),  # the protocol began a quarter of an hour before
        ("20240229111946.20+0100", "20240229100000+0100"),
        ("20240229114946.20+0000", "20240229100000+0000"),  # in UTC
    ],
)
@pytest.mark.parametrize("has_time", [True, False])
def test_an_acquisition_that_is_written_twice_tells_the_zone(
    acquired: str, injected: str, has_time: bool, tmp_path: Path
) -> None:
    """AcquisitionDate and -Time are the site's own, AcquisitionDateTime says how far from UTC: injected at ten."""
    series = pet_series()
    for dataset in series:
        dataset.AcquisitionDateTime, injection(dataset).RadiopharmaceuticalStartDateTime = acquired, injected
        if not has_time:
            del injection(dataset).RadiopharmaceuticalStartTime
    volume = read_pet_series(write(series, tmp_path))
    assert volume.array.max() == pytest.approx(123 * FACTOR)
    assert not volume.warnings


@pytest.mark.parametrize("acquired", ["20240229105246.20+0000", "20240229113446.20+0000", "20240302114946.20+0000"])
def test_an_acquisition_that_is_written_twice_and_differently_tells_no_zone(acquired: str, tmp_path: Path) -> None:
    """By three minutes more than a zone, by a quarter of an hour, by two days: the site's clocks are not known."""
    series = pet_series()
    for dataset in series:
        dataset.AcquisitionDateTime = acquired
        injection(dataset).RadiopharmaceuticalStartDateTime = "20240229090000"
        del injection(dataset).RadiopharmaceuticalStartTime
    assert "not a date and time of the site's own clock" in refusal_of(series, tmp_path)


def test_the_study_has_the_date_where_nothing_else_has(tmp_path: Path) -> None:
    series = pet_series()
    for dataset in series:
        del dataset.AcquisitionDate, dataset.SeriesDate
        dataset.StudyDate = "20240229"
    assert read_pet_series(write(series, tmp_path)).array.max() == pytest.approx(123 * FACTOR)


def test_an_intercept_is_added_and_warned_of(tmp_path: Path) -> None:
    """PS3.3 C.8.9.4: it is 0 in PET."""
    volume = read_pet_series(write(edited(pet_series(), put(RescaleIntercept=10)), tmp_path))
    assert volume.array.max() == pytest.approx(133 * FACTOR)
    assert "RescaleIntercept (0028,1052) is not 0" in volume.warnings[0]


def test_times_of_the_series_may_differ_where_each_slice_is_decayed_by_itself(tmp_path: Path) -> None:
    series = edited(pet_series(), put(DecayCorrection="NONE", CorrectedImage=["ATTN"]))
    same = read_pet_series(write(series, tmp_path / "same")).array
    series[2].SeriesTime = "120000"
    np.testing.assert_array_equal(read_pet_series(write(series, tmp_path / "other")).array, same)


@pytest.mark.parametrize(
    ("vendor", "group", "creator", "element"),
    [
        ("GE MEDICAL SYSTEMS", 0x0009, "GEMS_PETD_01", 0x0D),
        ("SIEMENS", 0x0071, "SIEMENS MED PT", 0x22),
        ("CPS", 0x0071, "SIEMENS MED PT", 0x22),
    ],
)
def test_the_private_scan_date_time_is_read(
    vendor: str, group: int, creator: str, element: int, tmp_path: Path
) -> None:
    series = pet_series()
    for dataset in series:
        dataset.Manufacturer, dataset.SeriesTime = vendor, "150000"
        dataset.private_block(group, creator, create=True).add_new(element, "DT", "20240229114946.20")
    volume = read_pet_series(write(series, tmp_path))
    assert volume.array.max() == pytest.approx(123 * FACTOR)
    assert "private scan date-time" in volume.notes[1]


def test_an_injection_that_is_listed_twice_is_one(tmp_path: Path) -> None:
    series = pet_series()
    for dataset in series:
        dataset.RadiopharmaceuticalInformationSequence = [Dataset(), injection(dataset), injection(dataset)]
    assert read_pet_series(write(series, tmp_path / "a")).array.max() == pytest.approx(123 * FACTOR)
    for dataset in series:
        other = Dataset()
        other.RadionuclideTotalDose = 1e8
        dataset.RadiopharmaceuticalInformationSequence.append(other)
    assert "has 2 items" in refusal_of(series, tmp_path / "b")


def test_an_empty_acquisition_date_is_that_of_the_series(tmp_path: Path) -> None:
    series = edited(pet_series(), put(AcquisitionDate=""))
    assert read_pet_series(write(series, tmp_path)).array.max() == pytest.approx(123 * FACTOR)


def test_an_offset_of_zero_is_the_sites_own_where_its_clocks_showed_that_time(tmp_path: Path) -> None:
    """A British winter's."""
    series = edited(pet_series(), put(AcquisitionDateTime="20240229114946.200000+0000"))
    assert read_pet_series(write(series, tmp_path)).array.max() == pytest.approx(123 * FACTOR)


def test_a_decay_factor_that_contradicts_the_times_is_warned_of(tmp_path: Path) -> None:
    series = edited(pet_series(), put(DecayFactor="1.5"))
    assert any("DecayFactor (0054,1321)" in warning for warning in read_pet_series(write(series, tmp_path)).warnings)


def test_private_elements_of_another_creator_are_left_alone(tmp_path: Path) -> None:
    series = pet_series()
    for dataset in series:
        dataset.Manufacturer = "GE MEDICAL SYSTEMS"
        dataset.private_block(0x0009, "SOMEONE ELSE", create=True).add_new(0x0D, "DT", "20240229100000")
    assert read_pet_series(write(series, tmp_path)).array.max() == pytest.approx(123 * FACTOR)


def test_a_malformed_private_date_time_is_not_needed(tmp_path: Path) -> None:
    series = pet_series()
    for dataset in series:
        dataset.Manufacturer = "GE MEDICAL SYSTEMS"
        dataset.private_block(0x0009, "GEMS_PETD_01", create=True).add_new(0x0D, "LO", "before lunch")
    assert read_pet_series(write(series, tmp_path)).array.max() == pytest.approx(123 * FACTOR)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.57"])
def test_damaged_compressed_pixels_are_refused(syntax: str, tmp_path: Path) -> None:
    series = pet_series()
    for dataset in series:
        dataset.compress(RLELossless)
        dataset.PixelData = dataset.PixelData[:30] + b"\xff" * (len(dataset.PixelData) - 38) + dataset.PixelData[-8:]
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = syntax
    message = refusal_of(series, tmp_path).replace("\n", " ")
    assert "cannot be read" in message
    assert syntax.removeprefix("1.2.3") in message


def test_slope_zero_in_a_compressed_slice_is_refused(tmp_path: Path) -> None:
    series = pet_series(np.ones((2, 40, 32)), slopes=[1.0, 0.0])
    for dataset in series:
        compress_jpeg2000(dataset, tmp_path / "compressor")
    assert "RescaleSlope (0028,1053) 0" in refusal_of(series, tmp_path / "series")


def test_rle_in_two_fragments_is_refused(tmp_path: Path) -> None:
    """A frame is one fragment (PS3.5 A.4.2); nothing tells that these two are."""
    series = pet_series()
    for dataset in series:
        dataset.compress(RLELossless)
        (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
        dataset.PixelData = encapsulate([frame, frame])
        dataset["PixelData"].is_undefined_length = True
    assert "cannot be read (ValueError" in refusal_of(series, tmp_path)


def test_compressed_slices_of_a_name_that_is_no_utf8_do_not_end_the_process(tmp_path: Path) -> None:
    series = pet_series(np.ones((2, 40, 32)))
    for dataset in series:
        compress_jpeg2000(dataset, tmp_path / "compressor")
    files = write(series, tmp_path / "series")
    renamed = [Path(os.fsdecode(os.fsencode(file) + b"\xe4")) for file in files]
    for file, name in zip(files, renamed):
        file.rename(name)
    with pytest.raises(InputError, match="not valid UTF-8"):
        read_pet_series(renamed)


@pytest.mark.parametrize("first", [None, 3])
def test_slices_are_missing_whichever_file_says_how_many_there_are(first: int | None, tmp_path: Path) -> None:
    series = edited(pet_series(), put(NumberOfSlices=4))[:3]
    files = write(series, tmp_path)
    other = dcmread(files[0])
    other.NumberOfSlices = first
    other.save_as(files[0])
    with pytest.raises(InputError, match=r"NumberOfSlices \(0054,0081\) is 4, but there are 3 slices"):
        read_pet_series(files)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"PatientWeight": ["70", "80"]}, "PatientWeight (0010,1030) is not one finite number"),
        ({"RescaleSlope": ["1", "2"]}, "RescaleSlope (0028,1053) is not one number"),
        ({"PatientWeight": ["70", "70"]}, ""),
    ],
)
def test_two_numbers_where_one_stands_are_refused(values: dict[str, list[str]], says: str, tmp_path: Path) -> None:
    series = edited(pet_series(), put(**values))
    if says:
        assert says in refusal_of(series, tmp_path)
    else:
        assert read_pet_series(write(series, tmp_path)).array.max() == pytest.approx(123 * FACTOR)


@pytest.mark.parametrize("keep", [0.99, 0.6, 0.3, 0.1])
def test_a_truncated_file_is_refused(keep: float, tmp_path: Path) -> None:
    files = write(pet_series(np.ones((3, 16, 16))), tmp_path)
    files[1].write_bytes(files[1].read_bytes()[: int(keep * files[1].stat().st_size)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match=files[1].name) as refused:
            read_pet_series(files)
    assert "\n" not in str(refused.value)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_garbage_is_refused_or_read_but_never_crashes(seed: int) -> None:
    """Twenty bytes of a file overwritten at random: a Volume or an InputError, nothing else."""
    random = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = write(pet_series(), Path(folder))
        raw = bytearray(files[0].read_bytes())
        for place in random.integers(132, len(raw), 20):
            raw[place] = random.integers(256)
        files[0].write_bytes(bytes(raw))
        with contextlib.suppress(InputError):
            read_pet_series(files)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone cannot be read as DICOM \(No such file"):
        read_pet_series([tmp_path / "gone"])


def test_odd_values_make_no_warning(tmp_path: Path) -> None:
    """pydicom warns of overlong and illegal values as it converts them; here nothing is converted."""
    series = pet_series()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for dataset in series:
            dataset.add_new(0x00101030, "DS", "70.00000000000000000000")
            dataset.add_new(0x00081070, "PN", "a" * 200)
        files = write(series, tmp_path)
    code = (
        "import sys; from pathlib import Path; from petseg_runtime.io.dicom import read_pet_series;"
        "read_pet_series([Path(p) for p in sys.argv[1:]])"
    )
    run = subprocess.run(  # a process of its own, for what pytest would capture
        [sys.executable, "-W", "error", "-c", code, *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


# --- real data ---------------------------------------------------------------------------------------


def reference_objects() -> list[dict[str, str]]:
    table = DATA / "suv-dro/expected.csv"
    return list(csv.DictReader(table.open())) if table.is_file() else []


@pytest.mark.skipif(not reference_objects(), reason="the reference objects are not part of the project")
@pytest.mark.parametrize("row", reference_objects(), ids=lambda row: row["id"])
def test_reference_objects_have_the_suv_they_must(row: dict[str, str]) -> None:
    folder = DATA / "suv-dro" / row["id"]
    volume = read_pet_series(sorted((folder / "PT").iterdir()))
    inside = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "mask" / "DRO_mask.nii.gz"))) > 0
    values = volume.array[inside]
    actual = np.array([values.min(), np.median(values), values.max()])
    expected = np.array([float(row["suv_min"]), float(row["suv_median"]), float(row["suv_max"])])
    # DRO_2_3 stores whole hundredths of a cm²/ml, so what it holds may be half a hundredth from what it means.
    held = 0.005 * 70_000 / 18_481 if row["id"] == "DRO_2_3" else 0.0
    np.testing.assert_array_less(np.abs(actual - expected), np.maximum(0.01 * expected, held))


def test_a_study_from_a_console(tmp_path: Path) -> None:
    """AC, NAC and CT in one folder, without SeriesInstanceUID; the NAC series lists ATTN all the same."""
    volume = read_pet_series(list(needs("acrin-study").iterdir()))
    assert volume.geometry.shape == (135, 128, 128)
    assert volume.array.max() == pytest.approx(51.1, rel=0.01)
    assert volume.notes[0] == (
        "Took PET series 1 (135 slices, attenuation corrected, BQML) out of 3 series; left out: "
        "PET series 2 (135 slices, not attenuation corrected), CT series 2 (6 slices)."
    )
    # The real-world value map of the study gives 4.2111e-4.
    assert "SUVbw is 0.00042111 times the Bq/ml" in volume.notes[1]


@pytest.mark.parametrize("case", ["STS_004", "STS_007", "STS_020"])
def test_dicom_and_nifti_of_a_patient_agree(case: str) -> None:
    """The NIfTI is a crop of the same image: compared where the grids coincide."""
    volume = read_pet_series(sorted(needs(f"sts-dicom/{case}").rglob("*.dcm")))
    image = sitk.ReadImage(str(needs(f"sts/{case}") / "PET_image.nii.gz"))
    nifti = sitk.GetArrayFromImage(image)
    assert volume.geometry.spacing_mm == pytest.approx(image.GetSpacing()[::-1], abs=1e-4)
    offset = (np.array(image.GetOrigin()[::-1]) - volume.geometry.origin_lps_mm[::-1]) / volume.geometry.spacing_mm
    start = np.round(offset).astype(int)
    assert np.abs(offset - start).max() < 0.01
    mine, theirs = [], []
    for axis in range(3):
        low, high = max(start[axis], 0), min(start[axis] + nifti.shape[axis], volume.array.shape[axis])
        mine.append(slice(low, high))
        theirs.append(slice(low - start[axis], high - start[axis]))
    common, other = volume.array[tuple(mine)], nifti[tuple(theirs)]
    assert common.size > 0.9 * nifti.size
    np.testing.assert_allclose(common, other, atol=2e-3 * other.max())
