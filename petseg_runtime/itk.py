"""Arrays `(z, y, x)` with their geometry as ITK's images, whose axes are x, y, z: they turn round here."""

from __future__ import annotations

import SimpleITK as sitk

from petseg_runtime.volume import FloatArray, Geometry, MaskArray


def itk_image(array: FloatArray | MaskArray, geometry: Geometry) -> sitk.Image:
    """The array as an image, placed in the patient."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing_mm[::-1])
    image.SetOrigin(geometry.origin_lps_mm)
    image.SetDirection(itk_direction(geometry))
    return image


def itk_direction(geometry: Geometry) -> list[float]:
    """The direction cosines, row-major; ours have a column for each of z, y, x, ITK's for x, y, z."""
    return [cosine for row in geometry.direction_lps for cosine in row[::-1]]
