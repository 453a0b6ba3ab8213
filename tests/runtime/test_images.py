"""Image files: geometry survives exactly, and what is not a PET volume is refused."""

from __future__ import annotations

import gzip
import os
import resource
import shutil
import struct
import tracemalloc
import zlib
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from runtime.dicom_factory import pet_series, write
from scipy.spatial.transform import Rotation

from petseg_runtime import InputError, Unit, UsageError, Volume, read_volume
from petseg_runtime.io.images import read_mask, write_image
from petseg_runtime.io.nifti import check_nifti
from petseg_runtime.io.scans import find_scans
from petseg_runtime.outputs.files import whole_file
from petseg_runtime.volume import Geometry

FORMATS = (".nii", ".nii.gz", ".mha", ".nrrd")


def save(array: np.ndarray, path: Path) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=False), str(path))
    return path


def body(shape: tuple[int, ...] = (8, 9, 10)) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.5, 5, shape).astype(np.float32)


@pytest.mark.parametrize("suffix", FORMATS)
def test_voxels_and_geometry_come_back(volume: Volume, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"scan{suffix}"
    write_image(volume.array, volume.geometry, path)
    read = read_volume(path)
    np.testing.assert_array_equal(read.array, volume.array)
    # NIfTI keeps geometry in float32; the corners of the scan stay within a hundredth of a millimetre.
    corners = np.array([[0, 0, 0], volume.geometry.shape])
    np.testing.assert_allclose(read.geometry.to_lps_mm(corners), volume.geometry.to_lps_mm(corners), atol=1e-2)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_mask_has_exactly_the_geometry_of_the_scan_that_was_read(volume: Volume, suffix: str, tmp_path: Path) -> None:
    write_image(volume.array, volume.geometry, tmp_path / f"scan{suffix}")
    scan = read_volume(tmp_path / f"scan{suffix}")
    write_image((scan.array > 6).astype(np.uint8), scan.geometry, tmp_path / "mask.nii.gz")
    one, other = (sitk.ReadImage(str(tmp_path / name)) for name in (f"scan{suffix}", "mask.nii.gz"))
    assert one.GetSize() == other.GetSize()
    for get in (sitk.Image.GetSpacing, sitk.Image.GetOrigin, sitk.Image.GetDirection):
        np.testing.assert_allclose(get(one), get(other), rtol=0, atol=2e-5)


def test_array_axes_are_z_y_x_and_world_is_lps(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(body())
    image.SetSpacing((2.0, 3.0, 4.0))
    image.SetOrigin((-10.0, 20.0, 5.0))
    image.SetDirection((0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0))
    sitk.WriteImage(image, str(tmp_path / "scan.mha"))
    geometry = read_volume(tmp_path / "scan.mha").geometry
    assert geometry.spacing_mm == (4.0, 3.0, 2.0)
    # ITK's own conversion is the reference.
    for index in ([0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3], [7, 8, 9]):
        expected = image.TransformIndexToPhysicalPoint(index[::-1])
        np.testing.assert_allclose(geometry.to_lps_mm(index), expected, atol=1e-9)


def test_the_unit_is_unknown_unless_said(tmp_path: Path) -> None:
    path = save(body(), tmp_path / "scan.nii.gz")
    assert read_volume(path).unit is Unit.UNKNOWN
    assert read_volume(path, "suvbw").unit is Unit.SUVBW


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float64, np.int32])
def test_every_number_type_becomes_float32(dtype: type, tmp_path: Path) -> None:
    array = (body() * 100).astype(dtype)
    volume = read_volume(save(array, tmp_path / "scan.nii.gz"))
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, array.astype(np.float32))


def test_a_mask_is_one_where_the_file_is_not_zero(tmp_path: Path) -> None:
    labels = np.zeros((4, 5, 6), np.int16)
    labels[1, 2, 3], labels[2, 2, 2] = 255, 255
    mask, geometry = read_mask(save(labels, tmp_path / "mask.nii.gz"))
    assert mask.dtype == np.uint8
    assert mask.sum() == 2
    assert geometry.shape == (4, 5, 6)


@pytest.mark.parametrize(
    "values",
    [
        np.array([0, 1, 2], np.uint8),  # tumour and bladder
        np.array([0, 0.2, 0.9], np.float32),  # probabilities
        np.array([-1, 1], np.int16),
        np.array([0, -1], np.int16),
    ],
    ids=str,
)
def test_what_is_not_one_label_is_no_mask(values: np.ndarray, tmp_path: Path) -> None:
    array = np.resize(values, (4, 5, 6))
    with pytest.raises(InputError, match=r"is no mask: .* beside zero, expected one number"):
        read_mask(save(array, tmp_path / "mask.nii.gz"))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_volume(tmp_path / "absent.nii.gz")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.98])
