"""FLAB on spheres scanned by the simulated scanners, against their known volumes: `docs/flab.md`.

    python benchmarks/flab_spheres.py --output docs/flab.md

The published error is 5-15 % for diameters of 13-37 mm at contrasts of 4:1 and 8:1 (Hatt et al., IEEE TMI 2009). Five
spheres stand in a warm cylinder, as in the phantom of NEMA NU 2; the noise is that of the reconstruction, at two times
for a bed position; each setting is scanned several times with the spheres at other places within a voxel.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich.progress import track

from petseg_runtime.volume import FloatArray
from petseg_train.ground_truth.flab import flab
from petseg_train.report import markdown_table
from petseg_train.simulation.acquisition import Scan, acquire, first_pixel_mm
from petseg_train.simulation.canvas import SPACING_MM, Canvas, Label, Point, ellipsoid
from petseg_train.simulation.centres import BIOGRAPH, GEMINI_TF, Scanner

DIAMETERS_MM = (13, 17, 22, 28, 37)
CONTRASTS = (4.0, 8.0)
CLASSES = (2, 3)
BED_S = (240.0, 60.0)
# As FLAB was published: neither time of flight nor resolution modelling nor blobs, a filter of 5 mm, two voxel sizes.
_PLAIN = replace(GEMINI_TF, tof_mm=None, blob_mm=None, filter_mm=(5.0, 5.0))
SCANNERS = {
    "published, 2 mm voxels": replace(_PLAIN, voxel_mm=(2.0, 2.0), matrix=256),
    "published, 4 mm voxels": _PLAIN,
    "Biograph, PSF+TOF": BIOGRAPH,
    "Gemini TF, BLOB-OS-TF": GEMINI_TF,
}
CYLINDER_MM, RING_MM, VOI_MARGIN_MM = 110.0, 58.0, 8.0
BACKGROUND_BQ_PER_ML = 5300.0  # of NEMA NU 2


def main() -> None:
    """Scan, segment, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/flab.md"))
    parser.add_argument("--scans", type=int, default=5, help="scans of each setting")
    arguments = parser.parse_args()
    settings = [(name, contrast, bed_s) for name in SCANNERS for contrast in CONTRASTS for bed_s in BED_S]
    rows: dict[int, list[list[str]]] = {classes: [] for classes in CLASSES}
    for name, contrast, bed_s in track(settings, "Scanning spheres"):
        errors, noise = zip(*(_scan(SCANNERS[name], contrast, bed_s, seed) for seed in range(arguments.scans)))
        for number, classes in enumerate(CLASSES):
            of_each = np.array(errors)[:, number]
            cells = [f"{100 * mean:+.0f} ± {100 * sd:.0f}" for mean, sd in zip(of_each.mean(0), of_each.std(0, ddof=1))]
            rows[classes].append([name, f"{contrast:.0f}:1", f"{100 * np.mean(noise):.0f} %", *cells])
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(_page(rows, arguments.scans), encoding="utf-8")
    print(f"wrote {arguments.output}")


def _scan(scanner: Scanner, contrast: float, bed_s: float, seed: int) -> tuple[list[list[float]], float]:
    """Relative volume errors of the five spheres in one scan, by `CLASSES`, and the noise in the background."""
    rng = np.random.default_rng(seed)
    canvas = Canvas((-55.0, 55.0))
    cylinder = ellipsoid((0, 0, 0), (CYLINDER_MM, CYLINDER_MM, 1e6))
    canvas.paint(cylinder, (0, 0, 0), CYLINDER_MM, Label.MUSCLE, 1.0)
    truths_ml, centres = [], []
    for index, diameter in enumerate(DIAMETERS_MM):
        angle = 2 * np.pi * index / len(DIAMETERS_MM)
        middle = np.array([RING_MM * np.cos(angle), RING_MM * np.sin(angle), 0.0]) + rng.uniform(-2, 2, 3)
        centre: Point = (float(middle[0]), float(middle[1]), float(middle[2]))
        _, inside = canvas.inside(ellipsoid(centre, (diameter / 2,) * 3), centre, diameter)
        canvas.ball(centre, diameter / 2, Label.TUMOUR, contrast)
        truths_ml.append(inside.sum() * SPACING_MM**3 / 1000)
        centres.append(centre)
    z_mm = np.arange(-40, 40.1, scanner.voxel_mm[1], dtype=np.float32)
    image = acquire(canvas, Scan(scanner, bed_s, BACKGROUND_BQ_PER_ML, z_mm), rng)
    plane = first_pixel_mm(scanner) + np.arange(scanner.matrix) * scanner.voxel_mm[0]
    voxel_ml = scanner.voxel_mm[0] ** 2 * scanner.voxel_mm[1] / 1000
    errors: list[list[float]] = [[] for _ in CLASSES]
    for of_classes, classes in zip(errors, CLASSES):
        for centre, diameter, truth_ml in zip(centres, DIAMETERS_MM, truths_ml):
            voi = _distance(z_mm, plane, centre) < diameter / 2 + VOI_MARGIN_MM
            of_classes.append(float(flab(image, voi, rng, classes).sum() * voxel_ml / truth_ml - 1))
    middle_values = image[_distance(z_mm, plane, (0, 0, 0)) < 25]
    return errors, float(middle_values.std() / middle_values.mean())


def _distance(z_mm: FloatArray, plane: npt.NDArray[np.float64], centre: Point) -> npt.NDArray[np.float64]:
    dz, dy, dx = z_mm - centre[2], plane - centre[1], plane - centre[0]
    distance: npt.NDArray[np.float64] = np.sqrt(dz[:, None, None] ** 2 + dy[:, None] ** 2 + dx**2)
    return distance


def _page(rows: dict[int, list[list[str]]], scans: int) -> str:
    columns = ["scanner", "contrast", "noise", *(f"{diameter} mm" for diameter in DIAMETERS_MM)]
    return f"""# FLAB on spheres

Error of the volume in %, mean ± standard deviation of {scans} scans. Published: 5-15 % for 13-37 mm at 4:1 and 8:1,
with a variation below 4 % (Hatt et al., IEEE TMI 2009). Written by `python benchmarks/flab_spheres.py`.

`noise` is the standard deviation / mean of the background; the volume of interest is a ball {VOI_MARGIN_MM:.0f} mm
wider in radius. "published" is a scanner as FLAB was published on: neither time of flight nor resolution modelling, and
a filter of 5 mm. The other two are those of the simulated cohort.

{markdown_table(pd.DataFrame(rows[2], columns=columns))}

## Three classes

`--method flab3` is for tumours of two uptakes, of which these spheres have one: the class between finds the blurred
rim. Use it where two classes split a tumour, and nowhere else.

{markdown_table(pd.DataFrame(rows[3], columns=columns))}
"""


if __name__ == "__main__":
    main()
