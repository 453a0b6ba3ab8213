"""An inbox that is watched in a thread, for the tests of what feeds it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

import numpy as np
from conftest import GEOMETRIES, body_array
from runtime.dicom_factory import pet_series, write

from petseg_runtime import Segmenter
from petseg_runtime.errors import PetsegError
from petseg_runtime.inbox import Deliver, watch
from petseg_runtime.io.images import write_image
from petseg_runtime.io.scans import Scan
from petseg_runtime.runner import RunSettings, ScanResult

SETTLE_S = 0.3
PATIENCE_S = 60.0


def save_dicom(folder: Path, study: str = "1.2.3") -> list[Path]:
    stored = (body_array((24, 30, 32)) * 1000).astype(np.int16)
    return write(pet_series(stored, spacing_mm=(4.0, 5.0, 5.0), study=study), folder)


def put_scan(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(body_array(GEOMETRIES["axial"].shape, seed), GEOMETRIES["axial"], path)
    return path


class Watched:
    """An inbox that is watched in a thread, and what was reported."""

    def __init__(
        self, folder: Path, segmenter: Segmenter, types: tuple[str, ...] = ("nifti",), deliver: Deliver | None = None
    ) -> None:
        self.inbox, self.output = folder / "inbox", folder / "out"
        self.inbox.mkdir(exist_ok=True)
        self.reported: list[tuple[str, ScanResult | PetsegError]] = []
        self._stop, self._segmenter = Event(), segmenter
        self._settings, self._deliver = RunSettings(output=self.output, output_types=types), deliver
        self.destination = ""

    def __enter__(self) -> Watched:
        self._thread = Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        settings, stop = self._settings, self._stop
        watch(self.inbox, self._segmenter, settings, stop, self._report, SETTLE_S, self._deliver, self.destination)

    def _report(self, scan: Scan, outcome: ScanResult | PetsegError) -> None:
        self.reported.append((scan.name, outcome))

    def wait_for(self, count: int) -> None:
        wait_until(lambda: len(self.reported) >= count)

    @property
    def masks(self) -> list[str]:
        return sorted(str(path.relative_to(self.output)) for path in self.output.rglob("*_petseg.nii.gz"))


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)
