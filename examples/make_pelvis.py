"""Simulate one FDG PET scan of a pelvis with a cervical tumour that touches the bladder: no patient's data is in it.

    python examples/make_pelvis.py [--output examples]      writes pelvis.nii.gz (SUVbw) and pelvis_mask.nii.gz (truth)

It models a body of implicit shapes on a 2.04 x 2.04 x 1.5 mm grid, detector blur in three dimensions, attenuation, a
smooth background of scatter and randoms, Poisson counts, OSEM with attenuation and background in its model on
4.07 x 4.07 x 3 mm voxels, and a 5 mm Gaussian post-filter. All noise in the image is counting noise that went through
OSEM. It leaves out oblique lines of response, time of flight, resolution modelling, motion, bladder filling between CT
and PET, the table, errors in the background's estimate (so the air is cleaner than in a clinic), and every other
patient: the simulated cohort is in petseg_train.

Arrays are (z, y, x). Anatomy is in mm, LPS: x grows to the patient's left, y to the back, z to the head; x = 0 is the
midline and z = 0 the height of the femoral heads.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from scipy.interpolate import PchipInterpolator
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from scipy.sparse import csr_array

Array = npt.NDArray[np.float32]
Point = tuple[float, float, float]  # (x, y, z) in mm

SEED = 20
PIXELS, SLICES = 128, 100
SPACING_MM = (3.0, 4.0728, 4.0728)
ORIGIN_LPS_MM = (-258.62, -258.62, -1034.5)  # of the first voxel, as in a series that goes on to the head
FINE = 2  # anatomy voxels along each side of a PET voxel
FINE_SPACING_MM = (1.5, 2.0364, 2.0364)
FINE_SHAPE = (SLICES * FINE, PIXELS * FINE, PIXELS * FINE)
LOWEST_Z_MM = -116.0
ANGLES, SUBSETS, ITERATIONS = 168, 14, 3
DETECTOR_SIGMA_MM, FILTER_SIGMA_MM = 5.0 / 2.3548, 5.0 / 2.3548  # 5 mm full width at half maximum
TRUE_COUNTS, SCATTER_PER_TRUE, RANDOMS_PER_TRUE = 22e6, 0.45, 0.6  # gives muscle a noise of 16-18 %
SUV_STEP = 1 / 256  # a power of two: the floats then end in zeros, which gzip removes
FAT, SOFT, SPONGY_BONE, CORTICAL_BONE = 0.0090, 0.0096, 0.0112, 0.0150  # attenuation at 511 keV, per mm


def smooth_noise(rng: np.random.Generator, correlation_mm: float) -> Array:
    """Draw a field of unit variance, shape `FINE_SHAPE`. It gives anatomy its texture and is never scan noise."""
    widths = [correlation_mm / spacing for spacing in FINE_SPACING_MM]
    field = gaussian_filter(rng.standard_normal(FINE_SHAPE, dtype=np.float32), widths, mode="wrap", truncate=3)
    return np.asarray(field / field.std(), dtype=np.float32)


def along(z: Array, *knots: tuple[float, float]) -> Array:
    """Follow a smooth curve through (z, value) knots; it is flat beyond the first and the last."""
    heights, values = zip(*knots, strict=True)
    return np.asarray(PchipInterpolator(heights, values)(np.clip(z, heights[0], heights[-1])), dtype=np.float32)


class Body:
    """Activity (SUV) and attenuation (per mm) on the fine grid, painted shape over shape.

    A shape is the distance in mm from its surface, negative inside, shape `FINE_SHAPE`; `np.minimum` joins shapes and
    `np.maximum` intersects them. A paired shape appears on the left and on the right.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        z, y, x = (np.arange(n) * step for n, step in zip(FINE_SHAPE, FINE_SPACING_MM, strict=True))
        self.heights = z + LOWEST_Z_MM
        grids = np.meshgrid(self.heights, y - y.mean(), x - x.mean(), indexing="ij", copy=False)
        # Without this warp shapes would be smoother, and the two sides more alike, than a patient's.
        self.z, self.y, self.x = ((grid + 2.5 * smooth_noise(rng, 22)).astype(np.float32) for grid in grids)
        self.side = np.abs(self.x)
        self.activity_suv: Array = np.zeros(FINE_SHAPE, np.float32)
        self.attenuation_per_mm: Array = np.zeros(FINE_SHAPE, np.float32)

    def paint(self, distance_mm: Array, suv: float | Array, attenuation_per_mm: float = SOFT) -> Array:
        """Put a tissue over what is there and return the share of each voxel that it fills."""
        share: Array = np.clip(0.5 - distance_mm / FINE_SPACING_MM[2], 0, 1)
        self.activity_suv += share * (suv - self.activity_suv)
        self.attenuation_per_mm += share * (attenuation_per_mm - self.attenuation_per_mm)
        return share

    def ellipsoid(self, centre: Point, radii: Point, paired: bool = False) -> Array:
        """Measure the distance from an ellipsoid, exact on its surface and good near it."""
        grids = (self.side if paired else self.x, self.y, self.z)
        offsets: Any = [(grid - c, r) for grid, c, r in zip(grids, centre, radii, strict=True)]
        scaled = np.sqrt(sum((offset / r) ** 2 for offset, r in offsets))
        slope = np.sqrt(sum((offset / r**2) ** 2 for offset, r in offsets))
        return np.asarray(scaled * (scaled - 1) / np.maximum(slope, 1e-6), dtype=np.float32)

    def tube(self, radius: float, *path: Point, paired: bool = False) -> Array:
        """Measure the distance from a tube around a broken line; slices more than 25 mm away from it are just far."""
        distance = np.full(FINE_SHAPE, 1e3, np.float32)
        for start, end in zip(np.array(path[:-1], np.float32), np.array(path[1:], np.float32), strict=True):
            low, high = sorted((start[2], end[2]))
            slab = slice(*np.searchsorted(self.heights, (low - radius - 25, high + radius + 25)))
            points = [grid[slab] for grid in (self.side if paired else self.x, self.y, self.z)]
            parts: Any = list(zip(points, start, step := end - start, strict=True))
            t = np.clip(sum((p - s) * d for p, s, d in parts) / (step @ step), 0, 1)
            to_line = np.sqrt(sum((p - s - t * d) ** 2 for p, s, d in parts))
            distance[slab] = np.minimum(distance[slab], to_line - radius)
        return distance


