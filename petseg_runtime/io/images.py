"""Image files (NIfTI, MHA, NRRD) to Volume and back, through SimpleITK. Here, and only here, x y z becomes z y x."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from petseg_runtime.errors import InputError
from petseg_runtime.io.nifti_check import check_nifti
from petseg_runtime.volume import FloatArray, Geometry, MaskArray, Unit, Volume

IMAGE_SUFFIXES = (".nii", ".nii.gz", ".mha", ".nrrd")

# More voxels than any PET: a total-body scan of 440 x 440 x 1600. A header that claims more is not believed.
MAX_VOXELS = 1_000_000_000
# A PET holds many thousands of different values, a label map a handful.
_LABEL_MAP_VALUES = 16
# Reconstructions without a positivity constraint go a little below zero; CT goes down to -1000.
MOST_NEGATIVE_UPTAKE = 0.1


def read_image(path: Path, unit: Unit = Unit.UNKNOWN) -> Volume:
    """Read a PET volume.

    Parameters
    ----------
    path : a .nii, .nii.gz, .mha or .nrrd file of three dimensions and one number a voxel.
    unit : what the numbers mean; these formats do not say.

    Raises
    ------
    InputError : if the file is absent, unreadable, not three-dimensional, or holds NaN, nothing, or labels.
    """
    image = _read(path, sitk.sitkFloat32)
    array: FloatArray = sitk.GetArrayFromImage(image)
    _check_uptake(array, path)
    return Volume(array, _geometry(image, path), unit)


def read_mask(path: Path) -> tuple[MaskArray, Geometry]:
    """Read a mask: 1 where the file is not zero.

    Raises
    ------
    InputError : if the file is absent, unreadable or not three-dimensional.
    """
    image = _read(path, sitk.sitkUnknown)
    return (sitk.GetArrayViewFromImage(image) != 0).astype(np.uint8), _geometry(image, path)


def write_image(array: MaskArray | FloatArray, geometry: Geometry, path: Path) -> None:
    """Write an array `(z, y, x)` with its geometry; the suffix of `path` chooses the format."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing_mm[::-1])
    image.SetOrigin(geometry.origin_lps_mm)
    # Columns are array axes z, y, x; ITK wants x, y, z, row-major.
    image.SetDirection([cosine for row in geometry.direction_lps for cosine in row[::-1]])
    sitk.WriteImage(image, str(path), useCompression=True)


def _read(path: Path, pixel_type: int) -> sitk.Image:
    if not path.is_file():
        raise InputError(f"{path.name} does not exist. Pass a {', '.join(IMAGE_SUFFIXES)} file or a DICOM folder.")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path.name} cannot be read as an image: {_reason(error)}. Get the file again.") from error
    size = reader.GetSize()
    if len(size) == 4 and size[3] == 1:  # one volume, written as a time series of one
        size = size[:3]
        reader.SetExtractSize([*size, 0])
    if len(size) != 3 or min(size) < 2:
        raise InputError(f"{path.name} is {' x '.join(map(str, size))} voxels, expected one three-dimensional volume.")
    if reader.GetNumberOfComponents() != 1:
        raise InputError(f"{path.name} has {reader.GetNumberOfComponents()} numbers a voxel, expected one.")
    if np.prod(size, dtype=np.float64) > MAX_VOXELS:
        raise InputError(f"{path.name} claims {' x '.join(map(str, size))} voxels, more than a PET scan can have.")
    if path.name.lower().endswith((".nii", ".nii.gz")):
        check_nifti(path)
    reader.SetOutputPixelType(pixel_type)
    try:
        return reader.Execute()
    except RuntimeError as error:
        raise InputError(f"The voxels of {path.name} cannot be read: {_reason(error)}. Get the file again.") from error


def _check_uptake(array: FloatArray, path: Path) -> None:
    if not np.isfinite(array).all():
        raise InputError(
            f"{path.name} holds {int((~np.isfinite(array)).sum())} voxels that are NaN or infinite. "
            "Repair the scan; PETSeg does not fill gaps in it."
        )
    low, high = float(array.min()), float(array.max())
    if low == high:
        raise InputError(f"{path.name} holds the same value ({low:g}) in every voxel: there is no uptake in it.")
    if high <= 0:
        raise InputError(f"{path.name} holds no positive value (largest {high:g}), expected PET uptake.")
    if low < -MOST_NEGATIVE_UPTAKE * high:
        raise InputError(
            f"{path.name} holds values from {low:g} to {high:g}, and PET has no such negative uptake: is it CT? "
            "Pass the PET."
        )
    if _is_label_map(array):
        raise InputError(f"{path.name} holds a few whole numbers only: a mask or label map, not a PET scan.")


def _geometry(image: sitk.Image, path: Path) -> Geometry:
    x, y, z = image.GetSize()
    rows = np.asarray(image.GetDirection()).reshape(3, 3)[:, ::-1]
    sx, sy, sz = image.GetSpacing()
    ox, oy, oz = image.GetOrigin()
    try:
        return Geometry((z, y, x), (sz, sy, sx), (ox, oy, oz), tuple(tuple(map(float, row)) for row in rows))  # type: ignore[arg-type]
    except ValueError as error:
        raise InputError(f"{path.name} has a geometry that cannot be right: {error}.") from error


def _is_label_map(array: FloatArray) -> bool:
    sample = array.ravel()[:: max(1, array.size // 1_000_000)]
    values = np.unique(sample)
    return len(values) <= _LABEL_MAP_VALUES and bool((values == np.round(values)).all())


def _reason(error: RuntimeError) -> str:
    """Why ITK refused, without its text, which holds the path."""
    if "orthonormal" in str(error):
        return "its axes are not at right angles"
    return "damaged, truncated or of another kind"
