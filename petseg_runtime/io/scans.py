"""From what the user points at to scans: an image file, a DICOM folder, or a folder of any of these."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import numpy as np

from petseg_runtime.errors import InputError, UsageError
from petseg_runtime.io.identity import FileState, content_digest, file_identity, file_state
from petseg_runtime.io.images import IMAGE_SUFFIXES, image_suffix, read_image
from petseg_runtime.io.plausible import MAX_VOXELS, check_activity
from petseg_runtime.io.sidecar import check_sidecar
from petseg_runtime.io.suv import suvbw_of_activity
from petseg_runtime.io.suv_attributes import DOSE, NO_OVERRIDES, OPTIONS, WEIGHT, SuvOverrides
from petseg_runtime.volume import Unit, Volume

if TYPE_CHECKING:
    from petseg_runtime.io.dicom import Header

_UNIT_NAMES = {Unit.SUVBW: "SUVbw", Unit.BQML: "Bq/ml"}

# Names that petseg-run itself writes; a second run over the same folder leaves them alone. None ends with another: the
# results of two scans would have one name.
RESULT_SUFFIXES = ("_petseg.nii.gz", "_prob.nii.gz", "_seg.dcm", "_probseg.dcm", "_sr.dcm", "_rtstruct.dcm")
# Of images in formats that others read; an .hdr is one where its .img lies beside it.
_FOREIGN_IMAGES = (".mhd", ".nhdr", ".mgz", ".mgh")
_NUMBERED = "Its folder holds several studies, so they are numbered: --identify says whose each is."
# Folders that a file system keeps for itself.
_OF_THE_DISK = ("lost+found", "System Volume Information", "$RECYCLE.BIN")


class Digests(NamedTuple):
    """SHA-256 of what a scan is read from.

    `content` is that of an image file, as sha256sum gives it, and `scan` tells files of other names apart as well; of
    DICOM both are of the study's PET files by their names; without one, of all.
    """

    scan: str
    content: str


@dataclass(frozen=True)
class Scan:
    """One scan to read: an image file, or the DICOM headers of one study.

    Attributes
    ----------
    name : stem of the results' names.
    folder : where it lies, relative to the input's own folder; results keep this structure.
    beside : the folder that results go to by default.
    warnings : what to mind of how it came, for whoever uses the results.
    image_state : of the image when it was found; headers of DICOM know their own.
    """

    name: str
    folder: Path
    beside: Path
    image: Path | None = None
    dicom: tuple[Header, ...] = field(default=(), repr=False)
    warnings: tuple[str, ...] = ()
    image_state: FileState | None = field(default=None, repr=False)

    @property
    def label(self) -> str:
        """Tells it from scans of the same name in other folders."""
        return str(self.folder / self.name)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it was found by."""
        return tuple(dict.fromkeys(header.path for header in self.dicom)) if self.image is None else (self.image,)

    def digests(self) -> Digests:
        """Digests of what it is read from.

        Raises
        ------
        InputError : if a file cannot be read.
        """
        digest = hashlib.sha256()
        for file in self._found:
            content = content_digest(file)
            digest.update(file.name.encode("utf-8", "surrogateescape") + b"\0" + content)
        whole = digest.hexdigest()
        return Digests(whole, whole if self.image is None else content.hex())

    @property
    def _found(self) -> dict[Path, FileState | None]:
        """What it is read from, each file with its state when it was found."""
        if self.image is not None:
            return {self.image: self.image_state}
        # What has no modality is damaged, and may be a slice of the PET.
        has_pet = any(header.modality == "PT" for header in self.dicom)
        read = [header for header in self.dicom if not has_pet or header.modality in ("", "PT")]
        return {header.path: header.state for header in read}

    def check_unchanged(self) -> None:
        """Refuse a scan whose files are others than when it was found.

        The header of one file and the voxels of another make a wrong SUV, and a digest of the one says nothing of it.

        Raises
        ------
        InputError : if a file was written anew or is gone.
        """
        for file, state in self._found.items():
            if state is not None and not state.is_still(file_state(file)):
                raise InputError(
                    f"{file.name} was changed or removed while its scan was in hand. Run again when its files stay."
                )

    def read(
        self,
        unit: Unit = Unit.UNKNOWN,
        overrides: SuvOverrides = NO_OVERRIDES,
        series: str = "",
        max_voxels: int = MAX_VOXELS,
    ) -> Volume:
        """Read it; DICOM says its unit itself, and `unit` speaks for the other formats; `series` as in `read_volume`.

        Raises
        ------
        MemoryBudgetError : if it has more voxels than `max_voxels`.
        InputError : if the scan is refused or its files changed since it was found, or what was said of it has no use.
        """
        if self.image is None:
            from petseg_runtime.io.dicom import pet_volume

            volume = pet_volume(self.dicom, overrides, series, max_voxels)
            self.check_unchanged()
            return volume
        if series:
            raise InputError(f"--series came with {self.image.name}, which is not DICOM. Leave it out.")
        warnings = check_sidecar(self.image, _stem(self.image), unit) if ".nii" in image_suffix(self.image) else ()
        volume = read_image(self.image, unit, max_voxels)
        self.check_unchanged()
        volume = replace(volume, warnings=(*volume.warnings, *warnings))
        if unit is not Unit.UNKNOWN:
            volume = replace(volume, notes=(*volume.notes, f"That the file holds {_UNIT_NAMES[unit]} was given."))
        volume = _in_suv(volume, overrides) if overrides.options else volume
        if volume.unit is not Unit.SUVBW:
            return volume
        odd = check_activity(volume.array, volume.geometry.voxel_volume_ml, overrides.weight_kg, self.image.name)
        return replace(volume, warnings=(*volume.warnings, *odd))