def paint_soft_walls(body: Body, rng: np.random.Generator) -> None:
    """Paint skin, fat, muscles and the fat of the visceral cavity."""
    y, z, side = body.y, body.z, body.side
    half_width = along(z, (-95, 60), (-75, 125), (-45, 172), (-10, 182), (60, 172), (130, 150), (185, 146))
    half_depth = along(z, (-95, 10), (-82, 50), (-60, 90), (-20, 108), (60, 106), (130, 100), (185, 104))
    relative = ((side / half_width) ** 2.4 + np.abs((y - 6) / half_depth) ** 2.4) ** (1 / 2.4)
    trunk = np.hypot(side, y - 6) * (1 - 1 / np.maximum(relative, 0.05))
    thigh = np.hypot((side - 90) / 0.95, y - 4) - along(z, (-120, 79), (-85, 84), (-40, 90), (20, 60), (60, 5))
    buttock = body.ellipsoid((66, 62, -15), (74, 62, 88), paired=True)
    skin = -6 * np.logaddexp.reduce([-trunk / 6, -thigh / 6, -buttock / 6])  # a union, rounded where they meet
    # Fat is thickest over the buttocks and hips, thin over the pubis.
    fat_mm = 15 + 11 * np.clip(y / 90, 0, 1) + 9 * np.clip((side - 90) / 80, 0, 1) + 3 * smooth_noise(rng, 25)
    body.paint(skin, 0.55)
    body.paint(skin + 2.5, 0.28 + 0.04 * smooth_noise(rng, 8), FAT)
    body.paint(skin + fat_mm, 0.72 + 0.05 * smooth_noise(rng, 9))
    # Muscles are told apart by thin sheets of fat: there a smooth random field changes its sign.
    body.paint(np.maximum(18 * np.abs(smooth_noise(rng, 15)) - 2.2, skin + fat_mm + 3), 0.4, FAT)
    cavity = np.maximum(skin + fat_mm + 14, body.ellipsoid((0, -8, 110), (112, 82, 165)))
    body.paint(cavity, 0.42 + 0.06 * smooth_noise(rng, 10), FAT)
    psoas = body.tube(21, (46, 20, 190), (56, 2, 110), (74, -28, 55), (90, -34, 10), (112, 0, -50), paired=True)
    body.paint(psoas, 0.74)


