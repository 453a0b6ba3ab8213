"""Preview: left is left, up is up and front is front in every geometry, for the grey picture and for the red line."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import GEOMETRIES

from petseg_runtime.outputs.preview import grey_window, render_lesion, render_preview
from petseg_runtime.volume import Geometry, Unit, Volume

# The two directions of each panel, rows from the top and columns from the left, as indices into (L, P, S) and the
# sign in which the picture runs: axial from front to back, coronal and sagittal from head to feet, axial and coronal
# from the patient's right to the left, sagittal from front to back.
L, P, S = 0, 1, 2
PANELS = {"axial": ((P, 1), (L, 1)), "coronal": ((S, -1), (L, 1)), "sagittal": ((S, -1), (P, 1))}

# Far enough from the middle, along each axis of every geometry, that a ball of 12 mm lies in one half; three distances,
# so that no two axes can be exchanged.
OFFSET_LPS_MM = (40.0, -28.0, 18.0)
RADIUS_MM = 12.0

TISSUE = 3.0  # SUV of what is neither lesion nor hot; grey, so that only the page around the panels is white
HOT = 12.0

UPRIGHT = sorted(set(GEOMETRIES) - {"oblique"})  # the geometries whose axes lie along the patient's

GLYPHS = {
    "R": """
        ####.
        #...#
        ####.
        #..#.
        #...#
    """,
    "L": """
        #....
        #....
        #....
        #....
        #####
    """,
    "A": """
        .###.
        #...#
        #####
        #...#
        #...#
    """,
}


def ball(geometry: Geometry, offset_lps_mm: np.ndarray | tuple[float, ...], radius_mm: float = RADIUS_MM) -> np.ndarray:
    """Voxels within `radius_mm` of the point that lies `offset_lps_mm` from the middle of the scan."""
    position_lps_mm = geometry.to_lps_mm(np.stack(np.indices(geometry.shape), axis=-1))
    middle_lps_mm = geometry.to_lps_mm((np.array(geometry.shape) - 1) / 2)
    return np.linalg.norm(position_lps_mm - middle_lps_mm - np.asarray(offset_lps_mm), axis=-1) < radius_mm


def extent_lps_mm(geometry: Geometry) -> np.ndarray:
    """Size of the scan along L, P, S; exact where its axes lie along the patient's."""
    return np.abs(geometry.direction_lps) @ (np.array(geometry.shape) * geometry.spacing_mm)


def tissue(geometry: Geometry, unit: Unit = Unit.SUVBW) -> Volume:
    return Volume(np.full(geometry.shape, TISSUE, np.float32), geometry, unit)


def no_lesion(geometry: Geometry) -> np.ndarray:
    return np.zeros(geometry.shape, np.uint8)


def runs(printed: np.ndarray) -> list[slice]:
    """The stretches of a line that are printed."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], printed.astype(int), [0]))))
    return [slice(first, last) for first, last in zip(edges[::2], edges[1::2])]


def blocks_of(picture: np.ndarray) -> list[np.ndarray]:
    """The letters and panels of a page from left to right, parted by its white gaps."""
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    picture = picture[runs((picture < 255).any(axis=(1, 2)))[0]]  # the scale lies below
    blocks = [picture[:, columns] for columns in runs((picture < 255).any(axis=(0, 2)))]
    assert len(blocks) == 8, f"{len(blocks)} blocks, expected R, axial, L, R, coronal, L, A, sagittal"
    return blocks


def panels_of(picture: np.ndarray) -> dict[str, np.ndarray]:
    """The panels of a page, without the letters beside them."""
    blocks = blocks_of(picture)
    panels = {}
    for name, panel in zip(PANELS, (blocks[1], blocks[4], blocks[7])):
        rows = np.flatnonzero((panel < 255).any(axis=(1, 2)))
        panels[name] = panel[rows[0] : rows[-1] + 1]
    return panels


def bar_of(picture: np.ndarray) -> int:
    """Length of the scale's bar in pixels; it stands before its text."""
    (_, below) = runs((picture < 255).any(axis=(1, 2)))
    rows = picture[below]
    (bar, *_) = runs((rows < 255).any(axis=(0, 2)))
    return bar.stop - bar.start


def red(panel: np.ndarray) -> np.ndarray:
    return (panel[..., 0] > 180) & (panel[..., 1] < 60)


def black(panel: np.ndarray) -> np.ndarray:
    return panel.max(axis=2) < 60


