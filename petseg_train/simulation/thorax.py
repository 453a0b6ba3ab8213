"""What lies above the abdomen: thorax, neck and head, for scans of the whole trunk.

The paper's scans end below the diaphragm. A model that is to leave heart, stomach and brain alone has to have seen
them, so training may have these patients beside the paper's. Sizes and coordinates are as in `anatomy`. Uptake (SUVbw)
follows Wang et al. (Mol Imaging Biol 2007: brain, heart, tonsils, glands) and Zincirkeser et al. (J Int Med Res 2007:
lung, blood, marrow); the heart's muscle takes up anything from the blood's to several times the liver's, as it feeds on
fat or on sugar (Maurer et al., J Nucl Med 2011).
"""

from __future__ import annotations

import numpy as np

from petseg_runtime.volume import FloatArray
from petseg_train.simulation.anatomy import SIDES, Habitus, mirrored, patches
from petseg_train.simulation.canvas import Canvas, Label, Point, Shape, ellipsoid

# From here on the body is painted anew.
ABDOMEN_ENDS_MM = 330.0
_WALL = (Label.FAT, Label.MUSCLE)
# Half width and half depth of the body without the fat under its skin, at heights above the cervix.
_HEIGHTS = (330, 400, 480, 560, 600, 630, 650, 670, 690, 740, 760, 800, 860, 905, 930)
_HALF_WIDTH = (134, 140, 146, 156, 168, 166, 140, 86, 58, 56, 66, 74, 72, 50, 12)
_HALF_DEPTH = (98, 102, 102, 94, 80, 66, 62, 58, 56, 62, 78, 94, 90, 58, 12)


def paint_above_the_abdomen(canvas: Canvas, habitus: Habitus, rng: np.random.Generator) -> None:
    """Paint what the canvas has of thorax, neck and head; to be called after `paint_anatomy`."""
    size = habitus.size
    marrow, blood = _uptake(canvas, Label.BONE, 1.5), _uptake(canvas, Label.VESSEL, 1.7)
    _body(canvas, habitus, rng)
    _lungs(canvas, size, rng)
    _skeleton(canvas, size, marrow)
    _stomach(canvas, size, rng)
    _heart_and_vessels(canvas, size, blood, rng)
    _nodes(canvas, size, rng)
    _neck(canvas, size, rng)
    _head(canvas, size, marrow, rng)


def _body(canvas: Canvas, habitus: Habitus, rng: np.random.Generator) -> None:
    """Outline, fat under the skin, the wall of the chest, the fat between the lungs, and the breasts."""
    z, y, x = canvas.coordinates
    above = z > ABDOMEN_ENDS_MM
    heights = canvas.axes[0] / habitus.size
    half_width, half_depth = (
        np.interp(heights, _HEIGHTS, sides)[:, None, None] * habitus.size for sides in (_HALF_WIDTH, _HALF_DEPTH)
    )
    beyond = (canvas.axes[0] > _HEIGHTS[-1] * habitus.size)[:, None, None]
    lean = np.interp(heights, [620, 690], [1.0, 0.25])[:, None, None]  # neck and head have little fat
    middle = np.interp(heights, [330, 420, 640, 720], [8 - habitus.belly_mm / 4, 6, 6, 0])[:, None, None]
    fat_y = lean * habitus.fat_mm * np.where(y < middle, 0.8, 0.9)
    outer = np.abs(x / (half_width + 0.7 * lean * habitus.fat_mm)) ** 2.3
    outer = outer + np.abs((y - middle) / (half_depth + fat_y)) ** 2.3 < 1
    inner = np.abs(x / half_width) ** 2.3 + np.abs((y - middle) / half_depth) ** 2.3 < 1
    cavity = np.abs(x / (half_width - 18)) ** 2.3 + np.abs((y - middle) / (half_depth - 16)) ** 2.3 < 1
    cavity &= z < 600 * habitus.size
    suv_fat, suv_muscle = _uptake(canvas, Label.FAT, 0.3), _uptake(canvas, Label.MUSCLE, 0.7)
    # Liver and spleen reach up under the diaphragm, and are there already.
    above &= ~np.isin(canvas.labels, (Label.LIVER, Label.SPLEEN))
    for part, label, suv in (
        (above, Label.AIR, 0.0),
        (above & outer & ~beyond, Label.FAT, suv_fat),
        (above & inner & ~beyond, Label.MUSCLE, suv_muscle),
        (above & cavity, Label.FAT, 1.5 * suv_fat),
    ):
        canvas.labels[part], canvas.uptake[part] = label, suv
    breast, gland = rng.uniform(35, 60), rng.uniform(0.5, 1.3)
    for side in SIDES:
        front = (side * 72 * habitus.size, -92.0 * habitus.size - 0.6 * habitus.fat_mm, 462 * habitus.size)
        canvas.paint(
            ellipsoid(front, (1.1 * breast, 0.8 * breast, breast)), front, 70, Label.FAT, suv_fat, (Label.AIR,)
        )
        canvas.ball(front, 0.4 * breast, Label.MUSCLE, gland, (Label.FAT,))


