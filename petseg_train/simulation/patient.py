"""One simulated patient: anatomy, tumour, scan, and the truth on the scan's grid."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import map_coordinates, uniform_filter

from petseg_runtime.volume import FloatArray, Geometry, MaskArray, Unit, Volume
from petseg_train.simulation.acquisition import Scan, acquire, first_pixel_mm
from petseg_train.simulation.anatomy import Habitus, paint_anatomy, vary
from petseg_train.simulation.canvas import SPACING_MM, Canvas, Label
from petseg_train.simulation.centres import Centre, Scanner
from petseg_train.simulation.lesion import Lesion, draw_urine, paint_lesion
from petseg_train.simulation.thorax import paint_above_the_abdomen

F18_HALF_LIFE_S = 6586.2
_SLICES = (77, 192)  # of the paper's scans
# Where scans of the trunk end, and how many of 100 there or before: in the thorax, below the skull's base, at the top
# of the head.
_TRUNK_TOPS_MM = (((400.0, 660.0), 25), ((720.0, 800.0), 55), ((930.0, 950.0), 100))
_HOT = 0.5  # of the tumour's mean uptake: what an expert takes care to leave out


@dataclass(frozen=True)
class Protocol:
    """How a patient was scanned: injected activity, weight, time from the injection to the scan, time for a bed."""

    scanner: Scanner
    dose_mbq: float
    weight_kg: float
    uptake_s: float
    bed_s: float

    @property
    def becquerel_per_ml(self) -> float:
        """Activity concentration of SUV 1 at the time of the scan."""
        return self.dose_mbq * 1e6 * 2 ** (-self.uptake_s / F18_HALF_LIFE_S) / (self.weight_kg * 1000)


@dataclass(frozen=True)
class Patient:
    """A simulated scan in SUV, with what is where on its grid, and what was drawn for it.

    Attributes
    ----------
    tumour, bladder : exact masks `(z, y, x)` of what takes up the tracer; a necrotic core is not part of the tumour.
    other_uptake : what an expert leaves out of the volume of interest: the bladder, and all else that is hot.
    noise : standard deviation / mean of the scan's voxels within "muscle" and "liver", where they are seen.
    """

    centre: str
    protocol: Protocol
    lesion: Lesion
    volume: Volume
    tumour: MaskArray
    bladder: MaskArray
    other_uptake: MaskArray
    noise: dict[str, float]


def simulate_patient(centre: Centre, scanner: Scanner, rng: np.random.Generator, trunk: bool = False) -> Patient:
    """Draw a patient of the centre and scan it. All randomness comes from `rng`.

    With `trunk` the scan goes on from the abdomen into the thorax, to the skull's base or over the whole head.
    """
    habitus = Habitus.draw(rng)
    protocol = Protocol(
        scanner=scanner,
        dose_mbq=_draw(centre.dose_mbq, rng),
        weight_kg=habitus.weight_kg * float(rng.lognormal(0, 0.05)),
        uptake_s=60 * float(np.clip(rng.normal(65, 8), 50, 90)),
        bed_s=_draw(centre.bed_s, rng),
    )
    z_mm = trunk_positions(scanner, habitus, rng) if trunk else _slice_positions(scanner, rng)
    canvas = Canvas((float(z_mm[0]) - 15, float(z_mm[-1]) + 15), rng)
    urine_suv = draw_urine(centre.urine_suv, rng)
    paint_anatomy(canvas, habitus, urine_suv, rng)
    if trunk:
        paint_above_the_abdomen(canvas, habitus, rng)
    vary(canvas, rng)
    lesion = paint_lesion(canvas, urine_suv, rng)
    image = acquire(canvas, Scan(scanner, protocol.bed_s, protocol.becquerel_per_ml, z_mm), rng)
    tumour, bladder = canvas.labels == Label.TUMOUR, canvas.labels == Label.BLADDER
    hot = (canvas.uptake > _HOT * canvas.uptake[tumour].mean()) & ~tumour & (canvas.labels != Label.NECROSIS)
    return Patient(
        centre=centre.name,
        protocol=protocol,
        lesion=lesion,
        volume=Volume(_as_stored(image), _geometry(scanner, z_mm), Unit.SUVBW),
        tumour=on_grid(canvas, tumour, scanner, z_mm),
        bladder=on_grid(canvas, bladder, scanner, z_mm),
        other_uptake=on_grid(canvas, bladder | hot, scanner, z_mm),
        noise={
            organ.name.lower(): _noise(image[on_grid(canvas, canvas.labels == organ, scanner, z_mm, 0.99) > 0])
            for organ in (Label.MUSCLE, Label.LIVER)
        },
    )


def record(patient: Patient) -> dict[str, object]:
    """What was drawn for the patient, as columns of the cohort's CSV."""
    protocol, lesion = patient.protocol, patient.lesion
    return {
        "scanner": protocol.scanner.model,
        "dose_mbq": round(protocol.dose_mbq, 1),
        "weight_kg": round(protocol.weight_kg, 1),
        "uptake_min": round(protocol.uptake_s / 60, 1),
        "bed_s": round(protocol.bed_s, 1),
        **{key: round(value, 2) if isinstance(value, float) else value for key, value in asdict(lesion).items()},
        "touches_bladder": lesion.touches_bladder,
    }


