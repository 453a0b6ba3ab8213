"""The female abdomen and pelvis as organs on a canvas, with the uptake of each; a different one for each patient.

Sizes are in mm for a patient of average size and vary by some per cent. Uptake (SUVbw, one hour after FDG) follows the
ranges of physiological uptake in Zincirkeser et al. (J Int Med Res 2007), Wang et al. (Mol Imaging Biol 2007), Ramos et
al. (Eur J Nucl Med 2001) and Lerman et al. (J Nucl Med 2004; uterus, ovaries); Shreve et al. (RadioGraphics 1999)
describe the patterns of bowel and urine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from petseg_train.simulation.canvas import Canvas, Label, Point, ellipsoid, smooth_noise

SIDES = (-1, 1)  # right and left
_SOFT = (Label.FAT, Label.MUSCLE)


@dataclass(frozen=True)
class Habitus:
    """Build of a patient: size of the skeleton (1 = average), fat under the skin, and depth of the belly."""

    size: float
    fat_mm: float
    belly_mm: float

    @property
    def weight_kg(self) -> float:
        """Weight that goes with this build; its median is about 67 kg."""
        return 55.0 * self.size**3 * (1 + 0.02 * (self.fat_mm - 18) + 0.008 * self.belly_mm)

    @staticmethod
    def draw(rng: np.random.Generator) -> Habitus:
        return Habitus(
            size=float(np.clip(rng.normal(1.0, 0.05), 0.88, 1.12)),
            fat_mm=float(np.clip(rng.lognormal(np.log(20), 0.4), 9, 42)),
            belly_mm=float(rng.uniform(0, 35)),
        )


def paint_anatomy(canvas: Canvas, habitus: Habitus, urine_suv: float, rng: np.random.Generator) -> None:
    """Paint all but the bladder and the tumour."""
    _body(canvas, habitus, rng)
    _skeleton(canvas, habitus.size, rng)
    _digestive_tract(canvas, habitus.size, rng)
    _vessels_and_nodes(canvas, habitus.size, rng)
    _upper_organs(canvas, habitus.size, urine_suv, rng)
    _reproductive_organs(canvas, rng)


def vary(canvas: Canvas, rng: np.random.Generator) -> None:
    """Uptake that varies by some per cent within every organ, as tissue does."""
    canvas.uptake *= 1 + 0.07 * smooth_noise(canvas.shape, 14.0, rng) + 0.04 * smooth_noise(canvas.shape, 6.0, rng)
    np.maximum(canvas.uptake, 0, out=canvas.uptake)


def _body(canvas: Canvas, habitus: Habitus, rng: np.random.Generator) -> None:
    """Outline, fat under the skin, muscle, and the fat of the cavity."""
    z, y, x = canvas.coordinates
    heights = [-140, -100, -60, -20, 40, 100, 150, 200, 260, 330]
    half_width = np.interp(canvas.axes[0], heights, [150, 158, 162, 160, 148, 134, 124, 124, 130, 134])[:, None, None]
    half_depth = np.interp(canvas.axes[0], heights, [82, 90, 98, 98, 92, 86, 84, 86, 92, 98])[:, None, None]
    half_width, half_depth = half_width * habitus.size, half_depth * habitus.size
    belly = habitus.belly_mm * np.exp(-(((canvas.axes[0] - 120) / 90) ** 2))[:, None, None]
    half_width, half_depth = half_width + belly / 2, half_depth + belly / 2
    middle = 8 - belly / 2  # a belly grows to the front
    fat_side, fat_front, fat_back = habitus.fat_mm * np.array([0.8, 1.0, 1.1])
    # At the thighs the body is two columns.
    thighs = (canvas.axes[0] < -90)[:, None, None]
    leg = 78 * habitus.size
    inner_x = np.where(thighs, (np.abs(x) - leg) / (leg - 4), x / half_width)
    outer_x = np.where(thighs, (np.abs(x) - leg) / (leg + fat_side * 0.8), x / (half_width + fat_side))
    fat_y = np.where(y < middle, fat_front, fat_back)
    outer = np.abs(outer_x) ** 2.3 + np.abs((y - middle) / (half_depth + fat_y)) ** 2.3 < 1
    inner = np.abs(inner_x) ** 2.3 + np.abs((y - middle) / half_depth) ** 2.3 < 1
    suv_fat, suv_muscle = rng.uniform(0.15, 0.4), rng.uniform(0.5, 0.95)
    canvas.labels[outer], canvas.uptake[outer] = Label.FAT, suv_fat
    canvas.labels[inner], canvas.uptake[inner] = Label.MUSCLE, suv_muscle
    # The cavity: narrow in the pelvis, wide in the abdomen, open to the front.
    wide = np.interp(canvas.axes[0], [-60, -30, 20, 60, 110, 330], [5, 52, 60, 80, 112, 118])[:, None, None]
    deep = half_depth - np.interp(canvas.axes[0], [-60, 60], [28, 15])[:, None, None]
    cavity = (np.abs(x) / (wide * habitus.size + belly / 2)) ** 2.3 + np.abs((y - middle + 6) / deep) ** 2.3 < 1
    cavity &= z > -60
    canvas.labels[cavity], canvas.uptake[cavity] = Label.FAT, suv_fat * rng.uniform(1.2, 2.0)
    for side in SIDES:  # psoas and the muscles along the spine
        psoas = mirrored(
            [(38, 30, 230), (45, 28, 130), (58, 12, 60), (75, -18, 10), (90, -15, -40)], side, habitus.size
        )
        canvas.tube(psoas, 17 * habitus.size, Label.MUSCLE, suv_muscle * 1.1, _SOFT)
        erector = mirrored([(34, 78, 330), (34, 80, 150), (30, 82, 60)], side, habitus.size)
        canvas.tube(erector, 22 * habitus.size, Label.MUSCLE, suv_muscle, _SOFT)


def _skeleton(canvas: Canvas, size: float, rng: np.random.Generator) -> None:
    """Marrow of lumbar spine, sacrum, pelvis and femora; cortical bone is not told apart."""
    marrow = rng.lognormal(np.log(1.5), 0.3)
    for level in range(8):
        z = (86 + 35 * level) * size
        suv = marrow * rng.uniform(0.9, 1.1)
        canvas.paint(ellipsoid((0, 48, z), (24 * size, 18 * size, 17 * size)), (0, 48, z), 26, Label.BONE, suv, _SOFT)
        canvas.ball((0, 86 * size, z - 6), 9, Label.BONE, 0.7 * suv, _SOFT)
        canvas.tube([(-36, 70, z), (36, 70, z)], 5, Label.BONE, 0.6 * suv, _SOFT)
    sacrum = ellipsoid((0, 72, 42), (50 * size, 15, 46 * size), tilt_deg=-28)
    canvas.paint(sacrum, (0, 72, 42), 55, Label.BONE, 0.8 * marrow, _SOFT)
    canvas.tube([(0, 88, 5), (0, 72, -28)], 7, Label.BONE, 0.6 * marrow, _SOFT)
    for side in SIDES:
        _hip_bone(canvas, side, size, marrow)


def _hip_bone(canvas: Canvas, side: int, size: float, marrow: float) -> None:
    """Wing of the ilium, acetabulum, pubis, ischium, and the upper femur."""
    middle = (side * 58 * size, 18.0, 74 * size)
    outer = ellipsoid(middle, (78 * size, 74 * size, 80 * size), roll_deg=-12.0 * side)
    inner = ellipsoid(middle, (66 * size, 63 * size, 82 * size), roll_deg=-12.0 * side)

    def wing(z: npt.NDArray, y: npt.NDArray, x: npt.NDArray) -> npt.NDArray:
        part = (x * side > 62 * size) & (z > 12 * size) & (y > -52 * size)
        return np.where(part & (inner(z, y, x) > 1), outer(z, y, x), 2.0)

    canvas.paint(wing, middle, 90, Label.BONE, 0.75 * marrow, _SOFT)
    canvas.ball((side * 84 * size, 4, 2), 31 * size, Label.BONE, 0.6 * marrow, _SOFT)
    head = (side * 88 * size, 2.0, -3.0)
    canvas.ball(head, 26 * size, Label.MUSCLE, 0.4, (Label.BONE,))  # the joint's gap
    canvas.ball(head, 22 * size, Label.BONE, 0.45 * marrow)
    for points, radius, share in (
        ([(84, -8, 0), (45, -48, -12), (8, -62, -30)], 9, 0.5),
        ([(8, -60, -34), (40, -25, -62), (56, 22, -72)], 8, 0.5),
        ([(80, 22, -5), (62, 38, -40), (56, 36, -74)], 13, 0.6),
        ([(88, 2, -3), (120, 8, -28)], 13, 0.45),
        ([(122, 8, -20), (116, 4, -90), (108, 0, -160)], 14, 0.35),
    ):
        canvas.tube(mirrored(points, side, size), radius * size, Label.BONE, share * marrow, _SOFT)


def _digestive_tract(canvas: Canvas, size: float, rng: np.random.Generator) -> None:
    """Loops of small bowel, the colon round them, the rectum: patchy, and sometimes as hot as a tumour."""
    tissues = (Label.FAT,)
    base = rng.lognormal(np.log(1.1), 0.35)
    for _ in range(7):
        path = _wander(rng, (rng.uniform(-70, 70), rng.uniform(-55, 5), rng.uniform(40, 200)), 30, 18.0)
        path[:, 0], path[:, 1] = np.clip(path[:, 0], -95, 95), np.clip(path[:, 1], -75, 25)
        path[:, 2] = np.maximum(path[:, 2], 30)
        canvas.tube(path * size, rng.uniform(9, 13), Label.BOWEL, base * patches(rng, 14, 0.6), tissues)
    base = rng.lognormal(np.log(1.2), 0.4)
    drift = rng.normal(0, 5, size=3)
    right = [(-92, 0, 50), (-104, 8, 110), (-106, 10, 190), (-90, -15, 225)]
    across = [(-90, -15, 225), (-40, -62, 205), (30, -64, 212), (95, -20, 245)]
    left = [(95, -20, 245), (108, 18, 190), (104, 14, 110), (92, 8, 70)]
    low = rng.uniform(10, 45)
    sigmoid = [(92, 8, 70), (62, -10, 45), (20, -18, low + 45), (-28, 5, low + 35), (-8, 40, low + 30), (0, 62, 28)]
    for points, radius in ((right, 21), (across, 17), (left, 16), (sigmoid, 12)):
        path = (np.array(points) + drift) * size
        canvas.tube(path, radius * rng.uniform(0.8, 1.15), Label.BOWEL, base * patches(rng, 10, 0.5), tissues)
    rectum = np.array([(0, 62, 28), (rng.normal(0, 4), 58, 0), (0, 46, -30), (0, 52, -62)]) * size
    suv = rng.lognormal(np.log(1.5), 0.3) * patches(rng, 6, 0.35)
    canvas.tube(rectum, rng.uniform(12, 17), Label.RECTUM, suv, (Label.FAT, Label.MUSCLE, Label.BOWEL))


def _vessels_and_nodes(canvas: Canvas, size: float, rng: np.random.Generator) -> None:
    """Aorta, vena cava and iliac vessels with the blood's uptake; nodes along them, in some patients hot."""
    blood = rng.uniform(1.2, 2.1)
    canvas.tube(np.array([(10, 26, 330), (8, 24, 105)]) * size, 9, Label.VESSEL, blood)
    canvas.tube(np.array([(-18, 26, 330), (-14, 26, 100)]) * size, 10, Label.VESSEL, blood)
    chain = [(8, 22, 150), (8, 24, 105), (36, 22, 62), (58, 0, 30), (72, -38, -8), (80, -62, -60), (84, -40, -150)]
    for side in SIDES:
        for shift, radius in (((0, 0, 0), 5.5), ((-4, 10, 0), 6.5)):
            canvas.tube(mirrored(np.array(chain[1:]) + shift, side, size), radius, Label.VESSEL, blood, _SOFT)
        for _ in range(rng.poisson(0.8)):
            place = _along(np.array(chain[:5], dtype=float), rng.random()) + rng.normal(0, 5, 3) + (6, 0, 0)
            radius = rng.uniform(3.5, 8.5)
            centre = (side * place[0] * size, place[1] * size, place[2] * size)
            canvas.ball(centre, radius, Label.NODE, rng.lognormal(np.log(5), 0.5))