@pytest.mark.parametrize("compress", [False, True])
def test_a_truncated_file_is_refused(suffix: str, kept: float, compress: bool, tmp_path: Path) -> None:
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(body((30, 30, 30))), str(path), useCompression=compress)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(InputError, match=r"truncated|damaged|cannot be read"):
        read_volume(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_nifti_of_more_voxels_than_it_states_is_refused(suffix: str, tmp_path: Path) -> None:
    """A side that was changed by hand shears every slice."""
    path = save(body(), tmp_path / f"scan{suffix}")
    opened = gzip.open if suffix == ".nii.gz" else open
    with opened(path, "rb") as stream:
        content = bytearray(stream.read())
    with opened(path, "wb") as stream:
        stream.write(content + bytes(500))  # a last block is filled with zeros
    np.testing.assert_array_equal(read_volume(path).array, body())
    content[44:46] = struct.pack("<h", 8)  # dim[2], of 9
    with opened(path, "wb") as stream:
        stream.write(content)
    with pytest.raises(InputError, match="holds more than its 640 voxels"):
        read_volume(path)


def test_a_file_that_the_disk_did_not_take_whole_is_none(tmp_path: Path) -> None:
    """ITK says nothing of it."""
    noise = np.random.default_rng(0).random((20, 30, 40), np.float32)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(UsageError, match="Check the space left"), whole_file(tmp_path / "scan.nii.gz") as temporary:
            write_image(noise, Geometry(noise.shape, (4.0, 4.0, 4.0)), temporary)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    path = save(body(), tmp_path / "scan.nii.gz")
    path.write_bytes(path.read_bytes()[:-8] + b"\0\0\0\0" + path.read_bytes()[-4:])
    with pytest.raises(InputError, match="damaged"):
        read_volume(path)


def test_a_text_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scan.nii.gz").write_text("this is no image")
    with pytest.raises(InputError, match="cannot be read"):
        read_volume(tmp_path / "scan.nii.gz")


@pytest.mark.parametrize("shape", [(20, 20), (3, 8, 8, 8), (1, 20, 20)], ids=["2-D", "4-D", "one slice"])
def test_other_dimensions_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="three-dimensional"):
        read_volume(save(body(shape), tmp_path / "scan.nii.gz"))


def test_colours_are_refused(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(body((8, 8, 8, 3)), isVector=True)
    sitk.WriteImage(image, str(tmp_path / "scan.nrrd"))
    with pytest.raises(InputError, match="3 numbers a voxel"):
        read_volume(tmp_path / "scan.nrrd")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("suffix", FORMATS)
def test_values_that_are_no_numbers_are_refused(value: float, dtype: type, suffix: str, tmp_path: Path) -> None:
    array = body().astype(dtype)
    array[1, 2, 3] = value
    with pytest.raises(InputError, match="holds 1 voxels that are NaN or infinite"):
        read_volume(save(array, tmp_path / f"scan{suffix}"))


def test_a_time_series_of_one_is_a_volume(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_volume(save(body()[None], tmp_path / "scan.nii.gz")).array, body())


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((8, 8, 8), np.float32), "no uptake"),
        (np.full((8, 8, 8), 4.0, np.float32), "same value"),
        (-body(), "no value above 0"),
        ((body() > 2).astype(np.uint8), "label map"),
    ],
    ids=["zeros", "constant", "negative", "mask"],
)
def test_what_is_no_pet_is_refused(array: np.ndarray, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=reason):
        read_volume(save(array, tmp_path / "scan.nii.gz"))


def test_a_header_that_claims_a_giant_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "scan.nrrd").write_bytes(
        b"NRRD0004\ntype: float\ndimension: 3\nsizes: 9000 9000 9000\n"
        b"space: left-posterior-superior\nspace directions: (2,0,0) (0,2,0) (0,0,2)\nspace origin: (0,0,0)\n"
        b"encoding: raw\nendian: little\n\n" + b"0" * 64
    )
    with pytest.raises(InputError, match="more than a PET scan"):
        read_volume(tmp_path / "scan.nrrd")


def test_ct_is_refused(tmp_path: Path) -> None:
    hounsfield = np.random.default_rng(0).normal(-300, 500, (12, 12, 12)).clip(-1024, 3000).astype(np.int16)
    with pytest.raises(InputError, match="CT"):
        read_volume(save(hounsfield, tmp_path / "ct.nii.gz"))
    hounsfield[4:6, 4:6, 4:6] = 14_000  # an implant, on a scale that holds it
    with pytest.raises(InputError, match="CT"):
        read_volume(save(hounsfield, tmp_path / "implant.nii.gz"))


@pytest.mark.parametrize("unit", [1.0, 5000.0], ids=["SUV", "Bq/ml"])
def test_the_noise_of_filtered_back_projection_is_no_ct(unit: float, tmp_path: Path) -> None:
    """An even phantom of 1 with noise of 30 % in air and in it: its lowest value is far below 0."""
    array = np.random.default_rng(0).normal(0.0, 0.3, (24, 24, 24)).astype(np.float32)
    array[4:20, 4:20, 4:20] += 1.0
    assert array.min() < -0.4 * array.max()
    read_volume(save(unit * array, tmp_path / "fbp.nii.gz"))