def paint_bones(body: Body, rng: np.random.Generator) -> None:
    """Paint the skeleton from L4 to the thighs: a cortex, and red marrow in it but for the femurs' yellow one."""
    y, z, side = body.y, body.z, body.side
    # The iliac wing: in each slice a slanting bar from the sacroiliac joint to the anterior spine, bent outwards.
    back_x, back_y = along(z, (20, 78), (60, 55), (140, 62)), along(z, (20, 42), (60, 66), (140, 50))
    front_x, front_y = along(z, (20, 92), (60, 108), (140, 132)), along(z, (20, -28), (100, -52), (140, -30))
    step_x, step_y = front_x - back_x, front_y - back_y
    t = np.clip(((side - back_x) * step_x + (y - back_y) * step_y) / (step_x**2 + step_y**2), 0, 1)
    to_bar = np.hypot(side - back_x - t * step_x + 10 * np.sin(np.pi * t), y - back_y - t * step_y)
    thickness = along(z, (20, 12), (45, 7), (120, 5), (140, 7)) + 16 * (t - 0.5) ** 2
    wing = np.maximum(to_bar - thickness, np.maximum(z - 138 + 130 * (t - 0.45) ** 2, 16 - z))
    socket = np.maximum(body.ellipsoid((84, -2, 4), (36, 36, 36), paired=True), side - 92)
    pubis = body.tube(8, (78, -24, 8), (40, -58, -4), (12, -70, -16), (12, -66, -32), (48, 10, -58), paired=True)
    ischium = body.tube(13, (78, 28, 0), (68, 44, -30), (56, 40, -62), paired=True)
    pelvis = np.minimum.reduce([wing, socket, pubis, ischium])
    head = body.ellipsoid((92, -4, 0), (24, 24, 24), paired=True)
    trochanter = body.ellipsoid((140, 12, -18), (17, 20, 24), paired=True)
    neck_and_shaft = body.tube(14, (92, -4, 0), (132, 6, -24), (128, 4, -60), (114, 2, -135), paired=True)
    femur = np.minimum.reduce([head, trochanter, neck_and_shaft])
    centres = [(0, 20, 174), (0, 28, 137), (0, 46, 105), (0, 64, 82), (0, 77, 58), (0, 83, 36), (0, 80, 14)]
    radii = [(26, 19, 16), (27, 19, 16), (50, 20, 19), (46, 18, 18), (36, 15, 17), (26, 12, 15), (15, 9, 14)]
    vertebrae = [body.ellipsoid(centre, size) for centre, size in zip(centres, radii, strict=True)]  # L4 to coccyx
    spine = np.minimum.reduce([*vertebrae, body.tube(7, (0, 66, 190), (0, 74, 135), (0, 86, 85))])  # with processes
    marrow = 1.45 + 0.15 * smooth_noise(rng, 8)
    body.paint(pelvis, 0.9, CORTICAL_BONE)
    body.paint(pelvis + 2.5, marrow, SPONGY_BONE)
    body.paint(head - 4, 0.6)  # cartilage and joint space
    body.paint(femur, 0.7, CORTICAL_BONE)
    body.paint(femur + 3, along(z, (-90, 0.35), (-40, 0.6), (0, 0.8)), SPONGY_BONE)
    body.paint(body.tube(22, (0, 20, 190), (0, 38, 125)), 0.6)  # discs
    body.paint(spine, 1.0, CORTICAL_BONE)
    body.paint(spine + 2, marrow + 0.15, SPONGY_BONE)
    body.paint(body.tube(7, (0, 48, 190), (0, 56, 130), (0, 78, 80)), 0.55)  # spinal canal


def paint_organs(body: Body, rng: np.random.Generator) -> None:
    """Paint bowel, vessels, uterus and ovaries: all that is in the cavity but for urine and tumour."""
    # Where two random fields vanish at once they draw winding curves: loops of small bowel.
    loops = 15 * np.hypot(smooth_noise(rng, 13), smooth_noise(rng, 13)) - 9
    among = np.maximum(body.ellipsoid((0, -32, 135), (92, 46, 80)), body.ellipsoid((0, -10, 110), (104, 74, 155)))
    patches = np.clip(1.8 + 0.9 * smooth_noise(rng, 14) + 0.3 * smooth_noise(rng, 5), 0.6, 4.0)
    body.paint(np.maximum(loops, among), patches)
    wall = np.clip(2.0 + 0.9 * smooth_noise(rng, 12), 0.8, 4.0)
    caecum = body.tube(19, (-98, -8, 190), (-94, -16, 140), (-80, -28, 95))
    sigmoid = body.tube(13, (104, 8, 190), (100, -6, 135), (78, -26, 100), (40, -8, 96), (18, 28, 84), (0, 52, 62))
    rectum = body.tube(14, (0, 52, 62), (4, 60, 30), (0, 52, -5), (0, 42, -30), (0, 48, -56))
    colon = np.minimum.reduce([caecum, sigmoid, rectum])
    body.paint(colon, wall)
    body.paint(colon + 6, 0.7 + 0.2 * wall)
    body.paint(body.tube(7, (0, 44, -40), (0, 50, -62)), 2.2)  # anal sphincter
    iliac_vessels = [(11, 0, 190), (13, 4, 155), (36, 20, 110), (64, -16, 62), (66, -50, 12), (78, -40, -130)]
    body.paint(body.tube(8, *iliac_vessels, paired=True), 1.6)
    body.paint(body.ellipsoid((44, 14, 74), (15, 10, 12), paired=True), 1.7)  # ovaries
    body.paint(body.tube(24, (0, 8, 52), (2, -12, 84)), 1.9 + 0.2 * smooth_noise(rng, 8))  # uterus
    body.paint(body.tube(4, (0, 4, 60), (2, -12, 88)), 2.7)  # endometrium
    body.paint(body.tube(9, (2, 22, 20), (0, 18, -15), (0, 4, -58)), 1.3)  # vagina


