"""Image files (NIfTI, MHA, NRRD) to Volume and back, through SimpleITK. Here, and only here, x y z becomes z y x."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from petseg_runtime.errors import InputError
from petseg_runtime.io.identity import check_utf8
from petseg_runtime.io.meta_and_nrrd import check_mha, check_nrrd
from petseg_runtime.io.nifti import check_nifti, holds_voxels, read_nifti_voxels, straightened
from petseg_runtime.io.plausible import MAX_VOXELS, check_grid, check_modality, check_uptake
from petseg_runtime.itk import itk_image
from petseg_runtime.volume import FloatArray, Geometry, MaskArray, Unit, Volume

# By suffix: what ITK passes over in silence, and ITK's reader, which by itself would judge by the suffix's case.
_NIFTI = "NiftiImageIO"
_FORMATS = {
    ".nii.gz": (check_nifti, _NIFTI),
    ".nii": (check_nifti, _NIFTI),
    ".mha": (check_mha, "MetaImageIO"),
    ".nrrd": (check_nrrd, "NrrdImageIO"),
}
IMAGE_SUFFIXES = tuple(_FORMATS)
# Largest deviation of a cosine from the nearest straight grid: the rounding of three decimals.
RIGHT_ANGLE_TOLERANCE = 1e-3
_TWO_SPACES = (
    "The file's qform and sform state two spaces; the sform's was taken, and is the only one of the mask: in programs "
    "that go by the qform the two lie apart. Check it there."
)
# Axes within this of right angles stay as they are written, so that a mask has the scan's own.
_SAME_AXES = 5e-4
_STRAIGHTENED = "The scan's axes are off the right angle by a rounding of decimals; the nearest straight grid is used."


class _Image(NamedTuple):
    array: npt.NDArray[Any]  # (z, y, x)
    geometry: Geometry
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def image_suffix(path: Path) -> str:
    """The suffix that tells the format, in lower case; empty if it is none of ours."""
    return next((suffix for suffix in IMAGE_SUFFIXES if path.name.lower().endswith(suffix)), "")


def read_image(path: Path, unit: Unit = Unit.UNKNOWN, max_voxels: int = MAX_VOXELS) -> Volume:
    """Read a PET volume.

    Parameters
    ----------
    path : a .nii, .nii.gz, .mha or .nrrd file of three dimensions and one number a voxel.
    unit : what the numbers mean; these formats do not say.
    max_voxels : see `plausible.check_grid`.

    Raises
    ------
    MemoryBudgetError : if it has more voxels than that.
    InputError : if the file is absent, unreadable, not three-dimensional, or holds NaN, nothing, CT or labels.
    """
    array, geometry, notes, warnings = _read(path, sitk.sitkFloat32, max_voxels)
    check_uptake(array, path.name)
    check_modality(array, path.name)
    return Volume(array, geometry, unit, notes, warnings)


def read_mask(path: Path) -> tuple[MaskArray, Geometry]:
    """Read a mask: 1 where the file is not zero, and there it holds one number only, such as 1 or 255.

    Raises
    ------
    InputError : if the file is absent, unreadable or not three-dimensional, or holds several labels, probabilities or a
        scan: what of it is the tumour, nobody knows.
    """
    array, geometry, *_ = _read(path, sitk.sitkUnknown)
    inside = array != 0
    values = np.unique(array[inside])
    if len(values) > 1 or not (values > 0).all():
        some = ", ".join(f"{value:g}" for value in values[:3]) + (" and more" if len(values) > 3 else "")
        raise InputError(
            f"{path.name} is no mask: it holds {some} beside zero, expected one number. Save the tumour's label alone."
        )
    return inside.astype(np.uint8), geometry


def write_image(array: MaskArray | FloatArray, geometry: Geometry, path: Path) -> None:
    """Write an array `(z, y, x)` with its geometry; the suffix of `path` chooses the format.

    Raises
    ------
    RuntimeError : if the file cannot be written, or is not whole, as on a full disk.
    """
    sitk.WriteImage(itk_image(array, geometry), str(path), useCompression=True)
    if _FORMATS[image_suffix(path)][1] == _NIFTI and not holds_voxels(path, array.nbytes):
        raise RuntimeError(f"{path.name} is not whole.")


def _read(path: Path, pixel_type: int, max_voxels: int = MAX_VOXELS) -> _Image:
    if not path.is_file():
        raise InputError(f"{path.name} does not exist. Pass a {', '.join(IMAGE_SUFFIXES)} file or a DICOM folder.")
    suffix = image_suffix(path)
    if not suffix:
        raise InputError(f"{path.name} is not a {', '.join(IMAGE_SUFFIXES)} file. Save it as one.")
    if not path.name.endswith((suffix, suffix.upper())):  # ITK's readers go by it
        raise InputError(f"{path.name} has a suffix in mixed case. Rename it to end with {suffix}.")
    check_utf8(path)
    check, reader_name = _FORMATS[suffix]
    has_two_spaces = check(path)
    warnings = (_TWO_SPACES,) if has_two_spaces else ()
    is_straight = True
    try:
        try:
            with straightened(path) if has_two_spaces else nullcontext(path) as header:
                reader = _header(header, reader_name, pixel_type)
        except RuntimeError as error:
            if "orthonormal" not in str(error):
                raise
            with straightened(path) as copy:
                reader = _header(copy, reader_name, pixel_type)
            is_straight = False
        geometry, straight = _geometry(reader, path.name, max_voxels)
        notes = () if straight and is_straight else (_STRAIGHTENED,)
        if reader_name == _NIFTI:
            return _Image(read_nifti_voxels(path, geometry.shape), geometry, notes, warnings)
        return _Image(sitk.GetArrayFromImage(reader.Execute()), geometry, notes, warnings)
    except RuntimeError as error:
        raise InputError(
            f"{path.name} cannot be read: damaged, truncated or of another kind. Get the file again."
        ) from error


def _header(path: Path, reader_name: str, pixel_type: int) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO(reader_name)
    reader.SetFileName(str(path))
    reader.SetOutputPixelType(pixel_type)
    reader.ReadImageInformation()
    return reader


def _geometry(reader: sitk.ImageFileReader, name: str, max_voxels: int) -> tuple[Geometry, bool]:
    """Where the voxels lie, of a header that claims one volume of a plausible size; nothing is allocated before.

    Also whether the header's axes are straight as they stand.
    """
    size = reader.GetSize()
    dimensions = len(size)
    if dimensions == 4 and size[3] == 1:  # one volume, written as a time series of one
        reader.SetExtractSize([*size[:3], 0])
        size = size[:3]
    if len(size) != 3 or min(size) < 2:
        raise InputError(f"{name} is {' x '.join(map(str, size))} voxels, expected one three-dimensional volume.")
    if reader.GetNumberOfComponents() != 1:
        raise InputError(f"{name} has {reader.GetNumberOfComponents()} numbers a voxel, expected one.")
    (x, y, z), (sx, sy, sz), (ox, oy, oz) = size, reader.GetSpacing()[:3], reader.GetOrigin()[:3]
    check_grid((z, y, x), (sz, sy, sx), name, max_voxels)
    direction = np.asarray(reader.GetDirection()).reshape(dimensions, dimensions)[:3, 2::-1]
    u, _, vt = np.linalg.svd(direction)
    if np.abs(u @ vt - direction).max() > RIGHT_ANGLE_TOLERANCE:
        raise InputError(f"The axes of {name} are not at right angles. Resample it to a straight grid.")
    straight = np.allclose(direction @ direction.T, np.eye(3), rtol=0, atol=_SAME_AXES)
    a, b, c = (tuple(float(cosine) for cosine in row) for row in (direction if straight else u @ vt))
    return Geometry((z, y, x), (sz, sy, sx), (ox, oy, oz), (a, b, c)), straight  # type: ignore[arg-type]