def _upper_organs(canvas: Canvas, size: float, urine: float, rng: np.random.Generator) -> None:
    """Lower liver and spleen, kidneys, and ureters with their hot stretches."""
    liver = rng.uniform(1.8, 2.9)
    middle = (-62 * size, -12.0, 292 * size)
    canvas.paint(ellipsoid(middle, (84 * size, 76 * size, 92 * size), roll_deg=18), middle, 100, Label.LIVER, liver)
    middle = (88 * size, 28.0, 290 * size)
    canvas.paint(ellipsoid(middle, (28 * size, 40 * size, 55 * size)), middle, 60, Label.SPLEEN, 0.8 * liver)
    for side in SIDES:
        z = (212 + (8 if side > 0 else -4) + rng.normal(0, 8)) * size
        centre: Point = (side * 62 * size, 34.0, z)
        kidney = ellipsoid(centre, (27 * size, 25 * size, 54 * size), roll_deg=-14.0 * side)
        canvas.paint(kidney, centre, 60, Label.KIDNEY, rng.uniform(2.5, 5.0))
        for _ in range(3):  # calyces
            place = (centre[0] - side * rng.uniform(2, 12), centre[1] - 4, z + rng.uniform(-30, 30))
            canvas.ball(place, rng.uniform(3.5, 8), Label.URINE, urine * rng.uniform(0.3, 1.2), (Label.KIDNEY,))
        pelvis = (side * 46 * size, 30.0, z - 6)
        canvas.ball(pelvis, rng.uniform(6, 11), Label.URINE, urine * rng.uniform(0.3, 1.3))
        points = [pelvis, (side * 40, 26, 150), (side * 46, 20, 80), (side * 52, 26, 35), (side * 30, 8, 8)]
        filled = urine * np.maximum(0, rng.normal(-0.25, 0.5, 16))  # peristalsis leaves most of it empty
        canvas.tube(points, 2.2, Label.URINE, np.maximum(filled, 1.2), (*_SOFT, Label.VESSEL))


