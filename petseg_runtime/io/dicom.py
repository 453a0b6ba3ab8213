"""A DICOM PET series to a Volume in SUVbw.

The recipe: read the headers, choose the series, check that its slices are alike, sort them onto one straight
grid, find the SUV factor, read the voxels. Nothing is allocated before the headers have passed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from petseg_runtime.errors import InputError
from petseg_runtime.io.dicom_header import Header, group_by_study, read_headers
from petseg_runtime.io.dicom_pixels import check_pixel_format, read_slice
from petseg_runtime.io.dicom_series import choose_pet_series
from petseg_runtime.io.identity import content_digest
from petseg_runtime.io.plausible import MAX_VOXELS, check_activity, check_grid, check_uptake
from petseg_runtime.io.suv import merge_attributes, suvbw_factors
from petseg_runtime.io.suv_attributes import CORRECTED_IMAGE, NO_OVERRIDES, SuvOverrides
from petseg_runtime.io.tracer import foreign_tracer
from petseg_runtime.volume import FloatArray, Geometry, Unit, Volume

__all__ = ["Header", "choose_pet_series", "group_by_study", "pet_volume", "read_headers", "read_pet_series"]

# How far a voxel may lie from the straight grid, in voxels. Rounded positions deviate by a few hundredths, a
# missing slice by a half and more.
GRID_TOLERANCE = 0.1
# Slices closer than this are at one position.
SAME_POSITION_MM = 1e-2
# Cosines are written with a few decimals; more than this is a sheared or meaningless orientation.
COSINE_TOLERANCE = 1e-3
# Two slices of a series say the same orientation or spacing, to the decimals that vendors write.
SAME_VALUE = 1e-4

_UNCOUNTED_NOTE = "NumberOfSlices (0054,0081) is absent, so slices that are missing at an end cannot be noticed."
_SHIFTED = (
    "RescaleIntercept (0028,1052) is not 0, as it is in PET (PS3.3 C.8.9.4): it was added to the voxels. Check SUV."
)
# Parts of the body (PS3.16 annex L) of which models for abdomen and pelvis know nothing, and what is none; and words by
# which it is more than that, as CHESTABDPELVIS and SKULL TO THIGH, or another neck, as of the uterus.
_ELSEWHERE = re.compile(r"BRAIN|HEAD|SKULL|NECK|HEART|CHEST|THORAX|PHANTOM")
_HERE = re.compile(r"ABD|PELV|THIGH|TRUNK|BODY|PANCREA|FEM|UTER|CERV|BLADDER")
_PADDING_NOTE = "Pixels of PixelPaddingValue (0028,0120), which stand for no image, count as no uptake."

Vector = npt.NDArray[np.float64]


def read_pet_series(files: Sequence[Path], overrides: SuvOverrides = NO_OVERRIDES, wanted: str = "") -> Volume:
    """Read the PET of one study as a volume in SUVbw.

    Parameters
    ----------
    files : of one study, in any order and under any names; other series and files that are not DICOM may be
        among them.
    overrides : what the user says of weight, dose and the like in place of the header.
    wanted : number or description of the series, see `choose_pet_series`.

    Returns
    -------
    Volume : float32 `(z, y, x)` in g/ml. Axis x runs along the rows of the slices, y along their columns, z along
        the normal (row x column), so the axes are right-handed whatever the patient's position. `notes` say
        which series was taken and where the SUV factor comes from.

    Raises
    ------
    InputError : if the files hold no PET series that is fit for SUV, or not exactly one; if slices are missing,
        doubled, tilted or unlike each other; if a file is damaged; or if SUV cannot be computed.

    References
    ----------
    PS3.3 C.7.6.2.1.1 (position and orientation), C.8.9 (PET).
    """
    return pet_volume(read_headers(files), overrides, wanted)


def pet_volume(
    headers: Sequence[Header],
    overrides: SuvOverrides = NO_OVERRIDES,
    wanted: str = "",
    max_voxels: int = MAX_VOXELS,
) -> Volume:
    """The same from headers that have been read."""
    series, choice = choose_pet_series(_only_study(headers), wanted)
    series, copies = _without_copies(series)
    warnings: tuple[str, ...] = ()
    if series[0].attenuation_corrected is None:
        warnings = (f"{CORRECTED_IMAGE} is absent: nothing says that the scan is corrected for attenuation. Check it.",)
    for header in series:
        if header.contradiction:
            raise InputError(header.contradiction)
    _check_alike(series)
    ordered, geometry = _stack(series, max_voxels)
    _check_complete(series)
    for header in ordered:
        check_pixel_format(header)
    attributes = merge_attributes(header.suv for header in ordered)
    factors = suvbw_factors(attributes, overrides)
    array = _read_voxels(ordered, geometry, factors.per_frame)
    weight_kg = overrides.weight_kg or attributes.weight_kg
    warnings += check_activity(array, geometry.voxel_volume_ml, weight_kg, "The PET series")
    warnings += foreign_tracer(attributes.radionuclide, overrides.half_life_s or attributes.half_life_s)
    warnings += _foreign_region(series[0])
    warnings += (_SHIFTED,) if any(header.intercept for header in ordered) else ()
    padded = any(header.pixels.padding for header in ordered)
    notes = (choice, factors.note, *((_PADDING_NOTE,) if padded else ()))
    notes += (f"{copies} files are copies of others, byte for byte, and were left out.",) if copies else ()
    notes += () if any(header.declared_slices for header in series) else (_UNCOUNTED_NOTE,)
    source = tuple(str(header.path) for header in ordered)
    return Volume(array, geometry, Unit.SUVBW, notes, (*warnings, *factors.warnings), source)


def _foreign_region(header: Header) -> tuple[str, ...]:
    """A warning where a series says that it is of what a model for abdomen and pelvis does not know; else nothing."""
    found = next(filter(None, (_ELSEWHERE.search(part) for part in header.body_part if not _HERE.search(part))), None)
    if found is None:
        return ()
    said = f"BodyPartExamined (0018,0015) or AnatomicRegionSequence (0008,2218) says {found.group()}"
    return (f"{said}: a model for abdomen and pelvis, as the bundled one is, may mark normal uptake in it.",)


def _only_study(headers: Sequence[Header]) -> list[Header]:
    """The study with a PET; the only one, so that no two patients or visits are mixed."""
    if all(header.blank for header in headers):
        raise InputError("None of the files is DICOM. Pass the files of a PET series.")
    for header in headers:
        if header.damage and not header.sop_class and not header.blank:
            raise InputError(header.damage)
    studies = group_by_study(headers)
    with_pet = [study for study in studies if any(header.modality == "PT" for header in study)]
    if len(with_pet) > 1:
        raise InputError(
            f"The files are of {len(with_pet)} studies or patients, expected one. Pass one study at a time."
        )
    return (with_pet or studies)[0]


def _without_copies(series: list[Header]) -> tuple[list[Header], int]:
    """The series with one file of those that are the same byte for byte, as two exports leave them; and their number.

    Files are read for it only where two slices lie at one position.
    """
    at = Counter(header.position_mm for header in series)
    shared = {header.path for header in series if at[header.position_mm] > 1}
    first: dict[bytes, Path] = {}
    for file in sorted(shared):
        first.setdefault(content_digest(file), file)
    copies = shared - set(first.values())
    return [header for header in series if header.path not in copies], len(copies)


def _check_complete(series: Sequence[Header]) -> None:
    """Refuse a series with fewer slices, or fewer parts, than it says: at its ends, positions tell of no gap."""
    declared = max(header.declared_slices or 0 for header in series)
    if len(series) < declared:
        raise InputError(
            f"NumberOfSlices (0054,0081) is {declared}, but there are {len(series)} slices. Pass the whole series."
        )
    parts, files = max(header.parts or 1 for header in series), len({header.path for header in series})
    if files < parts:
        raise InputError(
            f"InConcatenationTotalNumber (0020,9163) is {parts}, but there are {files} files. Pass the whole series."
        )


def _check_alike(series: Sequence[Header]) -> None:
    """Refuse slices that differ where a volume has one value."""
    if len({header.frame_of_reference for header in series}) > 1:
        raise InputError("The slices have different FrameOfReferenceUID (0020,0052). Pass the slices of one scan.")
    looks: tuple[tuple[str, Callable[[Header], tuple[float, ...] | None]], ...] = (
        ("PixelSpacing (0028,0030)", lambda header: header.pixel_spacing_mm),
        ("ImageOrientationPatient (0020,0037)", lambda header: header.orientation),
    )
    for name, look in looks:
        values = [look(header) or () for header in series]
        if len(set(map(len, values))) > 1 or (np.ptp(np.array(values), axis=0) > SAME_VALUE).any():
            low, high = min(values), max(values)
            raise InputError(f"{name} is {low} in some slices and {high} in others. Pass slices that are alike.")


def _stack(series: Sequence[Header], max_voxels: int) -> tuple[list[Header], Geometry]:
    """Slices in the order of their positions along the normal, and the grid they lie on.

    With first position p0, cosines r and c, and n = r x c, voxel (z, y, x) lies at
    p0 + z dz n + y dy c + x dx r (PS3.3 equation C.7.6.2.1-1).
    """
    if len(series) < 2:
        raise InputError("The PET series is a single slice, expected a volume. Pass all slices of the series.")
    rows, columns, (dy, dx), row, column = _plane(series[0])
    normal = np.cross(row, column)
    positions = np.array([_position(header) for header in series])
    order = np.argsort(positions @ normal, kind="stable")
    positions, along = positions[order], (positions @ normal)[order]
    _check_doubled(along, series)
    dz = float(along[-1] - along[0]) / (len(series) - 1)
    grid = positions[0] + np.arange(len(series))[:, None] * dz * normal
    off_zyx = np.abs((positions - grid) @ np.stack([normal / dz, column / dy, row / dx], axis=1)).max(axis=0)
    if off_zyx[0] > GRID_TOLERANCE:
        raise InputError(_gap(along))
    if off_zyx[1:].max() > GRID_TOLERANCE:
        raise InputError(
            f"The slices are shifted against each other by up to {max(off_zyx[1] * dy, off_zyx[2] * dx):.1f} mm across "
            "their normal, as with a tilted gantry. Pass a series that is not tilted."
        )
    check_grid((len(series), rows, columns), (dz, dy, dx), "The series", max_voxels)
    direction = np.stack([normal, column, row], axis=1)
    geometry = Geometry(
        shape=(len(series), rows, columns),
        spacing_mm=(dz, dy, dx),
        origin_lps_mm=_triple(positions[0]),
        direction_lps=(_triple(direction[0]), _triple(direction[1]), _triple(direction[2])),
    )
    return [series[index] for index in order], geometry


def _plane(header: Header) -> tuple[int, int, tuple[float, float], Vector, Vector]:
    """Rows, columns, spacing `(y, x)` in mm, and the unit vectors along a row (x) and along a column (y)."""
    rows, columns, spacing, cosines = header.rows, header.columns, header.pixel_spacing_mm, header.orientation
    if not rows or not columns:
        raise InputError(f"Rows (0028,0010) x Columns (0028,0011) is {rows} x {columns}. Pass another series.")
    if spacing is None or len(spacing) != 2 or min(spacing) <= 0:
        raise InputError(f"PixelSpacing (0028,0030) is {spacing}, expected two positive numbers. Pass another series.")
    if cosines is None or len(cosines) != 6:
        raise InputError(
            f"ImageOrientationPatient (0020,0037) is {cosines}, expected six numbers. Pass another series."
        )
    row, column = np.array(cosines[:3]), np.array(cosines[3:])
    if max(abs(row @ row - 1), abs(column @ column - 1), abs(row @ column)) > COSINE_TOLERANCE:
        raise InputError(
            f"ImageOrientationPatient (0020,0037) is {cosines}, expected two unit vectors at a right angle. "
            "Pass another series."
        )
    row /= np.linalg.norm(row)
    column -= (column @ row) * row
    return rows, columns, (spacing[0], spacing[1]), row, column / np.linalg.norm(column)


def _position(header: Header) -> tuple[float, ...]:
    if header.position_mm is None or len(header.position_mm) != 3:
        raise InputError(
            f"{header.path.name} has no ImagePositionPatient (0020,0032) of three numbers, so its place is unknown. "
            "Pass a series that carries it."
        )
    return header.position_mm


def _check_doubled(along: Vector, series: Sequence[Header]) -> None:
    doubled = int((np.diff(along) < SAME_POSITION_MM).sum())
    if doubled:
        kind = "\\".join(series[0].series_type) or "absent"
        raise InputError(
            f"{len(series)} slices lie at {len(series) - doubled} positions: a dynamic or gated scan, or files given "
            f"twice (SeriesType (0054,1000) is {kind}). Pass one slice for each position."
        )


def _gap(along: Vector) -> str:
    """What is wrong with slices that are not evenly spaced."""
    steps = np.diff(along)
    usual = float(np.sort(steps)[(len(steps) - 1) // 2])  # the lower median: one gap among two steps is the odd one
    index = int(np.argmax(steps))
    if steps[index] > 1.5 * usual:
        missing = max(1, round(float(steps[index]) / usual) - 1)
        return (
            f"{missing} slice{'s are' if missing > 1 else ' is'} missing between {along[index]:.2f} mm and "
            f"{along[index + 1]:.2f} mm along the slice normal (spacing {usual:.2f} mm). Pass the whole series."
        )
    return (
        f"The slices are {steps.min():.2f} to {steps.max():.2f} mm apart, expected even spacing. "
        "Pass a series that is evenly spaced."
    )


def _read_voxels(ordered: Sequence[Header], geometry: Geometry, factors: Sequence[float]) -> FloatArray:
    array: FloatArray = np.empty(geometry.shape, np.float32)
    for index, (header, factor) in enumerate(zip(ordered, factors, strict=True)):
        with np.errstate(over="ignore", invalid="ignore"):
            array[index] = read_slice(header) * factor
    check_uptake(array, "The PET series")
    return array


def _triple(vector: Vector) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in vector)
    return x, y, z
