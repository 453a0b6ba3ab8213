"""Every file of a run is written under a temporary name in its own folder and renamed when it is whole."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import get_ident
from typing import Any

from petseg_runtime.errors import UsageError
from petseg_runtime.io.identity import file_identity, utf8_trouble

# Begins with a dot, so that nobody takes it for a result; keeps the suffix, by which SimpleITK knows the format.
_TEMPORARY_PREFIX = ".petseg-"
_HOST = re.sub(r"\W", "_", platform.node())[:64] or "host"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which becomes `path` when the block ends well and is removed when not.

    Raises
    ------
    UsageError : if the folder cannot be written, the disk is full, or the name is not UTF-8.
    """
    suffix = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    own = f"{_process(os.getpid())}-{get_ident()}-{_digest(path.name)}"
    temporary = path.with_name(f"{_TEMPORARY_PREFIX}{own}{suffix}")
    if trouble := utf8_trouble(path):
        raise UsageError(trouble)
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(f"{path.name} cannot be written: {error.strerror}. Choose another --output.") from error
    except RuntimeError as error:  # SimpleITK's only exception
        raise UsageError(f"{path.name} cannot be written. Check the space left on --output.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def staged(
    folder: Path, last: str, before: Iterable[str] = (), check: Callable[[], None] = lambda: None
) -> Iterator[Path]:
    """A hidden folder to write the files of one scan into; they move to `folder` when all are whole and on the disk.

    If anything fails, nothing of them is left. `last` is the file that moves last: where it lies, the others do.
    `before` names what a run before wrote: what this one does not write of it is removed, and then its `last`. So that
    never lies beside files that it does not speak of. A run that is killed meanwhile leaves the `moving_record`.
    `check` raises if they may not move any more; one process at a time checks and moves.

    Raises
    ------
    UsageError : if the files cannot be moved.
    """
    with scratch_folder(folder) as stage:
        yield stage
        try:
            files = sorted(stage.iterdir(), key=lambda file: file.name == last)
            sync(*files)
            stale = [name for name in before if name != last and not (stage / name).exists()]
            moving, outputs = moving_record(folder / last), [*stale, *(file.name for file in files)]
            with _alone_in(folder):
                check()
                try:
                    moving.write_text(json.dumps({"outputs": outputs}), encoding="utf-8")
                    sync(moving)
                except OSError:
                    moving.unlink(missing_ok=True)  # nothing has moved
                    raise
                for name in (*stale, last):
                    (folder / name).unlink(missing_ok=True)
                sync(folder)
                for file in files:
                    os.replace(file, folder / file.name)
                sync(folder)
                moving.unlink()
        except OSError as error:
            raise UsageError(f"A result cannot be written: {error.strerror}. Choose another --output.") from error


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process is in here with the folder; where the file system knows no locks, do not."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """Digest of a file; empty where there is none, and of one without content, as a power cut leaves it.

    Raises
    ------
    OSError : if it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() if os.fstat(stream.fileno()).st_size else ""
    except FileNotFoundError:
        return ""


def moving_record(last: Path) -> Path:
    """A hidden file that says, as long as results move to their place, which they are: that nobody else wrote them."""
    return last.with_name(f"{_TEMPORARY_PREFIX}moving-{_digest(last.name)}.json")


def _digest(name: str) -> str:
    """Stands for a name in that of a temporary file: the name itself may be as long as a name can be."""
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16]


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder in a folder, removed with all that is still in it when the block ends.

    Raises
    ------
    UsageError : if it cannot be made.
    """
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f"{_TEMPORARY_PREFIX}{_process(os.getpid())}-", dir=folder))
    except OSError as error:
        raise UsageError(
            f"Output folder {folder.name or folder} cannot be written: {error.strerror}. Choose another --output."
        ) from error
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def sync(*paths: Path) -> None:
    """Have files and folders on the disk before going on, so that they outlast a power cut.

    Raises
    ------
    OSError : if the disk does not take them.
    """
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_leavings(folder: Path) -> None:
    """Remove what processes of this machine that were killed left unfinished in a folder."""
    for path in folder.glob(f"{_TEMPORARY_PREFIX}*"):
        match = re.match(rf"{re.escape(_TEMPORARY_PREFIX + _HOST)}\.(\d+)\.(\d+)-", path.name)
        if match is None or _started(int(match[1])) == match[2]:
            continue
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _process(number: int) -> str:
    """A process among those of all machines that share the folder, and of all that had its number before."""
    return f"{_HOST}.{number}.{_started(number)}"


def _started(number: int) -> str:
    """When a process was started, in clock ticks since the machine was (proc(5), field 22); empty if it has ended."""
    try:
        state, *fields = Path(f"/proc/{number}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state == "Z" else fields[18]


def write_json(record: dict[str, Any], path: Path) -> None:
    """Write a record as indented JSON."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def check_inputs_stay(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse to write over what is read, by whatever name.

    Raises
    ------
    UsageError : if one of `outputs` is one of the inputs.
    """
    read = {file_identity(path) for path in inputs} - {None}
    for path in outputs:
        if file_identity(path) in read:
            raise UsageError(f"{path.name} is an input and would be overwritten. Choose another --output.")


def check_output_file(output: Path, inputs: Iterable[Path], overwrite: bool) -> None:
    """Refuse to write over what is read, or over what may be somebody's work.

    Raises
    ------
    UsageError : if `output` is one of the inputs or no file, or is there and not to be written over.
    """
    if output.exists() and not output.is_file():
        kind = "a folder" if output.is_dir() else "no file"
        raise UsageError(f"{output.name} is {kind}, expected a file to write. Choose another --output.")
    check_inputs_stay([output], inputs)
    if output.exists() and not overwrite:
        raise UsageError(f"{output.name} is there and would be lost. Pass --overwrite if it may, or another --output.")


def prepare_folder(folder: Path) -> None:
    """Make the output folder and check that it can be written, before any work is done for it.

    Raises
    ------
    UsageError : if it cannot be made or written.
    """
    if trouble := utf8_trouble(folder):
        raise UsageError(trouble)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, prefix=_TEMPORARY_PREFIX):
            pass
    except OSError as error:
        raise UsageError(
            f"Output folder {folder.name or folder} cannot be written: {error.strerror}. Choose another --output."
        ) from error
