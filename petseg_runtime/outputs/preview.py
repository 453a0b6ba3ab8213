"""Pictures of a scan with the outline of its mask: projections, and slices through a lesion."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from petseg_runtime.outputs.files import whole_file
from petseg_runtime.volume import FloatArray, MaskArray, Triple, Unit, Volume, bounding_box

RgbArray = npt.NDArray[np.uint8]

_LARGEST_PIXEL_MM, _LESION_PIXEL_MM = 1.5, 0.5
_GAP_PIXELS = 12
_SURROUNDINGS_MM = 70.0  # shown round a lesion's hottest voxel on each side
_VISIBLE, _MARGIN_MM = 0.03, 15.0  # what of black is more than the noise in air; kept around it
_MARKS = (("R", "L"), ("R", "L"), ("A", " "))  # at the left and right edge of each panel
_SUV_RANGE = 10.0  # black at this SUV, the usual window of FDG reading
_OUTLINE = (220, 0, 30)
_LETTER = (90, 90, 90)

# 5 x 5 pixels a letter, one row a string.
_LETTERS = {
    "A": ("01110", "10001", "11111", "10001", "10001"),
    "L": ("10000", "10000", "10000", "10000", "11111"),
    "R": ("11110", "10001", "11110", "10010", "10001"),
}


def render_preview(volume: Volume, mask: MaskArray, cut: bool = False) -> RgbArray:
    """Axial, coronal and sagittal projections side by side, RGB `(rows, columns, 3)`.

    Radiological view: the patient's right is on the picture's left, head up, and in the sagittal view the front on
    the left (the letters R, L and A say so). Inverted grey; black is SUV 10, or the 99.9th percentile where the
    unit is unknown. The red line is the outline of the mask's own projection. `cut` leaves out the air around.
    """
    orientation = volume.geometry.orientation
    array, mask = orientation.to_canonical(volume.array), orientation.to_canonical(mask)
    if cut:
        shown = (array > _VISIBLE * _black(volume)) | (mask > 0)
        around = [round(_MARGIN_MM / step) for step in volume.geometry.canonical_spacing_mm]
        box = bounding_box(shown, around) if shown.any() else ...
        array, mask = array[box], mask[box]
    planes = [(array.max(axis=axis), mask.max(axis=axis)) for axis in range(3)]
    return _page(planes, volume.geometry.canonical_spacing_mm, _black(volume), _LARGEST_PIXEL_MM)


def render_lesion(volume: Volume, labels: npt.NDArray[np.integer], label: int) -> RgbArray:
    """Axial, coronal and sagittal slices through a lesion's hottest voxel, cut to its surroundings; as the preview."""
    orientation = volume.geometry.orientation
    array, labels = orientation.to_canonical(volume.array), orientation.to_canonical(labels)
    box = bounding_box(labels == label)
    own = np.where(labels[box] == label, array[box], -np.inf)
    hottest = np.array(np.unravel_index(int(own.argmax()), own.shape)) + [side.start for side in box]
    spacing_mm = volume.geometry.canonical_spacing_mm
    reach = [round(_SURROUNDINGS_MM / step) for step in spacing_mm]
    around = tuple(
        slice(max(0, min(side.start, place - n)), max(side.stop, place + n + 1))
        for side, place, n in zip(box, hottest.tolist(), reach)
    )
    within = hottest - [side.start for side in around]
    planes = [
        (array[around].take(within[axis], axis), (labels[around] > 0).take(within[axis], axis)) for axis in range(3)
    ]
    return _page(planes, spacing_mm, _black(volume), _LESION_PIXEL_MM)


def _black(volume: Volume) -> float:
    return _SUV_RANGE if volume.unit is Unit.SUVBW else float(np.percentile(volume.array, 99.9))


