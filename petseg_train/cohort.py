"""A cohort: a CSV with one row a case, and its cases brought onto the network's grid.

The CSV has the columns case, centre, image and mask (paths relative to the CSV). Optional are bladder (mask of the
bladder, for its leakage), exact (a second truth to score against) and stage (FIGO); any others are carried along. So
any hospital's patients can be trained on and evaluated.
"""

from __future__ import annotations

import csv as comma_separated
import hashlib
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from unicodedata import category, normalize

import numpy as np
import pandas as pd
from rich.progress import track

from petseg_runtime import read_volume
from petseg_runtime.errors import InputError, MemoryBudgetError
from petseg_runtime.io.images import read_mask
from petseg_runtime.manifest import PreprocessingSpec
from petseg_runtime.outputs.files import prepare_folder, whole_file
from petseg_runtime.preprocessing import VERSION as PREPROCESSING_VERSION
from petseg_runtime.preprocessing import preprocess, resample_mask
from petseg_runtime.volume import FloatArray, MaskArray, Volume

REQUIRED_COLUMNS = ("case", "centre", "image", "mask")
OPTIONAL_MASKS = ("bladder", "exact")
_KNOWN_COLUMNS = {name.casefold(): name for name in (*REQUIRED_COLUMNS, *OPTIONAL_MASKS, "stage")}  # in whatever case

# Image and mask are written by different programs, which round their geometry differently.
SAME_GRID_MM = 0.5


@dataclass(frozen=True)
class Case:
    """One patient: where the image and the tumour mask are, further masks by name, and the row's other columns."""

    name: str
    centre: str
    image: Path
    mask: Path
    extra: dict[str, object] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)

    def read(self) -> tuple[Volume, MaskArray]:
        """The scan and its tumour mask `(z, y, x)` on the same grid.

        Raises
        ------
        InputError : if a file is unreadable, or the mask does not lie on the image's grid; the message names the case.
        """
        with self.named():
            volume = read_volume(self.image)
            return volume, read_mask_on(volume, self.mask, "the mask")

    def read_further(self, volume: Volume) -> dict[str, MaskArray]:
        """The further masks by name, on the grid of the scan, which `read` gives.

        Raises
        ------
        InputError : likewise.
        """
        with self.named():
            return {name: read_mask_on(volume, path, f"the {name} mask") for name, path in self.masks.items()}

    @contextmanager
    def named(self) -> Iterator[None]:
        """Have refusals of what is done with the case name it."""
        try:
            yield
        except (InputError, MemoryBudgetError) as error:
            raise type(error)(f"Case {self.name}: {error}") from error


@dataclass(frozen=True)
class TrainingCase:
    """A case on the network's grid: normalised image and binary mask `(z, y, x)`.

    Air is `air` on the image's scale, and body is what lies above `body_level`. `turn` names those among which it takes
    turns, where centres do: its centre, or a cohort that only trains.
    """

    name: str
    image: FloatArray
    mask: MaskArray
    air: float
    body_level: float
    turn: str = ""


def read_mask_on(volume: Volume, path: Path, name: str) -> MaskArray:
    """The mask `(z, y, x)` of a file, which must lie on the volume's grid; `name` is what a refusal calls it.

    Raises
    ------
    InputError : if the file is unreadable, or lies on another grid.
    """
    mask, geometry = read_mask(path)
    corners = np.vstack([np.zeros(3), np.diag(geometry.shape)])  # the first voxel's, and one along each axis
    apart_mm = np.abs(geometry.to_lps_mm(corners) - volume.geometry.to_lps_mm(corners)).max()
    if geometry.shape != volume.geometry.shape or apart_mm > SAME_GRID_MM:
        differs = "; origin, voxel size or axes differ" if geometry.shape == volume.geometry.shape else ""
        raise InputError(
            f"{name} has a grid {geometry.shape} that does not lie on the image's grid {volume.geometry.shape}"
            f"{differs}. Resample it onto the image."
        )
    return mask