def test_images_of_other_formats_are_refused_and_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "cohort").mkdir()
    save(body(), tmp_path / "cohort/a.nii.gz")
    for name in ("b.mhd", "b.raw", "c.nhdr", "d.mgz", "e.hdr", "e.img", "f.hdr"):  # f is of a sinogram
        (tmp_path / "cohort" / name).write_bytes(b"x")
    write(pet_series(), tmp_path / "cohort" / "study")
    (tmp_path / "cohort/study/seg.nhdr").write_bytes(b"x")  # somebody made it of the slices
    assert find_scans(tmp_path / "cohort")[-1].name == "study"
    shutil.rmtree(tmp_path / "cohort/study")
    scans = find_scans(tmp_path / "cohort")
    assert [scan.name for scan in scans] == ["a", "b.mhd", "c.nhdr", "d.mgz", "e.hdr"]
    for scan in scans[1:]:
        with pytest.raises(InputError, match=rf"{scan.name} is not a .* file. Save it as one"):
            scan.read()
        with pytest.raises(InputError, match=rf"{scan.name} is not a .* file. Save it as one"):
            find_scans(tmp_path / "cohort" / scan.name)


def test_a_result_that_is_named_is_no_scan(tmp_path: Path) -> None:
    """As where the shell's * names all that lies there: the probabilities of a scan were segmented as one."""
    with pytest.raises(InputError, match=r"scan_prob\.nii\.gz has the name of a result of PETSeg"):
        find_scans(save(body(), tmp_path / "scan_prob.nii.gz"))


def test_a_pipe_is_no_scan(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "scan.nii.gz")
    with pytest.raises(InputError, match=r"scan\.nii\.gz is a pipe or device"):
        find_scans(tmp_path / "scan.nii.gz")


def flip_a_bit(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".nrrd"])
@pytest.mark.parametrize("place", [0.4, 0.6, 0.8, 0.95])
def test_one_flipped_bit_in_compressed_voxels_is_refused(suffix: str, place: float, tmp_path: Path) -> None:
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(body((20, 20, 20))), str(path), useCompression=True)
    flip_a_bit(path, place)
    with pytest.raises(InputError, match=r"damaged|truncated|cannot be read"):
        read_volume(path)


def nifti(path: Path, **fields: tuple[str, int, tuple[float, ...]]) -> Path:
    """A NIfTI file of 2 x 3 x 4 mm voxels with some header fields overwritten: name=(struct form, offset, values)."""
    image = sitk.GetImageFromArray(body())
    image.SetSpacing((2.0, 3.0, 4.0))
    sitk.WriteImage(image, str(path))
    content = bytearray(path.read_bytes())
    for form, offset, values in fields.values():
        struct.pack_into(f"<{form}", content, offset, *values)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        (("3f", 80, (0.0, 3.0, 4.0)), "voxel size"),
        (("3f", 80, (float("nan"), 3.0, 4.0)), "voxel size"),
        (("3f", 80, (4.0, 3.0, 4.0)), "two voxel sizes"),
        (("h", 72, (8,)), "datatype"),
        (("h", 70, (128,)), "datatype"),
        (("h", 40, (0,)), "0 dimensions"),
        (("h", 40, (9,)), "9 dimensions"),
        (("f", 108, (float("nan"),)), "byte nan"),
        (("f", 108, (float("-inf"),)), "byte -inf"),
        (("i", 0, (540,)), "NIfTI-2"),
        (("4s", 344, (b"ni1\0",)), "cannot be read as NIfTI"),
        (("4f", 280, (-2.0, 0.3, 0.0, 0.0)), "two voxel sizes|right angle"),
        (("2h", 252, (0, 0)), "does not say how the patient lies in it"),
        (("f", 268, (float("nan"),)), "holds NaN"),
        (("f", 256, (float("nan"),)), "holds NaN"),
        (("f", 292, (float("nan"),)), "holds NaN"),
        (("f", 268, (130.0,)), r"in its qform and its sform, 130\.0 mm apart"),
        (("3f", 256, (0.0, 0.0, 0.9)), "in its qform and its sform"),
        (("2f", 112, (2.0, float("nan"))), "scl_inter that is no number"),
    ],
    ids=[
        "size 0",
        "size NaN",
        "two sizes",
        "bits",
        "colours",
        "no rank",
        "rank",
        "offset",
        "offset -inf",
        "NIfTI-2",
        "pair",
        "sheared",
        "no space",
        "qform offset",
        "quaternion",
        "sform offset",
        "two places",
        "two turns",
        "shift",
    ],
)
def test_a_nifti_header_that_contradicts_itself_is_refused(field: tuple, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=reason):
        read_volume(nifti(tmp_path / "scan.nii", field=field))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("code", "stored"),
    [
        (2, "u1"),
        (256, "i1"),
        (4, "i2"),
        (512, "u2"),
        (8, "i4"),
        (768, "u4"),
        (16, "f4"),
        (64, "f8"),
        (1024, "i8"),
        (1280, "u8"),
    ],
)
@pytest.mark.parametrize(("scale", "shift"), [(0.0, 0.0), (1.0, 0.0), (0.37, 0.0), (0.02, 0.5), (float("nan"), 0.0)])
def test_voxels_are_those_that_itk_reads(
    code: int, stored: str, order: str, scale: float, shift: float, tmp_path: Path
) -> None:
    voxels = np.arange(1, 8 * 9 * 10 + 1).reshape(8, 9, 10) % 120
    fields = [("8h", 40, (3, 10, 9, 8, 1, 1, 1, 1)), ("2h", 70, (code, 8 * np.dtype(stored).itemsize))]
    fields += [("8f", 76, (1, 2, 3, 4, 0, 0, 0, 0)), ("3f", 108, (352, scale, shift)), ("2h", 252, (1, 0))]
    header = bytearray(348) + b"\0\0\0\0"
    for form, offset, values in [("i", 0, (348,)), *fields, ("4s", 344, (b"n+1\0",))]:
        struct.pack_into(order + form, header, offset, *values)
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(bytes(header) + voxels.astype(order + stored).tobytes()))
    volume = read_volume(path)
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.array, sitk.GetArrayFromImage(sitk.ReadImage(str(path))), rtol=1e-6)
    assert volume.geometry.spacing_mm == (4.0, 3.0, 2.0)