def _page(
    planes: Sequence[tuple[FloatArray, npt.NDArray[np.generic]]], spacing_mm: Triple, black: float, largest_mm: float
) -> RgbArray:
    """The axial, coronal and sagittal plane, each with its mask, of canonical axes, side by side on white."""
    pixel_mm = min(largest_mm, *spacing_mm)  # no voxel of a lesion falls between two pixels
    panels = []
    for axis, (plane, mask) in enumerate(planes):
        plane_mm = _plane_spacing(spacing_mm, axis)
        grey = _to_square_pixels(plane, plane_mm, pixel_mm, sitk.sitkLinear)
        inside = _to_square_pixels(mask, plane_mm, pixel_mm, sitk.sitkNearestNeighbor) > 0
        panel = _panel(grey / max(black, 1e-12), inside)
        panel = panel[::-1] if axis else panel  # canonical z runs up, rows run down
        panel = np.ascontiguousarray(panel)
        left, right = _MARKS[axis]
        _stamp(panel, left, left=True)
        _stamp(panel, right, left=False)
        panels.append(panel)
    height = max(panel.shape[0] for panel in panels) + 2 * _GAP_PIXELS
    width = sum(panel.shape[1] + _GAP_PIXELS for panel in panels) + _GAP_PIXELS
    page = np.full((height, width, 3), 255, dtype=np.uint8)
    column = _GAP_PIXELS
    for panel in panels:
        page[_GAP_PIXELS : _GAP_PIXELS + panel.shape[0], column : column + panel.shape[1]] = panel
        column += panel.shape[1] + _GAP_PIXELS
    return page


def write_preview(volume: Volume, mask: MaskArray, path: Path) -> None:
    """Write the preview as PNG."""
    with whole_file(path) as temporary:
        temporary.write_bytes(as_png(render_preview(volume, mask)))


def as_png(picture: RgbArray) -> bytes:
    """A picture as the content of a PNG file."""
    from PIL import Image  # not every run draws

    content = io.BytesIO()
    Image.fromarray(picture).save(content, "PNG", optimize=True)
    return content.getvalue()


def _plane_spacing(spacing_mm: Triple, projected: int) -> tuple[float, float]:
    rows, columns = (step for axis, step in enumerate(spacing_mm) if axis != projected)
    return rows, columns


def _panel(darkness: FloatArray, inside: npt.NDArray[np.bool_]) -> RgbArray:
    shade = 255 * (1 - np.clip(darkness, 0, 1))
    panel = np.repeat(shade[..., None], 3, axis=2).astype(np.uint8)
    panel[inside & ~_eroded(inside)] = _OUTLINE
    return panel


def _to_square_pixels(
    plane: npt.NDArray[np.generic], spacing_mm: tuple[float, float], pixel_mm: float, how: int
) -> FloatArray:
    image = sitk.GetImageFromArray(np.ascontiguousarray(plane, dtype=np.float32))
    image.SetSpacing(spacing_mm[::-1])
    image.SetOrigin([step / 2 for step in spacing_mm[::-1]])
    resampler = sitk.ResampleImageFilter()
    resampler.SetInterpolator(how)
    resampler.SetUseNearestNeighborExtrapolator(True)
    resampler.SetOutputSpacing([pixel_mm, pixel_mm])
    resampler.SetOutputOrigin([pixel_mm / 2, pixel_mm / 2])
    resampler.SetSize([max(1, round(n * step / pixel_mm)) for n, step in zip(plane.shape[::-1], spacing_mm[::-1])])
    resampled: FloatArray = sitk.GetArrayFromImage(resampler.Execute(image))
    return resampled


def _eroded(inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    padded = np.pad(inside, 1)
    return padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def _stamp(panel: RgbArray, letter: str, left: bool) -> None:
    """Draw a letter at half height at the left or right edge."""
    if letter not in _LETTERS:
        return
    glyph = np.array([[pixel == "1" for pixel in row] for row in _LETTERS[letter]]).repeat(2, 0).repeat(2, 1)
    rows, columns = glyph.shape
    top = max(0, panel.shape[0] // 2 - rows // 2)
    here = panel[top : top + rows, 2 : 2 + columns] if left else panel[top : top + rows, -2 - columns : -2]
    if here.shape[:2] == glyph.shape:
        here[glyph] = _LETTER
