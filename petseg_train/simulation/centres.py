"""The paper's five centres as scanners: Table 1, and what each scanner's data sheet adds to it.

Voxel sizes, patients, reconstruction methods, bed times and doses are Table 1 of Iantsen et al. (EJNMMI 2021). What the
table leaves open follows the scanners' published performance (NEMA NU 2 resolution, timing and scatter fraction:
Jakoby et al., Phys Med Biol 2011, for the Biograph; Teräs et al., EJNMMI 2007, for the Discovery STE; Bettinardi et
al., EJNMMI 2004 and Med Phys 2011, for the Discovery ST and the generation of the 710; Surti et al., J Nucl Med 2007,
for the Gemini TF) and the vendors' usual settings of iterations, subsets and filters, set so that the noise in the
liver comes out as in clinical images (standard deviation a tenth to a fifth of the mean).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from petseg_runtime.errors import UsageError


@dataclass(frozen=True)
class Scanner:
    """A scanner with its reconstruction.

    Attributes
    ----------
    manufacturer, model : DICOM Manufacturer (0008,0070) and ManufacturerModelName (0008,1090).
    voxel_mm : in plane, and between slices.
    matrix : pixels of a side of the image.
    method : the reconstruction's name in Table 1.
    resolution_mm : full width at half maximum (FWHM) of the detectors' blur.
    tof_mm : FWHM of the time-of-flight localisation along the line of response; None without time of flight.
    iterations, subsets : of the ordered-subset expectation maximisation (OSEM).
    psf : the reconstruction models the detectors' blur (resolution modelling).
    blob_mm : FWHM of the smooth basis functions that replace voxels; None for voxels.
    filter_mm : FWHM of the filter after the reconstruction, in plane and between slices.
    sensitivity : true coincidences without attenuation for each decay in a slice, with the overlap of bed positions.
    scatter_fraction : scattered among scattered and true coincidences.
    randoms_fraction : random coincidences for each true and scattered one.
    """

    manufacturer: str
    model: str
    voxel_mm: tuple[float, float]
    matrix: int
    method: str
    resolution_mm: float
    tof_mm: float | None
    iterations: int
    subsets: int
    psf: bool
    blob_mm: float | None
    filter_mm: tuple[float, float]
    sensitivity: float
    scatter_fraction: float
    randoms_fraction: float


@dataclass(frozen=True)
class Centre:
    """A hospital: its patients by scanner, and its protocol (mean and standard deviation).

    Attributes
    ----------
    patients : patients on each scanner.
    bed_s, dose_mbq : time for a bed position, injected activity.
    urine_suv : median of the uptake of urine, drawn before the limits of 5 and 60 SUV. Not in the paper: it stands for
        the centre's habit of hydration and voiding, and is fitted to T40's results (Table 2), which tell the centres
        apart. So T40's score on the cohort is no check of it.
    """

    name: str
    patients: tuple[tuple[Scanner, int], ...]
    bed_s: tuple[float, float]
    dose_mbq: tuple[float, float]
    urine_suv: float


_MM_PER_PS = 0.149896  # half the speed of light: a coincidence's time difference moves it by half its path

BIOGRAPH = Scanner(
    manufacturer="SIEMENS",
    model="Biograph",
    voxel_mm=(4.073, 2.027),
    matrix=200,
    method="PSF+TOF",
    resolution_mm=4.8,
    tof_mm=540 * _MM_PER_PS,
    iterations=2,
    subsets=21,
    psf=True,
    blob_mm=None,
    filter_mm=(3.0, 3.0),
    sensitivity=0.036,
    scatter_fraction=0.33,
    randoms_fraction=0.5,
)
DISCOVERY_STE = Scanner(
    manufacturer="GE MEDICAL SYSTEMS",
    model="Discovery STE",
    voxel_mm=(4.688, 3.27),
    matrix=128,
    method="3D IR",
    resolution_mm=5.3,
    tof_mm=None,
    iterations=2,
    subsets=28,
    psf=False,
    blob_mm=None,
    filter_mm=(6.0, 4.0),
    sensitivity=0.032,
    scatter_fraction=0.35,
    randoms_fraction=0.7,
)
DISCOVERY_710 = Scanner(
    manufacturer="GE MEDICAL SYSTEMS",
    model="Discovery 710",
    voxel_mm=(3.646, 3.27),
    matrix=192,
    method="VPFXS",
    resolution_mm=4.9,
    tof_mm=544 * _MM_PER_PS,
    iterations=2,
    subsets=24,
    psf=True,
    blob_mm=None,
    filter_mm=(5.5, 4.0),
    sensitivity=0.036,
    scatter_fraction=0.37,
    randoms_fraction=0.5,
)
DISCOVERY_ST = Scanner(
    manufacturer="GE MEDICAL SYSTEMS",
    model="Discovery ST",
    voxel_mm=(5.469, 3.27),
    matrix=128,
    method="OSEM",
    resolution_mm=6.2,
    tof_mm=None,
    iterations=2,
    subsets=21,
    psf=False,
    blob_mm=None,
    filter_mm=(5.5, 4.0),
    sensitivity=0.034,
    scatter_fraction=0.42,
    randoms_fraction=0.8,
)
GEMINI_TF = Scanner(
    manufacturer="Philips Medical Systems",
    model="Gemini TF",
    voxel_mm=(4.0, 4.0),
    matrix=144,
    method="BLOB-OS-TF",
    resolution_mm=4.9,
    tof_mm=585 * _MM_PER_PS,
    iterations=3,
    subsets=33,
    psf=False,
    blob_mm=7.5,
    filter_mm=(0.0, 0.0),
    sensitivity=0.032,
    scatter_fraction=0.30,
    randoms_fraction=0.5,
)

CENTRES = (
    Centre("Brest", ((BIOGRAPH, 69),), (120, 17), (253, 80), 5.0),
    Centre("Nantes", ((BIOGRAPH, 18), (DISCOVERY_STE, 5)), (202, 32), (210, 56), 3.0),
    Centre("Montreal", ((DISCOVERY_710, 7), (DISCOVERY_ST, 19)), (212, 30), (398, 81), 4.5),
    Centre("Barcelona", ((GEMINI_TF, 24),), (109, 21), (228, 50), 7.5),
    Centre("Liege", ((GEMINI_TF, 90),), (73, 16), (260, 32), 8.5),
)

_AT_LEAST = 2  # patients of a centre: one alone has no spread


def cohort_plan(patients: int) -> list[tuple[Centre, Scanner]]:
    """Centre and scanner of each patient, centre after centre: Table 1 for 232 patients, its shares for other numbers.

    Raises
    ------
    UsageError : if there are fewer than two patients for each centre.
    """
    fewest = _AT_LEAST * len(CENTRES)
    if patients < fewest:
        raise UsageError(f"{patients} patients were asked for, expected {fewest} or more: two a centre.")
    plan = []
    seats = _apportioned([sum(count for _, count in centre.patients) for centre in CENTRES], patients, _AT_LEAST)
    for centre, of_centre in zip(CENTRES, seats):
        of_scanners = _apportioned([count for _, count in centre.patients], of_centre, 0)
        for (scanner, _), of_scanner in zip(centre.patients, of_scanners):
            plan += [(centre, scanner)] * of_scanner
    return plan


def _apportioned(shares: Sequence[int], total: int, at_least: int) -> list[int]:
    """Whole numbers that sum to `total`, as near to the shares as the least number allows."""
    quotas = [share * total / sum(shares) for share in shares]
    seats = [max(at_least, int(quota)) for quota in quotas]
    while sum(seats) < total:
        seats[max(range(len(seats)), key=lambda one: quotas[one] - seats[one])] += 1
    while sum(seats) > total:
        spare = [one for one in range(len(seats)) if seats[one] > at_least]
        seats[max(spare, key=lambda one: seats[one] - quotas[one])] -= 1
    return seats
