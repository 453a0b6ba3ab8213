"""Which file a path leads to, and what can be done with its name."""

from __future__ import annotations

from pathlib import Path

from petseg_runtime.errors import InputError


def file_identity(path: Path) -> tuple[int, int] | None:
    """Device and inode, the same for all names of a file; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def check_utf8(path: Path) -> None:
    """Refuse a path that ITK cannot take: one that is not UTF-8 ends the process there.

    Raises
    ------
    InputError : if a file or folder name in it is not valid UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError("A file or folder name is not valid UTF-8. Rename it.") from error