def read_cohort(csv: Path) -> list[Case]:
    """Cases of the CSV, in its order.

    Raises
    ------
    InputError : if the file or a required column is absent, a case is named twice, a centre in two ways, or an image or
        mask does not exist.
    """
    table = _read_table(csv)
    absent = [column for column in REQUIRED_COLUMNS if column not in table.columns]
    if absent:
        raise InputError(f"Cohort {csv.name} lacks the columns {', '.join(absent)}; it needs {REQUIRED_COLUMNS}.")
    if table.empty:
        raise InputError(f"Cohort {csv.name} has no rows. Give it one a case.")
    _check_no_empty_cell(table, csv.name)
    twice = table["case"][table["case"].duplicated()].tolist()
    if twice:
        raise InputError(f"Cohort {csv.name} names cases twice: {twice[:5]}. Give each row its own name.")
    cases = []
    for line, row in zip(table.index, table.to_dict("records")):
        extra = {str(key): value for key, value in row.items() if key not in (*REQUIRED_COLUMNS, *OPTIONAL_MASKS)}
        for name in (row["case"], row["centre"]):
            if name != Path(name).name or name == "..":  # they name files of the results
                raise InputError(f"Cohort {csv.name}, line {line}: {name!r} cannot name a file. Leave out slashes.")
        if row["centre"] == "average":
            raise InputError(
                f"Cohort {csv.name}, line {line}: a centre is called average, as a column of the tables is."
            )
        masks = {name: csv.parent / row[name] for name in OPTIONAL_MASKS if isinstance(row.get(name), str)}
        case = Case(row["case"], row["centre"], csv.parent / row["image"], csv.parent / row["mask"], extra, masks)
        for path in (case.image, case.mask, *masks.values()):
            if not _exists(path):
                raise InputError(f"Cohort {csv.name}, line {line}, case {case.name}: {path.name} does not exist.")
            if path.is_dir() and path != case.image:
                raise InputError(
                    f"Cohort {csv.name}, line {line}, case {case.name}: {path.name} is a folder, expected the file of "
                    "a mask on the scan's grid. Convert contours to one."
                )
        cases.append(case)
    _check_centres(cases)
    return cases


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long for one
        return False


def _read_table(csv: Path) -> pd.DataFrame:
    """The cells of a CSV by the lines of the file, names without spaces around them; None where there is nothing.

    Raises
    ------
    InputError : if it cannot be read, or has a column twice.
    """
    try:
        # A spreadsheet may say the separator in a line of its own, and else depends on its language.
        text = re.sub(r'\A(\s*)"?sep=."?', r"\1", csv.read_text(encoding="utf-8-sig"))
        separator = max(",;\t", key=text.lstrip().partition("\n")[0].count)
        (_, header), *rows = _rows(text, separator) or [(0, [])]
        _check_no_cell_beyond(header, rows, csv.name)
        table = pd.read_csv(StringIO(text), sep=separator, index_col=False)
        as_written = pd.read_csv(StringIO(text), sep=separator, index_col=False, dtype=str, keep_default_na=False)
        table.index = as_written.index = pd.Index([line for line, _ in rows])
    except UnicodeDecodeError as error:
        raise InputError(f"Cohort {csv.name} cannot be read as CSV in UTF-8. Save it as such.") from error
    except (OSError, ValueError, comma_separated.Error) as error:
        raise InputError(f"Cohort {csv.name} cannot be read as CSV: {error}") from error
    written = Counter(_column(name) for name in header if name.strip())  # pandas calls a second mask mask.1
    doubled = [name for name, count in written.items() if count > 1]
    if doubled:
        raise InputError(f"Cohort {csv.name} has the column {doubled[0]} twice. Name each once.")
    names = [_column(name) for name in table.columns]
    table, as_written = table.set_axis(names, axis="columns"), as_written.set_axis(names, axis="columns")
    for column in set(REQUIRED_COLUMNS) & set(names):
        table[column] = as_written[column]  # a centre may be called NA, and a case 001
    for column in {"stage", *OPTIONAL_MASKS} & set(names):  # a stage may be 2 among others of IIB
        table[column] = as_written[column].where(table[column].notna(), None)
    table = table[(as_written.map(str.strip) != "").any(axis="columns")]  # a spreadsheet leaves rows of commas
    # A space after a centre's name would make it another centre, and leaving that out leave its patients in; so would
    # an accent that is a letter of its own.
    table = table.map(lambda cell: (cell.strip() or None) if isinstance(cell, str) else cell)
    for column in {"case", "centre"} & set(names):
        table[column] = table[column].map(lambda cell: normalize("NFC", cell) if isinstance(cell, str) else cell)
    return table


def _column(heading: str) -> str:
    """A column by its heading: one that is known in whatever case, any other as it is written."""
    return _KNOWN_COLUMNS.get(heading.strip().casefold(), heading.strip())