def from_the_middle(there: np.ndarray) -> np.ndarray:
    """Rows and columns of the marked pixels, counted down and to the right from the middle of the panel."""
    assert there.any()
    return np.argwhere(there) - (np.array(there.shape) - 1) / 2


@pytest.mark.parametrize("octant", [1, -1], ids=["left front head", "right back feet"])
@pytest.mark.parametrize("name", sorted(GEOMETRIES))
def test_right_is_left_in_the_picture_the_head_up_and_the_front_up_or_left(name: str, octant: int) -> None:
    geometry = GEOMETRIES[name]
    lesion_lps_mm = octant * np.array(OFFSET_LPS_MM)
    array = np.where(ball(geometry, -lesion_lps_mm), HOT, TISSUE).astype(np.float32)  # a bladder, not in the mask
    picture = render_preview(Volume(array, geometry, Unit.SUVBW), ball(geometry, lesion_lps_mm).astype(np.uint8))
    for panel_name, panel in panels_of(picture).items():
        half = [np.sign(lesion_lps_mm[axis] * sign) for axis, sign in PANELS[panel_name]]
        # Every pixel of the line lies in the lesion's half, every black pixel in the opposite one.
        assert (from_the_middle(red(panel)) * half > 0).all(), panel_name
        assert (from_the_middle(black(panel)) * half < 0).all(), panel_name


@pytest.mark.parametrize("name", UPRIGHT)
def test_the_line_lies_at_the_lesions_place_in_millimetres(name: str) -> None:
    geometry = GEOMETRIES[name]
    picture = render_preview(tissue(geometry), ball(geometry, OFFSET_LPS_MM).astype(np.uint8))
    for panel_name, panel in panels_of(picture).items():
        axes, signs = (np.array(column) for column in zip(*PANELS[panel_name]))
        pixel_mm = extent_lps_mm(geometry)[axes] / panel.shape[:2]
        line_mm = from_the_middle(red(panel)) * pixel_mm
        middle_mm = (line_mm.min(axis=0) + line_mm.max(axis=0)) / 2
        # Half a voxel of 7.5 mm, by which the voxels of a ball may lie beside it.
        np.testing.assert_allclose(middle_mm, np.array(OFFSET_LPS_MM)[axes] * signs, atol=4.0, err_msg=panel_name)


@pytest.mark.parametrize("name", UPRIGHT)
def test_the_panels_share_one_scale(name: str) -> None:
    geometry = GEOMETRIES[name]
    panels = panels_of(render_preview(tissue(geometry), no_lesion(geometry)))
    pixel_mm = extent_lps_mm(geometry)[P] / panels["axial"].shape[0]
    for panel_name, panel in panels.items():
        expected = [extent_lps_mm(geometry)[axis] / pixel_mm for axis, _ in PANELS[panel_name]]
        np.testing.assert_allclose(panel.shape[:2], expected, atol=1.5, err_msg=panel_name)


def test_a_sphere_is_round_although_the_voxels_are_not_cubes() -> None:
    geometry = Geometry((60, 40, 20), (2.0, 3.0, 6.0))  # a cube of 120 mm
    sphere = ball(geometry, (0.0, 0.0, 0.0), radius_mm=36.0)
    for panel in panels_of(render_preview(tissue(geometry), sphere.astype(np.uint8))).values():
        radius_pixels = 36.0 / (120.0 / panel.shape[0])
        distances = np.linalg.norm(from_the_middle(red(panel)), axis=1)
        # A voxel of 6 mm has steps of four pixels.
        np.testing.assert_allclose(distances, radius_pixels, atol=3.0)
        assert np.argwhere(red(panel)).min() == pytest.approx(panel.shape[0] / 2 - radius_pixels, abs=2.5)