def _draw(mean_and_deviation: tuple[float, float], rng: np.random.Generator) -> float:
    """A normal value, at least 40 % of the mean."""
    mean, deviation = mean_and_deviation
    return float(max(0.4 * mean, rng.normal(mean, deviation)))


def _slice_positions(scanner: Scanner, rng: np.random.Generator) -> FloatArray:
    """Centres of the slices in mm above the cervix: upper thighs to the lumbar spine, kidneys or lower liver."""
    step = scanner.voxel_mm[1]
    count = int(np.clip(round(rng.uniform(300, 390) / step), *_SLICES))
    lowest = min(-85.0, float(rng.normal(-112, 10)))
    return np.asarray(lowest + step * np.arange(count), dtype=np.float32)


def trunk_positions(scanner: Scanner, habitus: Habitus, rng: np.random.Generator) -> FloatArray:
    """Likewise, from the upper thighs to a place of `_TRUNK_TOPS_MM`."""
    of_100 = rng.uniform(0, 100)
    tops = next(tops for tops, share in _TRUNK_TOPS_MM if of_100 <= share)
    lowest = min(-85.0, float(rng.normal(-112, 10)))
    return np.arange(lowest, habitus.size * rng.uniform(*tops), scanner.voxel_mm[1], dtype=np.float32)


def _geometry(scanner: Scanner, z_mm: FloatArray) -> Geometry:
    in_plane, between = scanner.voxel_mm
    first = first_pixel_mm(scanner)
    shape = (len(z_mm), scanner.matrix, scanner.matrix)
    return Geometry(shape, (between, in_plane, in_plane), origin_lps_mm=(first, first, float(z_mm[0])))


def _noise(values: FloatArray) -> float:
    """Standard deviation / mean; `nan` for fewer than 100 voxels."""
    return float(values.std() / values.mean()) if len(values) >= 100 else float("nan")


def on_grid(
    canvas: Canvas, mask: npt.NDArray[np.bool_], scanner: Scanner, z_mm: FloatArray, share: float = 0.5
) -> MaskArray:
    """Voxels of the scan that `mask` fills by `share` or more."""
    in_plane, between = scanner.voxel_mm
    sides = [max(1, round(side / SPACING_MM)) for side in (between, in_plane, in_plane)]
    filled = uniform_filter(mask.astype(np.float32), sides)
    plane = first_pixel_mm(scanner) + in_plane * np.arange(scanner.matrix)
    # The mean over an even number of the canvas's voxels lies half a voxel before the one that it is stored at.
    places = [
        (axis - origin[0]) / SPACING_MM + (0.5 if side % 2 == 0 else 0.0)
        for axis, origin, side in zip((z_mm, plane, plane), canvas.axes, sides)
    ]
    grid = np.meshgrid(*places, indexing="ij")
    return (map_coordinates(filled, grid, order=1, cval=0.0) >= share).astype(np.uint8)


def _as_stored(image: FloatArray) -> FloatArray:
    """Rounded as a scanner stores it: 15 bits a slice-independent step."""
    step = np.float32(max(float(image.max()), 1e-6) / 32767)
    stored: FloatArray = np.round(image / step) * step
    return stored