def _check_no_cell_beyond(header: list[str], rows: Iterable[tuple[int, list[str]]], name: str) -> None:
    """Refuse a row with more cells than the header: where one is a part of another, those after it are moved."""
    for line, cells in rows:
        if any(cell.strip() for cell in cells[len(header) :]):
            raise InputError(
                f"Cohort {name}, line {line}: {len(cells)} cells, expected {len(header)} as in the header. Quote what "
                "holds the separator, such as a decimal comma."
            )


def _check_centres(cases: Iterable[Case]) -> None:
    """Refuse two ways to write one centre: leaving it out would leave its other patients in."""
    written: dict[str, str] = {}
    for case in cases:
        other = written.setdefault(_as_read(case.centre), case.centre)
        if other != case.centre:
            how = " (they differ in what nobody sees)" if other.casefold() != case.centre.casefold() else ""
            raise InputError(
                f"Centre {other} is written {case.centre} too{how}, in case {case.name}. Write it in one way."
            )


def _as_read(name: str) -> str:
    """A name as people read it: spaces of any kind alike, without marks that nobody sees, in whatever case."""
    seen = "".join(letter for letter in normalize("NFC", name) if category(letter) != "Cf")
    return " ".join(seen.split()).casefold()


def _rows(text: str, separator: str) -> list[tuple[int, list[str]]]:
    """The line and the cells of each row of a CSV, its header first; pandas leaves out blank lines, and counts none."""
    rows = comma_separated.reader(StringIO(text), delimiter=separator)
    return [(rows.line_num, cells) for cells in rows if len(cells) > 1 or "".join(cells).strip()]


def _check_no_empty_cell(table: pd.DataFrame, name: str) -> None:
    for line, row in zip(table.index, table[list(REQUIRED_COLUMNS)].to_dict("records")):
        empty = [column for column, cell in row.items() if pd.isna(cell)]
        if empty:
            case = "" if pd.isna(row["case"]) else f", case {row['case']}"
            raise InputError(
                f"Cohort {name}, line {line}{case}: an empty cell in {', '.join(map(str, empty))}. Fill it in or "
                "leave the row out."
            )


def read_cohorts(csvs: Sequence[Path]) -> list[Case]:
    """Cases of several CSVs, one after the other.

    Raises
    ------
    InputError : as `read_each_cohort`.
    """
    return [case for cases in read_each_cohort(csvs) for case in cases]


def read_each_cohort(csvs: Sequence[Path]) -> list[list[Case]]:
    """Cases of each of several CSVs.

    Raises
    ------
    InputError : as `read_cohort`, and if two CSVs name the same case, or a centre in two ways.
    """
    cohorts = [read_cohort(csv) for csv in csvs]
    names = Counter(case.name for cases in cohorts for case in cases)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise InputError(f"The cohorts name cases twice: {twice[:5]}. Give each case its own name.")
    _check_centres(case for cases in cohorts for case in cases)
    return cohorts


def cohort_digest(cases: Iterable[Case]) -> str:
    """SHA-256 of what a study on these cases depends on: names, centres, and the content of images and masks.

    Raises
    ------
    InputError : if two cases have the same image file: one might be trained on, and the other tested. One image in two
        files is for `check_no_twins`.
    """
    digest, images = hashlib.sha256(), dict[bytes, str]()
    for case in cases:
        image, mask = _file_digests(case.image), _file_digests(case.mask)
        _refuse_twin(images, b"".join(image), case.name)
        content = hashlib.sha256(b"".join((*image, *mask))).hexdigest()
        digest.update(f"{case.name}\0{case.centre}\0{content}\n".encode())
    return digest.hexdigest()


def check_no_twins(images: Iterable[tuple[str, FloatArray]]) -> None:
    """Refuse the same voxels under two cases' names, in whatever files they came.

    Raises
    ------
    InputError : naming the first two.
    """
    known: dict[bytes, str] = {}
    for name, image in images:
        digest = hashlib.sha256(repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()).digest()
        _refuse_twin(known, digest, name)


def _refuse_twin(known: dict[bytes, str], digest: bytes, name: str) -> None:
    other = known.setdefault(digest, name)
    if other != name:
        raise InputError(f"Cases {other} and {name} have the same image. Keep one of them.")