def paint_urine_and_tumour(body: Body, rng: np.random.Generator) -> Array:
    """Paint what is hot and return the share of each fine voxel that is tumour."""
    # Peristalsis leaves urine in a few short stretches of the ureters.
    body.paint(body.tube(2.2, (40, 2, 182), (41, 4, 164)), 45.0)
    body.paint(body.tube(2.0, (-40, 6, 128), (-44, 10, 108)), 40.0)
    body.paint(body.tube(1.8, (50, 30, 62), (48, 28, 50)), 40.0)
    body.paint(body.tube(2.5, (0, -28, 0), (0, -22, -42)), 3.0)  # urethra
    bladder = body.ellipsoid((-3, -35, 32), (49, 31, 34)) + 0.8 * smooth_noise(rng, 14)
    body.paint(bladder - 3, 1.2)
    body.paint(bladder, 22.0 + 0.06 * (body.y + 34))  # urine layers: it is hotter at the back
    # The tumour grows through the bladder's wall, so its front lies in urine.
    outline = (
        body.ellipsoid((6, 13.7, 31), (22.5, 18.5, 19)) + 3.0 * smooth_noise(rng, 7) + 1.0 * smooth_noise(rng, 3.5)
    )
    core = np.clip(-body.ellipsoid((9, 17, 34), (9, 7, 8)) / 6, 0, 1)
    return body.paint(outline, np.clip(8.1 + 2.2 * smooth_noise(rng, 7), 4.0, 15.0) * (1 - 0.55 * core))