@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf")])
def test_without_a_slope_the_shift_does_not_count(scale: float, tmp_path: Path) -> None:
    """nifti1.h: values are scaled "if scl_slope is nonzero"; ITK adds the shift all the same."""
    np.testing.assert_array_equal(
        read_volume(nifti(tmp_path / "scan.nii", scaling=("2f", 112, (scale, 3.0)))).array, body()
    )


def test_of_two_spaces_the_sforms_is_taken_and_said(tmp_path: Path) -> None:
    """As SPM leaves a scan that it aligned: the qform of the scanner, an sform of code 2. nibabel takes the sform."""
    moved = {"codes": ("2h", 252, (1, 2)), "sform": ("12f", 280, (-2, 0, 0, 130, 0, -3, 0, 5, 0, 0, 4, 7))}
    volume = read_volume(nifti(tmp_path / "scan.nii", **moved))
    np.testing.assert_allclose(volume.geometry.origin_lps_mm, (-130, -5, 7), atol=1e-4)
    assert "the sform's was taken" in volume.warnings[0]
    near = moved | {"sform": ("12f", 280, (-2, 0, 0, 0, 0, -3, 0, 0, 0, 0, 4, 0.9))}  # less than half a voxel off
    assert read_volume(nifti(tmp_path / "near.nii", **near)).geometry.origin_lps_mm[2] == pytest.approx(0.9)


@pytest.mark.parametrize("axes", list(permutations(range(3))))
def test_what_itk_writes_states_one_space(axes: tuple[int, int, int], tmp_path: Path) -> None:
    """In every order of the axes and every direction: near half a turn a quaternion in float32 is 1e-3 off."""
    straight = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    for signs in product((1, -1), repeat=3):
        direction = tuple(map(tuple, (straight[:, axes] * signs).tolist()))
        geometry = Geometry((20, 288, 288), (3.0, 2.0, 2.0), (-100.0, 50.0, 20.0), direction)  # type: ignore[arg-type]
        write_image(np.ones(geometry.shape, np.uint8), geometry, tmp_path / "scan.nii.gz")
        assert not check_nifti(tmp_path / "scan.nii.gz")


@pytest.mark.parametrize("turn", [*np.eye(4)[:, :3].tolist(), [0.5, -0.5, 0.5], [0.1, 0.2, -0.7]], ids=str)
def test_qform_and_sform_that_agree_are_read(turn: list[float], tmp_path: Path) -> None:
    """SciPy's rotation is the reference: NIfTI's quaternion is (a, b, c, d), with a >= 0."""
    b, c, d = turn
    axes = Rotation.from_quat([b, c, d, np.sqrt(max(0, 1 - b * b - c * c - d * d))]).as_matrix() * (2, 3, 4)
    affine = np.column_stack([axes, [10, -20, 30]]).ravel().tolist()
    fields = {"turn": ("6f", 256, (*turn, 10, -20, 30)), "sform": ("12f", 280, tuple(affine))}
    geometry = read_volume(nifti(tmp_path / "scan.nii", qfac=("f", 76, (1.0,)), **fields)).geometry
    np.testing.assert_allclose(geometry.to_lps_mm([1, 2, 3]) * (-1, -1, 1), axes @ (3, 2, 1) + (10, -20, 30), atol=1e-4)