def _lungs(canvas: Canvas, size: float, rng: np.random.Generator) -> None:
    suv = rng.uniform(0.3, 0.6)
    for side in SIDES:
        top = (388 if side < 0 else 372) * size  # of the dome of the diaphragm
        middle: Point = (side * 74 * size, 4.0, 480 * size)
        whole = ellipsoid(middle, (58 * size, 80 * size, 142 * size))

        canvas.paint(_above_a_dome(whole, middle, top, size), middle, 160 * size, Label.LUNG, suv, _WALL)


def _above_a_dome(whole: Shape, middle: Point, top: float, size: float) -> Shape:
    def level(z: FloatArray, y: FloatArray, x: FloatArray) -> FloatArray:
        dome = top - 80 * (((x - middle[0]) / (70 * size)) ** 2 + ((y + 10) / (95 * size)) ** 2)
        return np.where(z > dome, whole(z, y, x), np.float32(2.0))

    return level


def _skeleton(canvas: Canvas, size: float, marrow: float) -> None:
    """Spine, ribs, breastbone, shoulder blades, collar bones and the heads of the arms."""
    tissues = (*_WALL, Label.LUNG)
    for z in np.arange(366, 640, 31) * size:
        canvas.paint(
            ellipsoid((0, 54, z), (20 * size, 17 * size, 14 * size)), (0, 54, z), 22, Label.BONE, marrow, tissues
        )
        canvas.ball((0, 86 * size, z - 8), 8, Label.BONE, 0.7 * marrow, _WALL)
    for z in np.arange(655, 750, 19) * size:
        canvas.paint(ellipsoid((0, 28, z), (14, 11, 8)), (0, 28, z), 16, Label.BONE, 0.9 * marrow, _WALL)
    for side in SIDES:
        for z in np.arange(400, 620, 31):
            wide = np.interp(z, [400, 520, 610], [1.0, 1.0, 0.75])
            rib = [(28, 66, z), (92, 62, z - 8), (128, 6, z - 32), (100, -62, z - 62), (34, -92, z - 58)]
            path = mirrored(np.array(rib) * (wide, 1.0, 1.0), side, size)
            canvas.tube(path, 5, Label.BONE, 0.6 * marrow, tissues)
        blade = (side * 98 * size, 74.0 * size, 560 * size)
        canvas.paint(ellipsoid(blade, (44 * size, 7, 62 * size)), blade, 70, Label.BONE, 0.5 * marrow, _WALL)
        canvas.tube(
            mirrored([(16, -62, 615), (80, -40, 632), (140, 0, 630)], side, size), 6, Label.BONE, 0.5 * marrow, _WALL
        )
        canvas.ball((side * 148 * size, 6, 606 * size), 22 * size, Label.BONE, 0.5 * marrow, _WALL)
    canvas.tube(np.array([(0, -92, 440), (0, -80, 600)]) * size, 8, Label.BONE, 0.8 * marrow, tissues)


def _stomach(canvas: Canvas, size: float, rng: np.random.Generator) -> None:
    """The gullet, and the stomach under the left dome: a wall of uneven uptake round what it holds."""
    tissues = (*_WALL, Label.BOWEL, Label.LUNG)
    canvas.tube(
        np.array([(2, 32, 620), (4, 30, 480), (18, 14, 385)]) * size, 6, Label.BOWEL, rng.uniform(1.0, 2.6), tissues
    )
    course = np.array([(18, 14, 380), (62, 10, 352), (84, -8, 322), (66, -44, 278), (18, -60, 254), (-18, -44, 250)])
    path, radius = course * size, rng.uniform(18, 32)
    wall = rng.lognormal(np.log(2.2), 0.4) * patches(rng, 8, 0.3)
    canvas.tube(path, radius, Label.BOWEL, wall, tissues)
    canvas.tube(path[1:-1], max(radius - rng.uniform(6, 12), 4), Label.BOWEL, rng.uniform(0.3, 1.2), (Label.BOWEL,))