def read_volume(
    path: Path | str,
    unit: Unit | str = Unit.UNKNOWN,
    overrides: SuvOverrides = NO_OVERRIDES,
    series: str = "",
) -> Volume:
    """Read one PET scan: a .nii, .nii.gz, .mha or .nrrd file, or a folder with one DICOM study.

    DICOM comes back in SUVbw. Other formats do not say what their numbers mean: pass `unit` where you know it.
    `overrides` stand in for what a DICOM header says of weight, dose and the like; with a weight and a dose, a file in
    Bq/ml comes back in SUVbw, for a dose as of the moment that its Bq/ml are corrected to. `series` chooses between the
    PET series of a study: a SeriesNumber (0020,0011), or a part of a SeriesDescription (0008,103E).

    Raises
    ------
    InputError : if there is no scan, more than one, or it is refused; or what was said of it has no use.
    UsageError : if `unit` is none of "suvbw", "bqml" and "unknown".
    """
    if unit not in tuple(Unit):
        raise UsageError(f"unit is {unit!r}, expected {', '.join(Unit)}.")
    scans = find_scans(Path(path))
    if len(scans) > 1:
        raise InputError(f"{Path(path).name} holds {len(scans)} scans, expected one. Pass one of them.")
    return scans[0].read(Unit(unit), overrides, series)


def find_scans(path: Path) -> list[Scan]:
    """Every scan at `path`, in the order of their paths.

    Image files are scans of their own. DICOM files are grouped by study, wherever below `path` they lie, and
    each study is one scan: its PET series is picked when it is read.

    Raises
    ------
    InputError : if `path` does not exist, or there is no scan in it.
    """
    try:
        is_there, is_file, is_folder = path.exists(), path.is_file(), path.is_dir()
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror}.") from error
    if is_file:
        if path.name.endswith(RESULT_SUFFIXES):
            raise InputError(
                f"{path.name} has the name of a result of PETSeg, not of a scan. Leave it out, or rename it."
            )
        if not image_suffix(path):
            to_do = "Save it as one." if _is_foreign_image(path) else "For DICOM, pass the folder of the series."
            raise InputError(f"{path.name} is not a {', '.join(IMAGE_SUFFIXES)} file. {to_do}")
        return [Scan(_stem(path), Path(), path.parent, path, image_state=file_state(path))]
    if not is_folder:
        what = "is a pipe or device" if is_there else "does not exist"
        raise InputError(f"{path.name} {what}. Pass a scan, a DICOM folder, or a folder of scans.")

    scans = scans_in(path)
    if not scans:
        raise InputError(f"{path.resolve().name} holds no scan: no {', '.join(IMAGE_SUFFIXES)} file and no DICOM file.")
    return scans


def scans_in(folder: Path, read_headers: Callable[[Iterable[Path]], list[Header]] | None = None) -> list[Scan]:
    """Every scan in a folder, as `find_scans`; there may be none.

    Parameters
    ----------
    read_headers : in place of `io.dicom.read_headers`, for a caller that has read some of them before.

    Raises
    ------
    InputError : if a folder cannot be read.
    """
    images, foreign, others = list[Path](), list[Path](), list[Path]()
    for file in _files_in(folder):
        (images if image_suffix(file) else foreign if _is_foreign_image(file) else others).append(file)
    scans = []
    if others:
        from petseg_runtime.io import dicom  # takes a fifth of a second to import

        headers = (read_headers or dicom.read_headers)(others)
        scans = [_study(study, folder) for study in dicom.group_by_study(headers)]
    beside_slices = {file.parent for scan in scans for file in scan.files}  # somebody made it of them
    images += [file for file in foreign if file.parent not in beside_slices]
    scans += [
        Scan(_stem(file), file.parent.relative_to(folder), file.parent, file, image_state=file_state(file))
        for file in images
    ]
    return sorted(scans, key=lambda scan: (scan.folder, scan.name))