def mha(path: Path, compress: bool = False, **changes: str) -> Path:
    """An MHA file with some fields of its header changed, or left out where the change is empty."""
    sitk.WriteImage(sitk.GetImageFromArray(body()), str(path), useCompression=compress)
    header, mark, voxels = path.read_bytes().partition(b"ElementDataFile = LOCAL\n")
    fields = dict(line.split(" = ", 1) for line in header.decode().splitlines()) | changes
    lines = [f"{key} = {value}\n" for key, value in fields.items() if value]
    path.write_bytes("".join(lines).encode() + mark + voxels)
    return path


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"NDims": "-1"}, "NDims -1"),
        ({"NDims": "1000000"}, "NDims 1000000"),
        ({"NDims": ""}, "NDims absent"),
        ({"DimSize": "10 9"}, "DimSize 10 9"),
        ({"DimSize": "10 9 0"}, "DimSize 10 9 0"),
        ({"DimSize": "10 9 80"}, "is truncated: 2880 bytes of voxels, expected 28800"),
        ({"DimSize": "10 9 4"}, "contradicts itself: 2880 bytes"),
        ({"ElementType": "MET_UCHAR"}, "contradicts itself"),
        ({"ElementType": "MET_NONE"}, "ElementType MET_NONE"),
        ({"ElementNumberOfChannels": "3"}, "3 numbers a voxel"),
        ({"Offset": "0 nan 0"}, "Offset that is no number"),
        ({"Offset": "0 0"}, "Offset of other than 3 numbers"),
        ({"ElementSpacing": "2 3"}, "ElementSpacing of other than 3 numbers"),
        ({"TransformMatrix": "1 0 0 1"}, "TransformMatrix of other than 9 numbers"),
        ({"TransformMatrix": ""}, "does not say how the patient lies in it: TransformMatrix is absent"),
        ({"Offset": ""}, "does not say how the patient lies in it: Offset is absent"),
        ({"TransformMatrix": "1 0 0 0 1 0 0 0 inf"}, "TransformMatrix that is no number"),
        ({"DistanceUnits": "cm"}, "in cm"),
        ({"ElementSpacing": "", "elementspacing": "2 3 4"}, "does not state its voxel size"),
        ({"ElementToIntensityFunctionSlope": "0.5"}, "scales its voxels"),
        ({"BinaryData": "False"}, "as text"),
    ],
    ids=str,
)
def test_an_mha_that_contradicts_itself_is_refused(changes: dict[str, str], reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=reason):
        read_volume(mha(tmp_path / "scan.mha", **changes))


@pytest.mark.parametrize("said", ["True", "T", "1"])
def test_a_compressed_mha_holds_what_it_states(said: str, tmp_path: Path) -> None:
    """MetaIO fills what is missing with whatever the memory held."""
    path = mha(tmp_path / "scan.mha", compress=True, CompressedData=said)
    np.testing.assert_array_equal(read_volume(path).array, body())
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="truncated"):
        read_volume(path)
    for changes in ({"CompressedDataSize": ""}, {"CompressedDataSize": "1000"}):
        with pytest.raises(InputError, match="CompressedDataSize"):
            read_volume(mha(path, compress=True, **changes))
    with pytest.raises(InputError, match="is truncated: 2880 bytes of voxels"):
        read_volume(mha(path, compress=True, DimSize="10 9 16"))
    with pytest.raises(InputError, match="contradicts itself: 2880 bytes of voxels or more, expected 1440"):
        read_volume(mha(path, compress=True, DimSize="10 9 4"))
    mha(path, compress=True)
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(InputError, match="contradicts itself: 4 bytes after its voxels"):
        read_volume(path)


@pytest.mark.parametrize("field", ["Name", "Comment", "ObjectType", "ObjectSubType"])
def test_an_mha_with_a_text_that_would_end_the_process_is_refused(field: str, tmp_path: Path) -> None:
    """MetaIO keeps it in 255 bytes and writes on beyond."""
    with pytest.raises(InputError, match=f"{field} of scan.mha has more than 254 characters"):
        read_volume(mha(tmp_path / "scan.mha", **{field: "q" * 400}))
    np.testing.assert_array_equal(read_volume(mha(tmp_path / "scan.mha", Comment="q" * 240)).array, body())


def test_what_itk_writes_of_a_dicom_file_into_an_mha_is_read_as_it_is(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(body())
    image.SetMetaData("0008|2111", "q" * 3000)
    sitk.WriteImage(image, str(tmp_path / "scan.mha"))
    np.testing.assert_array_equal(read_volume(tmp_path / "scan.mha").array, body())
    image.SetMetaData("0008|2111", "q" * 4000)
    sitk.WriteImage(image, str(tmp_path / "scan.mha"))
    with pytest.raises(InputError, match=r"A header line of scan.mha has more than 4000 characters"):
        read_volume(tmp_path / "scan.mha")


def test_axes_of_many_decimals_are_no_long_text(tmp_path: Path) -> None:
    one, zero = f"1.{'0' * 80}", f"0.{'0' * 80}"
    path = mha(tmp_path / "scan.mha", TransformMatrix=" ".join((*(one, zero, zero, zero) * 2, one)))
    assert read_volume(path).geometry.direction_lps == ((0, 0, 1), (0, 1, 0), (1, 0, 0))
    with pytest.raises(InputError, match="more than 1000 characters"):
        read_volume(mha(path, TransformMatrix=f"1.{'0' * 2000} 0 0 0 1 0 0 0 1"))


def nrrd(path: Path, voxels: bytes | None = None, line: bytes = b"", **changes: str) -> Path:
    """An NRRD file with some fields changed, or left out where the change is empty, and a line more in its header."""
    fields = {"type": "float", "dimension": "3", "space": "left-posterior-superior", "sizes": "10 9 8"}
    fields |= {"space directions": "(2,0,0) (0,3,0) (0,0,4)", "space origin": "(-10,20,-300)", "endian": "little"}
    fields |= {"encoding": "raw"} | {field.replace("_", " "): value for field, value in changes.items()}
    header = "".join(f"{field}: {value}\n" for field, value in fields.items() if value)
    path.write_bytes(b"NRRD0005\n" + header.encode() + line + b"\n" + (body().tobytes() if voxels is None else voxels))
    return path


# Dimension 4, the last of one volume, with a direction in space and time for each.
WITH_TIME = {
    "dimension": "4",
    "sizes": "10 9 8 1",
    "space_directions": "(2,0,0,0) (0,3,0,0) (0,0,4,0) (0,0,0,1)",
    "space_origin": "(-10,20,-300,0)",
}


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (1, 1, 1)),
        ("LPS", (1, 1, 1)),
        ("right-anterior-superior", (-1, -1, 1)),
        ("Ras", (-1, -1, 1)),
        ("Left-Anterior-Superior", (1, -1, 1)),
        ("LAS", (1, -1, 1)),
        ("left-posterior-superior-time", (1, 1, 1)),
        ("lpst", (1, 1, 1)),
    ],
)
def test_the_space_of_an_nrrd_says_where_left_is(space: str, signs: tuple[int, ...], tmp_path: Path) -> None:
    """The NRRD standard: right and anterior are the negative of left and posterior."""
    changes = WITH_TIME if space.lower().endswith("t") or "time" in space else {}
    geometry = read_volume(nrrd(tmp_path / "scan.nrrd", space=space, **changes)).geometry
    expected = np.multiply(signs, (-10 + 1 * 2, 20 + 2 * 3, -300 + 3 * 4))
    np.testing.assert_allclose(geometry.to_lps_mm([3, 2, 1]), expected, atol=1e-9)


