"""Which file a path leads to, whether it is still as it was, and what can be done with its name."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from petseg_runtime.errors import InputError


def file_identity(path: Path) -> tuple[int, int] | None:
    """Device and inode, the same for all names of a file; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class FileState(NamedTuple):
    """What tells that a file was written anew: a copy may bear the size and the times of its original, but `changed`.

    No inode: some file systems of a network number a file anew each time.
    """

    size: int
    modified_ns: int
    changed_ns: int

    def is_still(self, now: FileState | None) -> bool:
        """Whether a file was not written since, for all that tells from another machine too, and in whole seconds.

        A backup by links, or a new owner, changes `changed`; mounts of one disk give its times to other decimals.
        """
        if now is None:
            return False
        return (self.size, self.modified_ns // 10**9) == (now.size, now.modified_ns // 10**9)

    @classmethod
    def of(cls, status: os.stat_result) -> FileState:
        """From what `os.stat` or `os.fstat` says."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def file_state(path: Path) -> FileState | None:
    """The state that a file is in now; None where there is none."""
    try:
        return FileState.of(path.stat())
    except OSError:
        return None


def content_digest(path: Path) -> bytes:
    """SHA-256 of a file that is read from.

    Raises
    ------
    InputError : if it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror}.") from error


def check_utf8(path: Path) -> None:
    """Refuse a path that ITK cannot take, see `utf8_trouble`.

    Raises
    ------
    InputError : if there is trouble with it.
    """
    if trouble := utf8_trouble(path):
        raise InputError(trouble)


def utf8_trouble(path: Path) -> str:
    """Why ITK cannot take a path, empty if it can: it takes UTF-8 only, and a name that is not ends the process."""
    try:
        on_disk = os.fsencode(path)
        on_disk.decode()
    except UnicodeEncodeError:
        return _LOCALE
    except UnicodeDecodeError:
        return "A file or folder name is not valid UTF-8. Rename it."
    return "" if on_disk.decode() == str(path) else _LOCALE


_LOCALE = "A name has other letters than the locale knows, which is not UTF-8. Set LC_ALL=C.UTF-8 and run again."
