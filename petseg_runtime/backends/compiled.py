"""Compiled networks kept on disk, so that the next start need not compile them again.

OpenVINO's own cache takes a damaged file for a good one and computes other numbers. Here a file whose digest does not
match is not read, and a file is whole when it appears.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_SHAPE = re.compile(r"\d+(x\d+){4}")
_DIGEST_BYTES = hashlib.sha256().digest_size
_KEPT = 8
_SUFFIX = ".compiled"


@dataclass(frozen=True)
class CompiledNetworks:
    """One network, compiled for inputs of several shapes; `key` says all else that the compiled networks depend on.

    The folder may hold those of other networks too. Of all of them the few used last are kept.
    """

    folder: Path
    key: str

    def path(self, shape: tuple[int, ...]) -> Path:
        return self.folder / f"{self._stem}-{'x'.join(map(str, shape))}{_SUFFIX}"

    @property
    def _stem(self) -> str:
        return hashlib.sha256(self.key.encode()).hexdigest()

    def read(self, shape: tuple[int, ...]) -> bytes | None:
        """What was kept; None where there is nothing, or it is damaged."""
        try:
            with self.path(shape).open("rb") as file:
                digest, blob = file.read(_DIGEST_BYTES), file.read()  # a slice would copy tens of megabytes
        except OSError:
            return None
        if hashlib.sha256(blob).digest() != digest:
            return None
        with suppress(OSError):
            os.utime(self.path(shape))  # used now
        return blob

    def last_shape(self) -> tuple[int, ...] | None:
        """The shape of which a network was read or written last; None where none is kept."""
        shapes = (path.stem.rpartition("-")[2] for path in reversed(_by_use(self.folder, f"{self._stem}-*{_SUFFIX}")))
        last = next(filter(_SHAPE.fullmatch, shapes), None)
        return tuple(map(int, last.split("x"))) if last else None

    def write(self, shape: tuple[int, ...], blob: bytes) -> None:
        """Keep it, and of all networks those used last. A cache that cannot be written costs a second."""
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(_SUFFIX, dir=self.folder)  # one that is left behind ages as they do
            temporary = Path(name)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(hashlib.sha256(blob).digest() + blob)
                temporary.replace(self.path(shape))
            finally:
                temporary.unlink(missing_ok=True)
            for old in _by_use(self.folder, f"*{_SUFFIX}")[:-_KEPT]:
                old.unlink(missing_ok=True)


def _by_use(folder: Path, pattern: str) -> list[Path]:
    """The files, that used last at the end; without those that another process removes meanwhile."""
    used = dict[Path, int]()
    with suppress(OSError):  # of a folder that may not be entered
        for path in folder.glob(pattern):
            with suppress(OSError):
                used[path] = path.stat().st_mtime_ns
    return sorted(used, key=used.__getitem__)