def test_only_the_outline_is_red_and_the_uptake_inside_is_seen() -> None:
    geometry = GEOMETRIES["axial"]
    lesion = ball(geometry, OFFSET_LPS_MM)
    array = np.where(lesion, HOT, TISSUE).astype(np.float32)
    for panel in panels_of(render_preview(Volume(array, geometry, Unit.SUVBW), lesion.astype(np.uint8))).values():
        rows, columns = np.nonzero(red(panel))
        middle = panel[(rows.min() + rows.max()) // 2, (columns.min() + columns.max()) // 2]
        np.testing.assert_array_equal(middle, 0)


def test_the_outline_is_closed_at_the_edge_of_the_scan() -> None:
    geometry = GEOMETRIES["axial"]
    for panel in panels_of(render_preview(tissue(geometry), np.ones(geometry.shape, np.uint8))).values():
        border = np.ones(panel.shape[:2], bool)
        border[1:-1, 1:-1] = False
        np.testing.assert_array_equal(red(panel), border)


def test_an_empty_mask_draws_no_red(volume: Volume) -> None:
    assert not red(render_preview(volume, no_lesion(volume.geometry))).any()


def test_a_single_hot_voxel_shows_in_every_panel() -> None:
    geometry = GEOMETRIES["axial"]
    volume = tissue(geometry)
    volume.array[ball(geometry, OFFSET_LPS_MM, radius_mm=6.0)] = 100.0
    for panel in panels_of(render_preview(volume, no_lesion(geometry))).values():
        assert black(panel).any()


def test_in_suv_ten_is_black_and_five_is_half_grey_whatever_else_is_hot() -> None:
    geometry = GEOMETRIES["axial"]
    array = np.full(geometry.shape, 5.0, np.float32)
    array[ball(geometry, (0.0, 0.0, 0.0))] = 10.0
    array[:4, :4, :4] = 500.0  # 0.3 % of the scan
    for panel in panels_of(render_preview(Volume(array, geometry, Unit.SUVBW), no_lesion(geometry))).values():
        assert panel[panel.shape[0] // 2, panel.shape[1] // 2].tolist() == [0, 0, 0]
        assert panel[-1, -1].tolist() == [127, 127, 127]


def white_inside(volume: Volume) -> bool:
    """Whether nothing shows in the panels; their places are known by the outline of all."""
    panels = panels_of(render_preview(volume, np.ones(volume.geometry.shape, np.uint8)))
    return all((panel[1:-1, 1:-1] == 255).all() for panel in panels.values())


def test_in_suv_air_is_white() -> None:
    geometry = GEOMETRIES["axial"]
    assert white_inside(Volume(np.zeros(geometry.shape, np.float32), geometry, Unit.SUVBW))


@pytest.mark.parametrize("unit", [Unit.UNKNOWN, Unit.BQML])
def test_without_suv_the_grey_does_not_depend_on_the_scale_of_the_numbers(unit: Unit, volume: Volume) -> None:
    none = no_lesion(volume.geometry)
    one, other = (
        blocks_of(render_preview(Volume(volume.array * np.float32(scale), volume.geometry, unit), none))
        for scale in (1.0, 4096.0)
    )
    for panel, same in zip(one, other, strict=True):
        assert np.abs(panel.astype(int) - same).max() <= 1
    assert one[1].min() == 0  # the ball of 12 in a body of 1 is black


def test_without_suv_a_stray_hot_voxel_does_not_bleach_the_body() -> None:
    geometry = GEOMETRIES["axial"]
    array = tissue(geometry).array
    array[ball(geometry, (0.0, 0.0, 0.0))] = 2 * TISSUE  # 0.3 % of the scan: black, and tissue half of it
    array[0, 0, 0] = 1e6  # 0.004 % of the scan
    panels = panels_of(render_preview(Volume(array, geometry, Unit.UNKNOWN), no_lesion(geometry)))
    for panel in panels.values():
        assert panel[panel.shape[0] // 2, panel.shape[1] // 2].tolist() == [0, 0, 0]
        assert panel[-1, -1].tolist() == [127, 127, 127]


def test_without_suv_a_scan_of_zeros_is_a_white_page_and_no_division_by_zero() -> None:
    geometry = GEOMETRIES["axial"]
    with np.errstate(all="raise"):
        assert white_inside(Volume(np.zeros(geometry.shape, np.float32), geometry))


def glyph_in(block: np.ndarray) -> str:
    """A letter as a table of five rows."""
    ink = (block < 255).any(axis=-1)
    rows, columns = np.nonzero(ink)
    ink = ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert ink.shape[0] % 5 == 0
    assert ink.shape[1] % 5 == 0
    cells = ink[:: ink.shape[0] // 5, :: ink.shape[1] // 5]
    return "\n".join("".join("#" if cell else "." for cell in row) for row in cells)


def assert_lettered(picture: np.ndarray) -> None:
    """R and L beside the axial and the coronal panel, A before the sagittal one, each at half the panel's height."""
    blocks = blocks_of(picture)
    for letter, number, panel in (("R", 0, 1), ("L", 2, 1), ("R", 3, 4), ("L", 5, 4), ("A", 6, 7)):
        assert glyph_in(blocks[number]) == "\n".join(GLYPHS[letter].split())
        beside, of = (np.flatnonzero((blocks[place] < 255).any(axis=(1, 2))) for place in (number, panel))
        assert (beside[0] + beside[-1]) / 2 == pytest.approx((of[0] + of[-1]) / 2, abs=2)


@pytest.mark.parametrize("name", sorted(GEOMETRIES))
def test_letters_say_which_side_is_which(name: str) -> None:
    assert_lettered(render_preview(tissue(GEOMETRIES[name]), no_lesion(GEOMETRIES[name])))


def test_a_letter_shows_whatever_the_grey_beside_it() -> None:
    """SUV 6.5 has the letters' own grey, 10 is black."""
    for suv in (6.5, 10.0):
        volume = tissue(GEOMETRIES["axial"])
        volume.array[...] = suv
        assert_lettered(render_preview(volume, no_lesion(volume.geometry)))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 4), (1, 60, 2), (60, 1, 1)], ids=str)
def test_a_tiny_volume_has_its_letters_too(shape: tuple[int, int, int]) -> None:
    geometry = Geometry(shape, (0.5, 0.5, 0.5))  # a voxel is less than a pixel
    for panel in panels_of(render_preview(tissue(geometry), np.ones(shape, np.uint8))).values():
        assert red(panel).any()
    picture = render_preview(tissue(geometry), no_lesion(geometry))
    for panel in panels_of(picture).values():
        assert (panel == panel[0, 0]).all()
    assert_lettered(picture)


@pytest.mark.parametrize(("width_mm", "bar_mm"), [(160, 50), (50, 50), (48, 20), (16, 10), (4, 2)])
def test_the_bar_is_of_five_centimetres_or_as_long_as_a_small_field_allows(width_mm: int, bar_mm: int) -> None:
    geometry = Geometry((80, 80, width_mm), (1.0, 1.0, 1.0))  # a pixel is a millimetre
    assert bar_of(render_preview(tissue(geometry), no_lesion(geometry))) == bar_mm


def test_a_lesion_is_drawn_to_its_own_scale() -> None:
    labels = np.zeros(GEOMETRIES["axial"].shape, np.uint32)
    labels[12, 15, 16] = 1
    assert bar_of(render_lesion(tissue(GEOMETRIES["axial"]), labels, 1)) == 100  # 5 cm of half a millimetre


def test_the_greys_are_said_in_numbers() -> None:
    geometry = GEOMETRIES["axial"]
    array = np.full(geometry.shape, 3000.0, np.float32)
    assert grey_window(Volume(array, geometry, Unit.SUVBW)) == "white 0, black SUVbw 10"
    assert grey_window(Volume(array, geometry, Unit.BQML)) == "white 0, black 3e+03 Bq/ml"
    assert grey_window(Volume(array, geometry)) == "white 0, black 3e+03 in the scan's own unit"


def test_a_scan_that_is_nearly_empty_is_black_at_its_largest_value() -> None:
    geometry = GEOMETRIES["axial"]
    array = np.zeros(geometry.shape, np.float32)
    array[11:13, 14:16, 20:22], array[11:13, 14:16, 8:10] = 8.0, 4.0  # 16 of 23,040 voxels: the percentile is 0
    volume = Volume(array, geometry)
    assert grey_window(volume) == "white 0, black 8 in the scan's own unit"
    picture = render_preview(volume, np.ones(geometry.shape, np.uint8))  # the outline shows where the panels are
    for panel in (panels_of(picture)["axial"], panels_of(picture)["coronal"]):
        assert panel[:, : panel.shape[1] // 2, 0].min() == 127  # half of it
        assert panel[:, panel.shape[1] // 2 :, 0].min() == 0


def test_the_lesion_of_a_picture_is_red_and_its_neighbours_are_blue() -> None:
    geometry = GEOMETRIES["axial"]
    labels = np.zeros(geometry.shape, np.uint32)
    labels[10:14, 13:17, 8:12], labels[10:14, 13:17, 18:22] = 1, 2  # 1 is further to the right of the patient
    for label, own_is_left in ((1, True), (2, False)):
        axial = panels_of(render_lesion(tissue(geometry), labels, label))["axial"]
        blue = (axial[..., 2] > 180) & (axial[..., 0] < 60)
        assert (np.argwhere(red(axial))[:, 1].max() < np.argwhere(blue)[:, 1].min()) is np.bool_(own_is_left)