def with_unique_names(scans: Iterable[Scan], place: Callable[[Scan], Hashable]) -> list[Scan]:
    """Tell apart the scans whose results would overwrite each other, and drop a scan that is given twice.

    The a.nii of two folders, b and c, whose results go to one `place`, become b_a and c_a: a name says whose it is,
    whatever other inputs there are. Two studies in one folder, or a.nii beside a.mha, are numbered.
    """
    placed = [(place(scan), scan) for scan in scans]
    # By what they are read from: a scan may be given by two paths. The first of them stays.
    once = {(where, scan.name, *map(_read_from, scan.files)): (where, scan) for where, scan in reversed(placed)}
    placed = [*reversed(once.values())]
    folders: dict[Hashable, set[Path]] = {}
    for where, scan in placed:
        folders.setdefault((where, scan.name), set()).add(scan.beside)
    told_apart = {key: _told_apart(alike) for key, alike in folders.items()}
    wanted = [(where, "_".join((*told_apart[where, scan.name][scan.beside], scan.name))) for where, scan in placed]
    counts, studies = Counter(wanted), Counter(key for key, (_, scan) in zip(wanted, placed) if scan.dicom)
    taken, numbers = {key for key, several in counts.items() if several == 1}, Counter[tuple[Hashable, str]]()
    unique = []
    for key, (where, scan) in zip(wanted, placed):
        name = key[1]
        while counts[key] > 1 and (name == key[1] or (where, name) in taken):
            numbers[key] += 1
            name = f"{key[1]}-{numbers[key]}"
        taken.add((where, name))
        warnings = (*scan.warnings, _NUMBERED) if scan.dicom and studies[key] > 1 else scan.warnings
        unique.append(replace(scan, name=name, warnings=warnings))
    return unique


def _read_from(file: Path) -> Hashable:
    return file_identity(file) or file  # of one that is gone its path


def _told_apart(folders: set[Path]) -> dict[Path, tuple[str, ...]]:
    """Of each folder as many of its last parts as tell it from the others; none where there is one folder only."""
    whole = {folder: folder.resolve().parts[1:] for folder in folders}  # without the root
    ends, depth = dict.fromkeys(folders, tuple[str, ...]()), 0
    while len(set(ends.values())) < len(set(whole.values())):
        depth += 1
        ends = {folder: parts[-depth:] for folder, parts in whole.items()}
    return ends


def _in_suv(volume: Volume, overrides: SuvOverrides) -> Volume:
    weight_kg, dose_mbq = overrides.weight_kg, overrides.dose_mbq
    if volume.unit is not Unit.BQML or weight_kg is None or dose_mbq is None or len(overrides.options) > 2:
        raise InputError(
            f"{', '.join(overrides.options)} came with a file that is not DICOM, expected --unit bqml with "
            f"{OPTIONS[WEIGHT]} and {OPTIONS[DOSE]} together and nothing more."
        )
    factor = suvbw_of_activity(weight_kg, dose_mbq)
    note = f"SUVbw is {factor:.6g} times the Bq/ml of the voxels: {weight_kg:g} kg / {dose_mbq:g} MBq, both given."
    warning = (
        "The dose is taken as of the moment that the Bq/ml are corrected to. If that is the start of the scan, as it "
        f"mostly is, {OPTIONS[DOSE]} must be the dose decayed to it."
    )
    array = volume.array * np.float32(factor)
    return replace(
        volume, array=array, unit=Unit.SUVBW, notes=(*volume.notes, note), warnings=(*volume.warnings, warning)
    )


def _files_in(folder: Path) -> list[Path]:
    """Every ordinary file below a folder; hidden ones are locks and leavings, and PETSeg's own results are results.

    What a file system keeps for itself is passed over: nobody but it may read that.
    """

    def refuse(error: OSError) -> NoReturn:
        # Going on would lose slices in silence.
        raise InputError(f"A folder in {folder.name} cannot be read: {error.strerror}.") from error

    found: list[Path] = []
    seen = set()  # a link may lead back to a folder above it
    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        try:
            status = os.stat(root)
        except OSError as error:
            refuse(error)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not is_passed_over(name))
        found += [Path(root) / name for name in names if not is_passed_over(name)]
    found = [file for file in found if not file.name.endswith(RESULT_SUFFIXES)]
    # A link to an image that is gone stays: it is refused by its name, not passed over.
    return sorted(file for file in found if file.is_file() or (image_suffix(file) and file.is_symlink()))


def is_passed_over(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or of the disk's own."""
    return name.startswith(".") or name in _OF_THE_DISK


def _study(headers: list[Header], root: Path) -> Scan:
    """A DICOM study is named after the folder that holds all of it."""
    folder = Path(os.path.commonpath([header.path.parent for header in headers]))
    dicom = tuple(sorted(headers, key=lambda header: header.path))
    if folder == root:
        return Scan(folder.resolve().name, Path(), folder.resolve().parent, dicom=dicom)
    return Scan(folder.name, folder.parent.relative_to(root), folder.parent, dicom=dicom)


def _is_foreign_image(path: Path) -> bool:
    """Whether this is an image in a format that PETSeg does not read, which is refused by its name, not passed over."""
    suffix = path.suffix.lower()
    return suffix in _FOREIGN_IMAGES or (suffix == ".hdr" and path.with_suffix(".img").exists())


def _stem(path: Path) -> str:
    return path.name[: len(path.name) - len(image_suffix(path))]