def _heart_and_vessels(canvas: Canvas, size: float, blood: float, rng: np.random.Generator) -> None:
    """Blood in heart, aorta and great veins; the left ventricle's muscle, pale or hot."""
    whole = (28 * size, -24.0, 428 * size)
    canvas.paint(ellipsoid(whole, (54 * size, 42 * size, 50 * size), roll_deg=30), whole, 66, Label.HEART, blood)
    feeds_on_fat = rng.random() < 0.4
    muscle = rng.uniform(1.2, 2.5) if feeds_on_fat else float(np.clip(rng.lognormal(np.log(5), 0.5), 2, 18))
    ventricle: Point = (48 * size, -24.0, 418 * size)
    radii = (46 * size, 34 * size, 32 * size)
    canvas.paint(ellipsoid(ventricle, radii, roll_deg=35), ventricle, 60, Label.HEART, muscle)
    inner: Point = (42 * size, -22.0, 422 * size)  # open towards the valves
    shorter = (radii[0] - 9, radii[1] - 11, radii[2] - 11)
    canvas.paint(ellipsoid(inner, shorter, roll_deg=35), inner, 50, Label.HEART, blood)
    for points, radius in (
        ([(10, 28, 320), (14, 40, 420), (16, 36, 540), (6, 10, 566), (-14, -18, 540), (-4, -18, 470)], 12),
        ([(-26, -10, 450), (-28, -14, 580), (-20, -20, 620)], 9),
        ([(-16, 24, 320), (-18, 10, 390)], 11),
        ([(10, -20, 470), (4, 0, 510), (-50, 10, 505)], 11),
        ([(4, 0, 510), (56, 10, 505)], 11),
    ):
        canvas.tube(np.array(points) * size, radius, Label.VESSEL, blood, (*_WALL, Label.LUNG))


def _nodes(canvas: Canvas, size: float, rng: np.random.Generator) -> None:
    """Nodes between the lungs, at their roots and in the armpits, which inflammation makes hot in some patients."""
    for _ in range(rng.poisson(0.8)):
        place = np.array(
            [(0, 0, 520), (-34, 12, 505), (38, 12, 505), (-120, -10, 560), (120, -10, 560)][rng.integers(5)]
        )
        centre = (place + rng.normal(0, 7, 3)) * size
        canvas.ball((centre[0], centre[1], centre[2]), rng.uniform(4, 9), Label.NODE, rng.lognormal(np.log(3.5), 0.4))


def _neck(canvas: Canvas, size: float, rng: np.random.Generator) -> None:
    tissues, gland = _WALL, rng.uniform(1.4, 3.5)
    canvas.tube(np.array([(0, -18, 560), (0, -20, 715)]) * size, 8, Label.AIR, 0.1, (*_WALL, Label.VESSEL))
    canvas.ball((0, -22 * size, 708 * size), 9, Label.MUSCLE, rng.uniform(1.0, 4.0), tissues)  # the vocal cords
    thyroid = rng.uniform(3, 8) if rng.random() < 0.1 else rng.uniform(0.9, 1.8)
    for side in SIDES:
        lobe = (side * 17 * size, -22.0, 682 * size)
        canvas.paint(ellipsoid(lobe, (9, 9, 20)), lobe, 24, Label.MUSCLE, thyroid, tissues)
        canvas.ball((side * 46 * size, 4, 752 * size), 15, Label.MUSCLE, gland, tissues)  # parotid
        canvas.ball((side * 26 * size, -28, 728 * size), 11, Label.MUSCLE, gland, tissues)  # submandibular
        canvas.ball((side * 15 * size, -14, 758 * size), 8, Label.MUSCLE, rng.uniform(1.8, 6.0), tissues)  # tonsil
    canvas.ball((0, -46 * size, 752 * size), 19, Label.MUSCLE, rng.uniform(1.2, 3.0), tissues)  # tongue


def _head(canvas: Canvas, size: float, marrow: float, rng: np.random.Generator) -> None:
    """The skull, and the brain: its cortex the hottest tissue there is beside urine."""
    cortex = rng.uniform(6, 14)
    middle: Point = (0.0, 6.0, 846 * size)
    for shrink, label, suv in (
        (0, Label.BONE, 0.4 * marrow),
        (7, Label.BRAIN, cortex),
        (22, Label.BRAIN, 0.45 * cortex),
    ):
        radii = (70 * size - shrink, 88 * size - shrink, 66 * size - shrink)
        canvas.paint(ellipsoid(middle, radii), middle, 100, label, suv, (*_WALL, Label.BONE, Label.BRAIN))
    for side in SIDES:  # the nuclei in its depth
        canvas.ball((side * 22 * size, 0, 840 * size), 12, Label.BRAIN, cortex, (Label.BRAIN,))
    cerebellum: Point = (0.0, 48.0, 796 * size)
    canvas.paint(ellipsoid(cerebellum, (48, 28, 24)), cerebellum, 55, Label.BRAIN, 0.8 * cortex, (*_WALL, Label.BONE))


def _uptake(canvas: Canvas, label: Label, otherwise: float) -> float:
    """The patient's uptake of a tissue that is painted already; `otherwise` where the canvas has none of it."""
    values = canvas.uptake[canvas.labels == label]
    return float(np.median(values)) if len(values) else otherwise