def _reproductive_organs(canvas: Canvas, rng: np.random.Generator) -> None:
    """Uterus, cervix, vagina and ovaries; the endometrium and an ovary are hot in some patients."""
    lean = rng.normal(0, 12)
    suv = rng.uniform(1.2, 2.4)
    tissues = (*_SOFT, Label.BOWEL, Label.VESSEL)
    top = (float(lean), -6.0 + rng.normal(0, 8), 46.0)
    size = rng.uniform(0.7, 1.25)  # small after the menopause
    canvas.paint(ellipsoid(top, (25 * size, 21 * size, 36 * size), tilt_deg=30), top, 40, Label.UTERUS, suv, tissues)
    if rng.random() < 0.3:
        canvas.paint(
            ellipsoid(top, (9 * size, 4 * size, 18 * size), tilt_deg=30), top, 20, Label.UTERUS, rng.uniform(3, 7)
        )
    canvas.tube([(0, 12, -8), (0.4 * lean, 4, 20)], 13, Label.UTERUS, suv, tissues)
    canvas.tube([(0, 14, -12), (0, 16, -62)], 9, Label.UTERUS, 0.8 * suv, tissues)
    for side in SIDES:
        place = (side * rng.uniform(38, 55), 5 + rng.normal(0, 6), 38 + rng.normal(0, 8))
        hot = rng.random() < 0.15
        canvas.ball(place, rng.uniform(8, 14), Label.OVARY, rng.uniform(4, 8) if hot else suv, tissues)


def _along(points: npt.NDArray[np.float64], share: float) -> npt.NDArray[np.float64]:
    """The point at a share of the way along `points` `(n, 3)`."""
    return np.array(
        [np.interp(share * (len(points) - 1), np.arange(len(points)), points[:, axis]) for axis in range(3)]
    )


def mirrored(points: npt.ArrayLike, side: int, size: float) -> npt.NDArray[np.float64]:
    """Points `(n, 3)` of a patient of average size, on one side of a patient of this size."""
    return np.asarray(points, dtype=float) * (side * size, size, size)


def _wander(rng: np.random.Generator, start: Point, steps: int, step_mm: float) -> npt.NDArray[np.float64]:
    """A random walk that keeps its direction for a while."""
    direction, places = rng.standard_normal(3), [np.array(start)]
    for _ in range(steps):
        direction = direction * 0.6 + rng.standard_normal(3) * (1, 0.8, 0.8)
        places.append(places[-1] + step_mm * direction / np.linalg.norm(direction))
    return np.array(places)


def patches(rng: np.random.Generator, count: int, spread: float) -> npt.NDArray[np.float64]:
    """Uptake along a bowel: log-normal stretches round 1."""
    return rng.lognormal(0, spread, count)