def coarsen(fine: Array, *factors: int) -> Array:
    """Average blocks of voxels, one factor for each axis."""
    shape = [length for n, factor in zip(fine.shape, factors, strict=True) for length in (n // factor, factor)]
    return np.asarray(fine.reshape(shape).mean(axis=tuple(range(1, 2 * fine.ndim, 2))), dtype=np.float32)


def system_matrix(pixels: int, pixel_mm: float, angles_rad: npt.NDArray[np.float64]) -> Any:
    """Build parallel line integrals through a slice, sparse (angles * pixels, pixels**2), bins as wide as the pixels.

    A pixel's chord is shared between the two bins nearest to its centre. The image's corners miss the detector: air.
    """
    centres = np.arange(pixels) - (pixels - 1) / 2
    y, x = (grid.ravel() for grid in np.meshgrid(centres, centres, indexing="ij"))
    position = np.cos(angles_rad)[:, None] * x + np.sin(angles_rad)[:, None] * y + (pixels - 1) / 2
    left = np.floor(position).astype(np.int32)
    share = (position - left).astype(np.float32)
    rows, chords_mm = np.stack([left, left + 1]), np.stack([1 - share, share]) * np.float32(pixel_mm)
    seen = (rows >= 0) & (rows < pixels)
    rows += (np.arange(len(angles_rad), dtype=np.int32) * pixels)[:, None]
    columns = np.broadcast_to(np.arange(pixels**2, dtype=np.int32), rows.shape)
    return csr_array((chords_mm[seen], (rows[seen], columns[seen])), shape=(len(angles_rad) * pixels, pixels**2))


def acquire(activity_suv: Array, attenuation_per_mm: Array, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Count the photons of one scan of (slices, y, x) images that are fine in-plane.

    Returns the prompts, the background expected in them, and the factor that turns line integrals of SUV into expected
    counts (survival of attenuation times sensitivity), each (angles, bins, slices).
    """
    matrix = system_matrix(PIXELS * FINE, FINE_SPACING_MM[2], np.arange(ANGLES) * np.pi / ANGLES)

    def project(image: Array) -> Array:
        return np.asarray(matrix @ image.reshape(len(image), -1).T).reshape(ANGLES, PIXELS * FINE, len(image))

    emission = gaussian_filter1d(project(activity_suv), DETECTOR_SIGMA_MM / FINE_SPACING_MM[2], axis=1)
    trues = coarsen(emission * np.exp(-project(attenuation_per_mm)), 1, FINE, 1)
    sensitivity = TRUE_COUNTS / trues.sum()
    trues *= sensitivity
    scatter = gaussian_filter(trues, (4, 60 / SPACING_MM[1], 40 / SPACING_MM[0]), mode=("wrap", "constant", "nearest"))
    background = SCATTER_PER_TRUE * trues.sum() * scatter / scatter.sum() + RANDOMS_PER_TRUE * trues.mean()
    prompts = rng.poisson(trues + background).astype(np.float32)
    # The scanner knows attenuation from a CT at PET resolution, which is smoother than the truth.
    survival = np.exp(-project(gaussian_filter(attenuation_per_mm, (0.6, 1.2, 1.2))))
    return prompts, background.astype(np.float32), (coarsen(survival, 1, FINE, 1) * sensitivity).astype(np.float32)


def reconstruct(prompts: Array, background: Array, factor: Array) -> Array:
    """Run OSEM and the Gaussian post-filter; returns SUV, shape (slices, y, x)."""
    image = np.ones((PIXELS**2, SLICES), np.float32)
    subsets = []
    for first in range(SUBSETS):
        matrix = system_matrix(PIXELS, SPACING_MM[1], np.arange(first, ANGLES, SUBSETS) * np.pi / ANGLES)
        sinograms = (sinogram[first::SUBSETS].reshape(-1, SLICES) for sinogram in (prompts, background, factor))
        subsets.append((matrix, *sinograms))
    for matrix, counted, expected_background, weight in subsets * ITERATIONS:
        expected = weight * (matrix @ image) + expected_background
        image *= (matrix.T @ (weight * counted / expected)) / np.maximum(matrix.T @ weight, 1e-12)
    widths = [FILTER_SIGMA_MM / spacing for spacing in SPACING_MM]
    return np.asarray(gaussian_filter(image.T.reshape(SLICES, PIXELS, PIXELS), widths), dtype=np.float32)


def simulate(seed: int = SEED) -> tuple[Array, npt.NDArray[np.uint8], Body]:
    """Return the scan in SUVbw (z, y, x), the true tumour mask on its grid, and the anatomy behind both."""
    rng = np.random.default_rng(seed)
    body = Body(rng)
    paint_soft_walls(body, rng)
    paint_bones(body, rng)
    paint_organs(body, rng)
    tumour = paint_urine_and_tumour(body, rng)
    # Projection is slice by slice, so the axial part of the detector's blur can come before it.
    blurred_suv = gaussian_filter1d(body.activity_suv, DETECTOR_SIGMA_MM / FINE_SPACING_MM[0], axis=0)
    slabs = coarsen(blurred_suv, FINE, 1, 1), coarsen(body.attenuation_per_mm, FINE, 1, 1)
    scan_suv = reconstruct(*acquire(*slabs, rng))
    mask = coarsen(tumour, FINE, FINE, FINE) >= 0.5
    return np.round(scan_suv / SUV_STEP).astype(np.float32) * np.float32(SUV_STEP), mask.astype(np.uint8), body


def main() -> None:
    """Simulate, write both files and say what is in them."""
    parser = argparse.ArgumentParser(description="Simulate one FDG PET scan of a pelvis with a cervical tumour.")
    parser.add_argument("--output", type=Path, default=Path("examples"), metavar="DIR")
    folder: Path = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    scan_suv, mask, _ = simulate()
    for name, array in (("pelvis", scan_suv), ("pelvis_mask", mask)):
        image: Any = sitk.GetImageFromArray(array)
        image.SetSpacing(SPACING_MM[::-1])  # SimpleITK counts (x, y, z)
        image.SetOrigin(ORIGIN_LPS_MM)
        sitk.WriteImage(image, str(folder / f"{name}.nii.gz"), useCompression=True, compressionLevel=9)
    volume_ml = mask.sum() * np.prod(SPACING_MM) / 1000
    print(f"tumour {volume_ml:.1f} ml, SUVmax {scan_suv[mask == 1].max():.1f}; scan SUVmax {scan_suv.max():.1f}")


if __name__ == "__main__":
    main()
