"""Which of the series of a study is the PET to segment, said in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from petseg_runtime.errors import InputError
from petseg_runtime.io.dicom_elements import decoded_text
from petseg_runtime.io.dicom_header import PET_IMAGE_STORAGE, Header
from petseg_runtime.io.suv import is_convertible, is_direct
from petseg_runtime.io.suv_attributes import CORRECTED_IMAGE, UNITS

# Parts of ImageType (0008,0008) and SeriesType (0054,1000) of pictures that are not slices of a volume.
# DERIVED and SECONDARY are not among them: a resampled or anonymised PET carries them.
_NOT_SLICES = ("MIP", "PROJECTION", "LOCALIZER", "SCREEN", "CAPTURE")
_PER_TIME = ("DYNAMIC", "GATED")

# Cosines further apart than this are of two series (half a degree), not the noise of one.
SAME_ORIENTATION = 0.01
# Two series write the place of one slice with other decimals; slices of a PET lie further apart.
SAME_PLACE_MM = 0.1


@dataclass(frozen=True)
class _Series:
    """Files that belong together, and how to speak of them: never by description, UID or patient."""

    headers: tuple[Header, ...]

    @property
    def first(self) -> Header:
        return self.headers[0]

    @property
    def is_pet(self) -> bool:
        return self.first.modality == "PT"

    @property
    def name(self) -> str:
        kind = "PET" if self.is_pet else self.first.modality or "unknown"
        number = self.first.series_number
        return f"{kind} series {number}" if number is not None else f"{kind} series without a number"

    @property
    def count(self) -> str:
        kind = "slice" if self.first.modality in ("PT", "CT", "MR") else "file"
        return f"{len(self.headers)} {kind}{'s' if len(self.headers) > 1 else ''}"

    def __str__(self) -> str:
        """For example `PET series 1 (135 slices, attenuation corrected, BQML)`."""
        words = [self.count]
        if self.is_pet and _flaw(self.first):
            words.append(_flaw(self.first))
        elif self.is_pet and self.first.attenuation_corrected is False:
            words.append("not attenuation corrected")
        elif self.is_pet:
            known = self.first.attenuation_corrected is not None
            words += ["attenuation corrected" if known else "attenuation correction not said"]
            words += [self.first.suv.units or "no unit"]
            words += ["dynamic or gated"] if _is_per_time(self.first) else []
        return f"{self.name} ({', '.join(words)})"


def _flaw(header: Header) -> str:
    """Why a PET file is not a slice of a volume; empty if it is one."""
    if header.sop_class != PET_IMAGE_STORAGE and header.frame is None:
        return "not PET Image Storage"
    if header.pixels.samples not in (None, 1):
        return "in colour"
    if (header.frames or 1) > 1:
        return "several frames in one file"
    if any(part in value for part in _NOT_SLICES for value in (*header.image_type, *header.series_type)):
        return "a projection or screen capture"
    return ""


def _is_per_time(header: Header) -> bool:
    return any(kind in header.series_type for kind in _PER_TIME)


def choose_pet_series(headers: Sequence[Header], wanted: str = "") -> tuple[list[Header], str]:
    """The PET series of a study that is to be segmented, and a sentence that says which it is and what was left out.

    Files form a series if they agree in SeriesInstanceUID (which may be absent), modality, series number,
    unit, attenuation correction, size and orientation. The series must be PET in slices,
    corrected for attenuation (or not say whether it is, where none is); of several such series the only static one in a
    convertible unit is taken, activity and SUVbw before other SUVs.

    Parameters
    ----------
    headers : of one study, in any order; other modalities are named in the sentence and otherwise ignored.
    wanted : which PET series are considered: those of this SeriesNumber (0020,0011) if it is a number, else those with
        this SeriesDescription (0008,103E), or if there is none with this text in it, in whatever case; all where it is
        empty. What it leaves must be one that can be segmented.

    Raises
    ------
    InputError : if there is no such series, or more than one, or one that is mixed from two kinds of slices.
    """
    for header in headers:
        if header.damage and header.modality in ("", "PT"):
            raise InputError(header.damage)
    everything = _group(headers)
    pet = [series for series in everything if series.is_pet]
    if not pet:
        raise InputError(
            f"There is no PET series here (Modality (0008,0060) PT), only {_listed(everything)}. "
            "Pass the PET of the study."
        )
    wanted = str(wanted).strip()
    considered = _considered(pet, wanted)
    if not considered:
        raise InputError(f"No PET series here has {_asked(wanted)}: {_listed(pet)}. Pass --series with what one has.")
    volumes = [series for series in considered if not _flaw(series.first)]
    if not volumes:
        raise InputError(
            f"There is no PET series of slices (PET Image Storage, or Enhanced) here, only {_listed(considered)}. "
            "Pass the reconstructed slices."
        )
    volumes = _without_single_pictures(volumes)
    _refuse_mixture([series for series in volumes if series.first.attenuation_corrected is not False])
    corrected = [series for series in volumes if series.first.attenuation_corrected]
    corrected = corrected or [series for series in volumes if series.first.attenuation_corrected is None]
    if not corrected:
        raise InputError(
            f"No PET series here is corrected for attenuation (ATTN in {CORRECTED_IMAGE}, and neither "
            "AttenuationCorrectionMethod (0054,1101) nor a flag of GE that denies it), so SUV cannot be computed: "
            f"{_listed(volumes)}. Pass the attenuation-corrected series."
        )
    chosen = _the_one(corrected, wanted)
    _refuse_slices_left_out(chosen, pet)
    return list(chosen.headers), _note(chosen, everything, wanted)


def _considered(pet: list[_Series], wanted: str) -> list[_Series]:
    if not wanted:
        return pet
    if wanted.isdecimal():
        return [series for series in pet if series.first.series_number == int(wanted)]
    text = wanted.casefold()
    descriptions = [_description(series) for series in pet]
    exact = [series for series, description in zip(pet, descriptions) if description == text]
    return exact or [series for series, description in zip(pet, descriptions) if text in description]


def _description(series: _Series) -> str:
    raw, encodings = series.first.series_description
    try:
        return decoded_text(raw, encodings).casefold()
    except (LookupError, ValueError):  # no character set of DICOM
        return raw.decode("latin-1").strip(" \0").casefold()


def _asked(wanted: str) -> str:
    if wanted.isdecimal():
        return f"the SeriesNumber (0020,0011) {wanted}"
    return f"{wanted!r} in the SeriesDescription (0008,103E)"


def _group(headers: Sequence[Header]) -> list[_Series]:
    """Series in the order of their modality (PET first) and number."""
    groups: dict[tuple[object, ...], list[list[Header]]] = {}
    for header in headers:
        kind = (header.modality, _flaw(header), _is_per_time(header), header.attenuation_corrected, header.suv.units)
        key = (header.series, header.series_number, *kind, header.rows, header.columns)
        alike = groups.setdefault(key, [])
        group = next((group for group in alike if _is_parallel(group[0], header)), None)
        if group is None:
            alike.append([header])
        else:
            group.append(header)
    series = [_Series(tuple(group)) for alike in groups.values() for group in alike]
    return sorted(series, key=lambda s: (not s.is_pet, s.first.modality, s.first.series_number or 0))


def _is_parallel(one: Header, two: Header) -> bool:
    first, second = one.orientation or (), two.orientation or ()
    return len(first) == len(second) and all(abs(a - b) < SAME_ORIENTATION for a, b in zip(first, second, strict=True))


def _the_one(corrected: list[_Series], wanted: str) -> _Series:
    """Narrow the candidates, each time only if something is left; what remains must be one.

    Of several that the user asked for none is preferred: it may be another than was meant.
    """
    usable: list[Callable[[_Series], bool]] = [
        lambda series: len(series.headers) > 1,
        lambda series: is_convertible(series.first.suv),
    ]
    preferred: list[Callable[[_Series], bool]] = [
        lambda series: is_direct(series.first.suv),
        lambda series: not _is_per_time(series.first),
    ]
    candidates = corrected
    for fits in usable + (preferred if not wanted else []):
        candidates = [series for series in candidates if fits(series)] or candidates
    if len(candidates) > 1 and wanted:
        raise InputError(
            f"{len(candidates)} PET series here have {_asked(wanted)}: {_listed(candidates)}. "
            "Pass --series with what only one has, or its files."
        )
    if len(candidates) > 1:
        raise InputError(
            f"{len(candidates)} PET series here may be segmented, and nothing says which to segment: "
            f"{_listed(candidates)}. Pass the files of one of them, or choose with --series of petseg-run."
        )
    return candidates[0]


def _without_single_pictures(groups: list[_Series]) -> list[_Series]:
    """Without series in which no two slices are alike, such as projections all around: they are no volume.

    All of them where there is nothing else. A stray slice of a volume stays: it may be one of its own.
    """
    volumes = {group.first.series for group in groups if len(group.headers) > 1}
    return [group for group in groups if group.first.series in volumes] or groups


def _refuse_mixture(candidates: list[_Series]) -> None:
    """Two groups with one UID and one number are halves of one series: taking one would lose slices in silence."""
    seen: dict[tuple[str, int | None], _Series] = {}
    for series in candidates:
        other = seen.setdefault((series.first.series, series.first.series_number), series)
        if other is not series:
            raise InputError(
                f"{series.name} holds two kinds of slices: {_difference(other, series)}. Pass the slices of one kind, "
                "or choose another series with --series."
            )


def _refuse_slices_left_out(chosen: _Series, pet: list[_Series]) -> None:
    """Refuse other slices of the chosen series where it has none: without them the scan would be shorter in silence.

    An uncorrected series under the same UID lies where the corrected one does, and may stay out.
    """
    taken = _positions(chosen)
    if not chosen.first.series or not len(taken):
        return
    for series in pet:
        if series is chosen or series.first.series != chosen.first.series:
            continue
        nearest_mm = np.abs(_positions(series)[:, None] - taken).max(axis=2).min(axis=1)
        beyond = int((nearest_mm > SAME_PLACE_MM).sum())
        if beyond:
            raise InputError(
                f"{chosen} has the SeriesInstanceUID (0020,000E) of {series}, of which {beyond} lie where it has no "
                "slice. Pass the slices of one kind, or all of them corrected."
            )


def _positions(series: _Series) -> npt.NDArray[np.float64]:
    """Of the slices that say theirs, `(n, 3)` in mm."""
    found = [header.position_mm for header in series.headers if header.position_mm and len(header.position_mm) == 3]
    return np.array(found, dtype=np.float64).reshape(-1, 3)


def _difference(one: _Series, two: _Series) -> str:
    looks: tuple[tuple[str, Callable[[Header], object]], ...] = (
        (UNITS, lambda header: header.suv.units or "absent"),
        (CORRECTED_IMAGE, lambda header: "said" if header.attenuation_corrected else "absent"),
        ("Rows (0028,0010) x Columns (0028,0011)", lambda header: f"{header.rows} x {header.columns}"),
        ("ImageOrientationPatient (0020,0037)", lambda header: list(header.orientation or ())),
        ("SeriesType (0054,1000)", lambda header: "\\".join(header.series_type)),
    )
    # The two are groups of their own because one of these differs.
    name, look = next((name, look) for name, look in looks if look(one.first) != look(two.first))
    return f"{name} is {look(one.first)} in {one.count} and {look(two.first)} in {two.count}"


def _note(chosen: _Series, everything: list[_Series], wanted: str) -> str:
    if len(everything) == 1:
        return f"Took {chosen}, the only series."
    others = [series for series in everything if series is not chosen]
    why = ", which --series asks for," if wanted else ""
    return f"Took {chosen}{why} out of {len(everything)} series; left out: {_listed(others)}."


def _listed(series: list[_Series]) -> str:
    """Each once: projections all around are a group each, and alike in words."""
    counted = Counter(map(str, series))
    return ", ".join(f"{count} times {name}" if count > 1 else name for name, count in counted.items())
