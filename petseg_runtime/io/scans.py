"""From what the user points at to scans: an image file, a DICOM folder, or a folder of any of these."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from petseg_runtime.errors import InputError
from petseg_runtime.io.dicom import group_by_study, read_headers, read_pet_series
from petseg_runtime.io.images import IMAGE_SUFFIXES, read_image
from petseg_runtime.volume import Unit, Volume

# Names that petseg-run itself writes; a second run over the same folder leaves them alone.
RESULT_SUFFIXES = ("_petseg.nii.gz", "_prob.nii.gz")


@dataclass(frozen=True)
class Scan:
    """One scan to read.

    Attributes
    ----------
    name : stem of the results' names.
    folder : where it lies, relative to the input's own folder; results keep this structure.
    beside : the folder that results go to by default.
    files : one image, or the files of one DICOM study.
    """

    name: str
    folder: Path
    beside: Path
    files: tuple[Path, ...]
    is_dicom: bool

    def read(self, unit: Unit = Unit.UNKNOWN) -> Volume:
        """Read it; DICOM says its unit itself, and `unit` speaks for the other formats.

        Raises
        ------
        InputError : if the scan is refused.
        """
        return read_pet_series(self.files) if self.is_dicom else read_image(self.files[0], unit)


def read_volume(path: Path | str, unit: Unit | str = Unit.UNKNOWN) -> Volume:
    """Read one PET scan: a .nii, .nii.gz, .mha or .nrrd file, or a folder with one DICOM study.

    DICOM comes back in SUVbw. Other formats do not say what their numbers mean: pass `unit` where you know it.

    Raises
    ------
    InputError : if there is no scan, more than one, or it is refused.
    """
    scans = find_scans(Path(path))
    if len(scans) > 1:
        raise InputError(f"{Path(path).name} holds {len(scans)} scans, expected one. Pass one of them.")
    return scans[0].read(Unit(unit))


def find_scans(path: Path) -> list[Scan]:
    """Every scan at `path`, in the order of their paths.

    Image files are scans of their own. DICOM files are grouped by study, wherever below `path` they lie, and
    each study is one scan: its PET series is picked when it is read.

    Raises
    ------
    InputError : if `path` does not exist, or there is no scan in it.
    """
    if path.is_file():
        if not _is_image(path):
            raise InputError(
                f"{path.name} is not a {', '.join(IMAGE_SUFFIXES)} file. For DICOM, pass the folder of the series."
            )
        return [Scan(_stem(path), Path(), path.parent, (path,), is_dicom=False)]
    if not path.is_dir():
        raise InputError(f"{path.name} does not exist. Pass a scan, a DICOM folder, or a folder of scans.")

    found = sorted(Path(folder) / name for folder, _, names in os.walk(path) for name in names)
    images = [file for file in found if _is_image(file) and not file.name.endswith(RESULT_SUFFIXES)]
    scans = [Scan(_stem(file), file.parent.relative_to(path), file.parent, (file,), is_dicom=False) for file in images]
    headers = read_headers([file for file in found if not _is_image(file)])
    scans += [_study(tuple(sorted(header.path for header in study)), path) for study in group_by_study(headers)]
    if not scans:
        raise InputError(f"{path.name} holds no scan: no {', '.join(IMAGE_SUFFIXES)} file and no DICOM file.")
    return _with_unique_names(sorted(scans, key=lambda scan: (scan.folder, scan.name)))


def _study(files: tuple[Path, ...], root: Path) -> Scan:
    """A DICOM study is named after the folder that holds all of it."""
    folder = Path(os.path.commonpath([file.parent for file in files]))
    if folder == root:
        return Scan(folder.resolve().name, Path(), folder.resolve().parent, files, is_dicom=True)
    return Scan(folder.name, folder.parent.relative_to(root), folder.parent, files, is_dicom=True)


def _with_unique_names(scans: list[Scan]) -> list[Scan]:
    """Number the scans whose results would overwrite each other: two studies in one folder, a.nii beside a.mha."""
    count = Counter((scan.folder, scan.name) for scan in scans)
    seen: Counter[tuple[Path, str]] = Counter()
    unique = []
    for scan in scans:
        key = (scan.folder, scan.name)
        seen[key] += 1
        unique.append(replace(scan, name=f"{scan.name}-{seen[key]}") if count[key] > 1 else scan)
    return unique


def _is_image(path: Path) -> bool:
    return path.name.lower().endswith(IMAGE_SUFFIXES)


def _stem(path: Path) -> str:
    suffix = next(suffix for suffix in IMAGE_SUFFIXES[::-1] if path.name.lower().endswith(suffix))
    return path.name[: -len(suffix)]