@pytest.mark.parametrize("space", ["right-anterior-superior-time", "Left-Anterior-Superior-Time", "RAST", "last"])
def test_a_space_with_time_that_itk_would_not_flip_is_refused(space: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"space is {space}, expected left-posterior-superior, RAS or LAS"):
        read_volume(nrrd(tmp_path / "scan.nrrd", space=space, **WITH_TIME))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"space_directions": "(2,0,0) (0,3,0) none"}, "does not state its voxel size: .* none for an axis of 8"),
        ({"space_directions": "none (0,3,0) (0,0,4)"}, "does not state its voxel size: .* none for an axis of 10"),
        ({"space_origin": ""}, "does not say how the patient lies in it: space origin is absent"),
        ({"space_origin": "none"}, "does not say how the patient lies in it: space origin is none"),
        ({"spaceunits": '"cm" "cm" "cm"'}, "in cm, expected mm"),
        ({"content": 'of an old Mac\rspace units: "cm" "cm" "cm"'}, "in cm, expected mm"),
        ({"datafile": "scan.raw"}, "another file"),
        ({"Data file": "LIST"}, "another file"),
        ({"sizes": "10 9 8.0"}, "sizes 10 9 8.0"),
        ({"sizes": ""}, "sizes absent"),
        ({"sizes": "10 9 16"}, "is truncated: 2880 bytes of voxels, expected 5760"),
        ({"sizes": "10 9 4"}, "contradicts itself: 2880 bytes of voxels or more, expected 1440"),
        ({"type": "double"}, "is truncated"),
        ({"type": "unsigned short int"}, "contradicts itself"),
        ({"type": "block"}, "type block"),
        ({"byte_skip": "-1", "encoding": "gzip"}, "apart from its header"),
        ({"byte_skip": "-1", "sizes": "10 9 16"}, "is truncated: 2880 bytes of voxels, expected 5760"),
        ({"byte_skip": "1"}, "apart from its header"),
        ({"line_skip": "1"}, "apart from its header"),
        *(({"encoding": name}, f"encoding {name}, .* Save it with gzip") for name in ("ascii", "hex", "bzip2", "bz2")),
    ],
    ids=str,
)
def test_an_nrrd_that_contradicts_itself_is_refused(changes: dict[str, str], reason: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=reason):
        read_volume(nrrd(tmp_path / "scan.nrrd", **changes))


def test_the_voxels_of_an_nrrd_may_be_its_end(tmp_path: Path) -> None:
    """Byte skip -1 (teem's format, section 5): whatever lies between header and voxels."""
    path = nrrd(tmp_path / "scan.nrrd", b"between" + body().tobytes(), byte_skip="-1")
    np.testing.assert_array_equal(read_volume(path).array, body())


def test_a_compressed_nrrd_holds_what_it_states(tmp_path: Path) -> None:
    path, voxels = tmp_path / "scan.nrrd", body().tobytes()
    np.testing.assert_array_equal(read_volume(nrrd(path, gzip.compress(voxels), encoding="gzip")).array, body())
    for held, reason in (
        (gzip.compress(voxels * 2), "contradicts itself: 5760 bytes"),
        (gzip.compress(voxels) * 2, "several gzip members"),
        (gzip.compress(voxels[:90]) + gzip.compress(voxels[90:]), "several gzip members"),
        (gzip.compress(voxels) + b"more", "contradicts itself: 4 bytes after its voxels"),
        (gzip.compress(voxels[:-4]), "is truncated: 2876 bytes"),
    ):
        with pytest.raises(InputError, match=reason):
            read_volume(nrrd(path, held, encoding="gzip"))


