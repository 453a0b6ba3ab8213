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
_GAP_PIXELS = 20  # white round each panel, in which its letters stand, near to it
_SURROUNDINGS_MM = 70.0  # shown round a lesion's hottest voxel on each side
_VISIBLE, _MARGIN_MM = 0.03, 15.0  # what of black is more than the noise in air; kept around it
_MARKS = (("R", "L"), ("R", "L"), ("A", " "))  # at the left and right edge of each panel
_SUV_RANGE = 10.0  # black at this SUV, the usual window of FDG reading
_OUTLINES = {2: (0, 90, 230), 1: (220, 0, 30)}  # of other lesions, and of what the picture is about
_INK = (90, 90, 90)
_BARS_MM = (50.0, 20.0, 10.0, 5.0, 2.0)  # of the scale: the longest that the axial panel is wide enough for
_TEXT_PIXELS = 16

_UNIT_TEXTS = {Unit.BQML: "Bq/ml", Unit.UNKNOWN: "in the scan's own unit"}

# 5 x 5 pixels a letter, one row a string.
_LETTERS = {
    "A": ("01110", "10001", "11111", "10001", "10001"),
    "L": ("10000", "10000", "10000", "10000", "11111"),
    "R": ("11110", "10001", "11110", "10010", "10001"),
}


def render_preview(volume: Volume, mask: MaskArray, cut: bool = False) -> RgbArray:
    """Axial, coronal and sagittal projections side by side, RGB `(rows, columns, 3)`.

    Radiological view: the patient's right is on the picture's left, head up, and in the sagittal view the front on
    the left (the letters R, L and A say so). Inverted grey, see `grey_window`; it and a scale stand below. The red
    line is the outline of the mask's own projection. `cut` leaves out the air around.
    """
    orientation = volume.geometry.orientation
    array, mask = orientation.to_canonical(volume.array), orientation.to_canonical(mask)
    if cut:
        shown = (array > _VISIBLE * _black(volume)) | (mask > 0)
        around = [round(_MARGIN_MM / step) for step in volume.geometry.canonical_spacing_mm]
        box = bounding_box(shown, around) if shown.any() else ...
        array, mask = array[box], mask[box]
    planes = [(array.max(axis=axis), mask.max(axis=axis)) for axis in range(3)]
    return _page(planes, volume, _LARGEST_PIXEL_MM)


def render_lesion(volume: Volume, labels: npt.NDArray[np.integer], label: int) -> RgbArray:
    """Axial, coronal and sagittal slices through a lesion's hottest voxel, cut to its surroundings; as the preview.

    Its outline is red, that of other lesions blue.
    """
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
    whose = np.where(labels[around] == label, 1, 2 * (labels[around] > 0))
    planes = [(array[around].take(within[axis], axis), whose.take(within[axis], axis)) for axis in range(3)]
    return _page(planes, volume, _LESION_PIXEL_MM)


def grey_window(volume: Volume) -> str:
    """Which values are white and black in the pictures of a scan."""
    return _window_text(volume.unit, _black(volume))


def _window_text(unit: Unit, black: float) -> str:
    if unit is Unit.SUVBW:
        return f"white 0, black SUVbw {black:g}"
    return f"white 0, black {black:.3g} {_UNIT_TEXTS[unit]}"


def _black(volume: Volume) -> float:
    """SUV 10; without SUV the 99.9th percentile, or, of a scan that is nearly empty, its largest value."""
    if volume.unit is Unit.SUVBW:
        return _SUV_RANGE
    percentile = float(np.percentile(volume.array, 99.9))
    return percentile if percentile > 0 else float(volume.array.max())


def _page(planes: Sequence[tuple[FloatArray, npt.NDArray[np.integer]]], volume: Volume, largest_mm: float) -> RgbArray:
    """The axial, coronal and sagittal plane, each with its mask, of canonical axes, side by side on white."""
    spacing_mm, black = volume.geometry.canonical_spacing_mm, _black(volume)
    pixel_mm = min(largest_mm, *spacing_mm)  # no voxel of a lesion falls between two pixels
    panels = []
    for axis, (plane, mask) in enumerate(planes):
        plane_mm = _plane_spacing(spacing_mm, axis)
        grey = _to_square_pixels(plane, plane_mm, pixel_mm, sitk.sitkLinear)
        whose = _to_square_pixels(mask, plane_mm, pixel_mm, sitk.sitkNearestNeighbor)
        panel = _panel(grey / max(black, 1e-12), whose)
        panel = panel[::-1] if axis else panel  # canonical z runs up, rows run down
        panels.append(_framed(panel, *_MARKS[axis]))
    height = max(panel.shape[0] for panel in panels)
    row = np.concatenate([_grown(panel, height, panel.shape[1]) for panel in panels], axis=1)
    field_mm = planes[0][0].shape[1] * spacing_mm[2]
    bar_mm = next((bar for bar in _BARS_MM if bar <= field_mm), 1.0)
    below = _legend(bar_mm, pixel_mm, _window_text(volume.unit, black))
    width = max(row.shape[1], below.shape[1])
    return np.concatenate([_grown(part, part.shape[0], width) for part in (row, below)])


def _framed(panel: RgbArray, left: str, right: str) -> RgbArray:
    """A panel with white round it, and at half height the letters beside it, where they hide and are hidden by none."""
    gap = _GAP_PIXELS
    framed = np.pad(panel, ((gap, gap), (gap, gap), (0, 0)), constant_values=255)
    for letter, column in ((left, gap - 12), (right, framed.shape[1] - gap + 2)):
        if letter in _LETTERS:
            glyph = np.array([[pixel == "1" for pixel in row] for row in _LETTERS[letter]]).repeat(2, 0).repeat(2, 1)
            top = framed.shape[0] // 2 - glyph.shape[0] // 2
            framed[top : top + glyph.shape[0], column : column + glyph.shape[1]][glyph] = _INK
    return framed


def _legend(bar_mm: float, pixel_mm: float, window: str) -> RgbArray:
    """A bar of this length, and what it and the greys mean."""
    from PIL import Image, ImageDraw, ImageFont  # not every run draws

    font, text = ImageFont.load_default(_TEXT_PIXELS), f"{bar_mm / 10:g} cm; {window}"
    pixels = max(1, round(bar_mm / pixel_mm))
    start = _GAP_PIXELS + pixels + 8
    legend = Image.new("RGB", (start + round(font.getlength(text)) + _GAP_PIXELS, _TEXT_PIXELS + _GAP_PIXELS), "white")
    drawing = ImageDraw.Draw(legend)
    middle = _TEXT_PIXELS // 2
    drawing.rectangle((_GAP_PIXELS, middle - 1, _GAP_PIXELS + pixels - 1, middle + 1), fill=_INK)
    drawing.text((start, middle), text, fill=_INK, font=font, anchor="lm")
    return np.asarray(legend)


def _grown(picture: RgbArray, height: int, width: int) -> RgbArray:
    """A picture with white below it and at its right."""
    more = ((0, height - picture.shape[0]), (0, width - picture.shape[1]), (0, 0))
    return np.pad(picture, more, constant_values=255)


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


def _panel(darkness: FloatArray, whose: FloatArray) -> RgbArray:
    shade = 255 * (1 - np.clip(darkness, 0, 1))
    panel = np.repeat(shade[..., None], 3, axis=2).astype(np.uint8)
    for number, colour in _OUTLINES.items():
        panel[(whose == number) & ~_eroded(whose == number)] = colour
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
