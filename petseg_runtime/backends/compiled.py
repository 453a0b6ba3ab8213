"""Compiled networks kept on disk, so that the next start need not compile them again.

OpenVINO's own cache takes a damaged file for a good one and computes other numbers. Here a file whose digest does not
match is not read, and a file is whole when it appears.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_DIGEST_BYTES = hashlib.sha256().digest_size
_KEPT = 8
_SUFFIX = ".compiled"


@dataclass(frozen=True)
class CompiledNetwork:
    """The place of one compiled network; `key` says all that it depends on."""

    folder: Path
    key: str

    @property
    def path(self) -> Path:
        return self.folder / f"{hashlib.sha256(self.key.encode()).hexdigest()}{_SUFFIX}"

    def read(self) -> bytes | None:
        """What was kept; None where there is nothing, or it is damaged."""
        try:
            content = self.path.read_bytes()
        except OSError:
            return None
        digest, blob = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        return blob if hashlib.sha256(blob).digest() == digest else None

    def write(self, blob: bytes) -> None:
        """Keep it, and of all networks the latest few. A cache that cannot be written costs the next start a second."""
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.folder)
            temporary = Path(name)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(hashlib.sha256(blob).digest() + blob)
                temporary.replace(self.path)
            finally:
                temporary.unlink(missing_ok=True)
            latest = sorted(self.folder.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime)
            for old in latest[:-_KEPT]:
                old.unlink(missing_ok=True)