@pytest.mark.parametrize(
    "line",
    [
        b"q" * 2000 + b"\n",
        b"other: " + b"q" * 2000 + b"\n",
        b"q" * 2000 + b": 1\n",
        b"q" * 2000 + b"\0:=1\n",
        b"measurement frame: (" + b"q" * 2000 + b",0,0)\n",
        b"Kinds: " + b"q" * 8000 + b"\n",
        b"spacings: " + b"q" * 8000 + b"\n",
        b"blocksize: " + b"q" * 8000 + b"\n",
    ],
    ids=["no field", "unknown", "long name", "NUL", "measurement frame", "kinds", "spacings", "block size"],
)
def test_an_nrrd_with_a_line_that_would_end_the_process_is_refused(line: bytes, tmp_path: Path) -> None:
    """ITK writes the line into a message of fixed length."""
    with pytest.raises(InputError, match=r"no field of an NRRD|expected 500 at most"):
        read_volume(nrrd(tmp_path / "scan.nrrd", line=line))


@pytest.mark.parametrize("field", ["type", "dimension", "sizes", "space_directions", "space_origin", "endian"])
def test_a_long_field_of_an_nrrd_is_refused(field: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{field.replace('_', ' ')} of 80.. characters, expected 500 at most"):
        read_volume(nrrd(tmp_path / "scan.nrrd", **{field: "(" + "1" * 8000}))


@pytest.mark.parametrize(
    "line",
    [
        b"# " + b"q" * 20_000 + b"\n",
        b"Segment0_Parameters:=" + b"q" * 20_000 + b": 1\n",
        b"content: " + b"q" * 20_000 + b"\n",
        b"# comment\n" * 2000,
        b"units:=g/ml\nspace:=none\ndata file:=scan.raw\n# space: RAS\n",
        b"# old Mac\r# and Windows\r\n",
    ],
    ids=["comment", "key", "content", "many comments", "keys like fields", "line end"],
)
def test_free_text_in_an_nrrd_is_passed_over(line: bytes, tmp_path: Path) -> None:
    volume = read_volume(nrrd(tmp_path / "scan.nrrd", line=line))
    np.testing.assert_array_equal(volume.array, body())
    assert volume.geometry.origin_lps_mm == (-10, 20, -300)


def test_an_nrrd_whose_header_does_not_end_is_refused(tmp_path: Path) -> None:
    path = nrrd(tmp_path / "scan.nrrd", b"")
    path.write_bytes(path.read_bytes().rstrip() + b"\n")
    with pytest.raises(InputError, match="no empty line after its header"):
        read_volume(path)
    with pytest.raises(InputError, match="no empty line after its header, expected one within 1048576 bytes"):
        read_volume(nrrd(path, line=b"# comment\n" * 200_000))


def peak_of_refusing(path: Path, reason: str) -> int:
    """Bytes of memory that Python took at most to refuse a file."""
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=reason):
            read_volume(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_file_that_decompresses_to_far_more_than_it_states_is_refused_in_little_memory(tmp_path: Path) -> None:
    zeros = bytes(1 << 27)
    # Cut off: who reads on to the end finds no end.
    packed = nrrd(tmp_path / "scan.nrrd", gzip.compress(zeros, 1)[:-9], encoding="gzip")
    path = mha(tmp_path / "scan.mha", CompressedData="True", CompressedDataSize="1000")
    path.write_bytes(path.read_bytes()[: -body().nbytes] + zlib.compress(zeros, 1)[:-9])
    for one in (packed, path):
        assert peak_of_refusing(one, "contradicts itself") < 1 << 25


@pytest.mark.parametrize("begin", [b"", b"NRRD0005\n", b"ObjectType = Image\nName = "])
@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_a_giant_without_line_ends_is_refused_in_little_memory(suffix: str, begin: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"scan{suffix}"
    path.write_bytes(begin)
    os.truncate(path, 1 << 30)  # takes no room on the disk
    assert peak_of_refusing(path, "is no MHA|cannot be read as NRRD|no field of an NRRD") < 1 << 25


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_a_compressed_giant_is_refused_before_it_is_decompressed(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"scan{suffix}"
    if suffix == ".mha":
        mha(path, compress=True, DimSize="9000 9000 9000")
    else:
        nrrd(path, b"no gzip", sizes="9000 9000 9000", encoding="gzip")
    with pytest.raises(InputError, match="claims 9000 x 9000 x 9000 voxels, more than a PET scan can have"):
        read_volume(path)


@pytest.mark.parametrize("seed", range(20))
def test_oblique_axes_of_three_decimals_are_read(seed: int, tmp_path: Path) -> None:
    turn = Rotation.random(rng=seed).as_matrix().round(3)
    matrix = " ".join(f"{cosine:.3f}" for cosine in turn.T.ravel())
    volume = read_volume(mha(tmp_path / "scan.mha", TransformMatrix=matrix))
    np.testing.assert_allclose(np.array(volume.geometry.direction_lps)[:, ::-1], turn, atol=2e-3)


def test_a_label_map_of_many_labels_is_refused(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(1, 25, dtype=np.uint8), 100).reshape(24, 10, 10).repeat(2, axis=2)
    with pytest.raises(InputError, match="label map"):
        read_volume(save(labels, tmp_path / "labels.nii.gz"))
    coarse = np.random.default_rng(0).poisson(40, (12, 12, 12)).astype(np.uint8)
    assert read_volume(save(coarse, tmp_path / "pet.nii.gz")).array.max() == coarse.max()


def test_a_suffix_in_mixed_case_is_refused_and_not_passed_over(tmp_path: Path) -> None:
    save(body(), tmp_path / "scan.nii.gz").rename(tmp_path / "Scan.Nii.Gz")
    with pytest.raises(InputError, match=r"Rename it to end with \.nii\.gz"):
        read_volume(tmp_path)


@pytest.mark.parametrize("offset", [0.0, 352.0, 400.0])
def test_voxels_begin_where_the_header_says_and_never_in_it(offset: float, tmp_path: Path) -> None:
    # NIfTI-1: a single file has them from byte 352 on. ITK takes 0 for 348, and every voxel for its neighbour.
    path = nifti(tmp_path / "scan.nii", offset=("f", 108, (offset,)))
    content = path.read_bytes()
    path.write_bytes(content[:352] + bytes(max(0, int(offset) - 352)) + content[352:])
    np.testing.assert_array_equal(read_volume(path).array, body())


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_axes_off_by_a_rounding_are_straightened(suffix: str, tmp_path: Path) -> None:
    # The second column of the sform leans by 6e-4: ITK refuses it, three decimals make as much.
    plain = nifti(tmp_path / "plain.nii", lean=("4f", 280, (-2.0, 3.0 * 6e-4, 0.0, 0.0)), no_qform=("h", 252, (0,)))
    path = tmp_path / f"scan{suffix}"
    path.write_bytes(gzip.compress(plain.read_bytes()) if suffix == ".nii.gz" else plain.read_bytes())
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array, body())
    np.testing.assert_allclose(volume.geometry.spacing_mm, (4.0, 3.0, 2.0), rtol=1e-5)
    assert any("straight" in note for note in volume.notes)


def test_a_name_that_is_wrong_about_compression(tmp_path: Path) -> None:
    plain = nifti(tmp_path / "plain.nii")
    (tmp_path / "unpacked.nii.gz").write_bytes(plain.read_bytes())
    np.testing.assert_array_equal(read_volume(tmp_path / "unpacked.nii.gz").array, body())
    (tmp_path / "packed.nii").write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(InputError, match=r"Rename it to \.nii\.gz"):
        read_volume(tmp_path / "packed.nii")


@pytest.mark.parametrize("name", ["SCAN.NII.GZ", "scan.NII", "scan.MHA", "scan.NRRD", "naïve scan.nii.gz"])
def test_case_blanks_and_accents_in_names_do_not_matter(name: str, tmp_path: Path) -> None:
    save(body(), tmp_path / f"scan{Path(name).suffix.lower() if 'gz' not in name.lower() else '.nii.gz'}").rename(
        tmp_path / name
    )
    np.testing.assert_array_equal(read_volume(tmp_path / name).array, body())


def test_a_name_that_is_no_utf8_is_refused_and_does_not_end_the_process(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/J\xe4ger.nii"))
    save(body(), tmp_path / "scan.nii").rename(path)
    with pytest.raises(InputError, match="UTF-8"):
        read_volume(path)


@pytest.mark.parametrize("spacing", [0.01, 100.0])
def test_an_impossible_voxel_size_is_refused(spacing: float, tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(body())
    image.SetSpacing((spacing, 4.0, 4.0))
    sitk.WriteImage(image, str(tmp_path / "scan.mha"))
    with pytest.raises(InputError, match="mm a side"):
        read_volume(tmp_path / "scan.mha")


@pytest.mark.parametrize(
    ("suffix", "old", "new", "reason"),
    [
        (".mha", b"ElementSpacing = 2 3 4\n", b"", "does not state its voxel size"),
        (".mha", b"ElementDataFile = LOCAL", b"ElementDataFile = x.raw", "another file"),
        (".nrrd", b"space directions: ", b"# space directions: ", "does not state its voxel size"),
        (".nrrd", b"space: left-posterior-superior", b"space: scanner-xyz", "does not say how the patient lies in it"),
        (".nrrd", b"space: left-posterior-superior", b"space dimension: 3", "space is absent"),
        (
            ".nrrd",
            b"space: left-posterior-superior\n",
            b'space: left-posterior-superior\nspace units: "cm" "cm" "cm"\n',
            "in cm",
        ),
        (".nrrd", b"space: left", b'units: "cm" "cm" "cm"\nspace: left', "in cm"),
    ],
    ids=["no spacing", "raw beside", "no directions", "other space", "no space", "cm", "units"],
)
def test_a_header_without_voxel_size_or_voxels_is_refused(
    suffix: str, old: bytes, new: bytes, reason: str, tmp_path: Path
) -> None:
    image = sitk.GetImageFromArray(body())
    image.SetSpacing((2.0, 3.0, 4.0))
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(image, str(path))
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    with pytest.raises(InputError, match=reason):
        read_volume(path)


def test_an_unknown_unit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected suvbw, bqml, unknown"):
        read_volume(save(body(), tmp_path / "scan.nii"), "SUV")