def further_digest(cases: Iterable[Case]) -> str | None:
    """SHA-256 of what only the scores depend on: the content of further masks, and the stages. None without any."""
    further = [
        (case.name, str(case.extra.get("stage")), {name: _file_digests(path) for name, path in case.masks.items()})
        for case in cases
        if case.masks or "stage" in case.extra
    ]
    return hashlib.sha256(repr(further).encode()).hexdigest() if further else None


def _content_digest(case: Case) -> str:
    """SHA-256 of the files of image and mask."""
    return hashlib.sha256(b"".join((*_file_digests(case.image), *_file_digests(case.mask)))).hexdigest()


def _file_digests(source: Path) -> list[bytes]:
    """SHA-256 of a file, or of each in a DICOM folder."""
    files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
    return [hashlib.sha256(file.read_bytes()).digest() for file in files]


def check_study_cohort(cases: Sequence[Case], spec: PreprocessingSpec) -> None:
    """Refuse what a study over centres cannot be done with, before hours of work.

    `spec` is the preprocessing that it will have.

    Raises
    ------
    InputError : if there is one centre only, a centre has one case, or a case cannot be read, has a mask on another
        grid or an empty mask; the message names the case.
    """
    centres = Counter(case.centre for case in cases)
    if len(centres) < 2:
        raise InputError(f"Leaving one centre out needs two centres or more; the cohort has {list(centres)}.")
    for case in cases:
        if centres[case.centre] < 2:
            raise InputError(
                f"Case {case.name} is the only one of centre {case.centre}; a centre needs two or more. "
                "Give it to another centre or leave it out."
            )
    has_tumour = _checked(cases, spec)
    for case in cases:
        if not has_tumour[case.name]:
            raise InputError(
                f"Case {case.name}: the mask {case.mask.name} is empty. Outline the tumour or leave it out."
            )


def check_cases(cases: Sequence[Case], spec: PreprocessingSpec) -> None:
    """Refuse what cannot be scored, before any work; an empty mask can, where there is no tumour.

    `spec` is the preprocessing that it will have.

    Raises
    ------
    InputError : if two cases have the same image, or a case cannot be read or has a mask on another grid; the message
        names the case.
    """
    _checked(cases, spec)


def _checked(cases: Sequence[Case], spec: PreprocessingSpec) -> dict[str, bool]:
    """Whether each case has a tumour. All files are read, and no image may come twice. Shows a progress bar."""
    has_tumour = {}

    def images() -> Iterator[tuple[str, FloatArray]]:
        for case in track(cases, description="Checking the cohort", transient=True):
            volume, mask = case.read()
            case.read_further(volume)
            with case.named():
                preprocess(volume, spec)  # which refuses a scan without a body, else after a day of training
            has_tumour[case.name] = bool(mask.any())
            # In one orientation: another converter writes the same scan from the other end.
            yield case.name, volume.geometry.orientation.to_canonical(volume.array)

    check_no_twins(images())
    return has_tumour


def load_training_cases(
    cases: Iterable[Case], spec: PreprocessingSpec, cache: Path | None = None
) -> list[TrainingCase]:
    """Read and preprocess each case, with the runtime's own preprocessing. Shows a progress bar.

    `cache` is a folder that keeps what was preprocessed, under the digest of the files, the settings and the version of
    the preprocessing: a second run on the same cases reads it from there, and nothing changed is mistaken for the old.
    """
    shown = track(list(cases), description="Preprocessing", transient=True)
    if cache is None:
        return [_load(case, spec) for case in shown]
    prepare_folder(cache)
    return [_cached(case, spec, cache) for case in shown]


def _cached(case: Case, spec: PreprocessingSpec, folder: Path) -> TrainingCase:
    key = json.dumps([PREPROCESSING_VERSION, asdict(spec), _content_digest(case)])
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # absent or damaged: made again
        arrays = np.load(path)
        air, body_level = float(arrays["air"]), float(arrays["body_level"])
        return TrainingCase(case.name, arrays["image"], arrays["mask"], air, body_level, case.centre)
    loaded = _load(case, spec)
    with whole_file(path) as temporary:
        np.savez(temporary, image=loaded.image, mask=loaded.mask, air=loaded.air, body_level=loaded.body_level)
    return loaded


def _load(case: Case, spec: PreprocessingSpec) -> TrainingCase:
    volume, mask = case.read()
    with case.named():
        network_input = preprocess(volume, spec)
    resampled = resample_mask(mask, network_input.frame)
    air, body_level = network_input.air, network_input.body_level
    return TrainingCase(case.name, network_input.array, resampled, air, body_level, case.centre)
