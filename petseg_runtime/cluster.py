"""The scans of a large cohort on many machines, by a Dask cluster. Prints nothing.

Every machine sees the scans, the model and the output folder under the same paths, and has this version of PETSeg. A
worker loads the model once. A scan whose worker dies is given to another.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING
from uuid import uuid4

from petseg_runtime import __version__
from petseg_runtime.errors import ModelError, PetsegError, UsageError, as_petseg_error
from petseg_runtime.io.scans import Scan
from petseg_runtime.outputs.files import prepare_folder, remove_leavings
from petseg_runtime.runner import RunSettings, ScanResult, run_scan
from petseg_runtime.segmenter import Segmenter, user_cache

if TYPE_CHECKING:
    from distributed import Client

_ANSWER_S = 10


@dataclass(frozen=True)
class ModelChoice:
    """The model for every worker: the arguments of `Segmenter`, and the digest that the model must have."""

    sha256: str
    model: Path | None = None
    device: str = "auto"
    backend: str = "auto"
    threads: int | None = None
    precision: str = "auto"
    max_memory_gb: float | None = None
    key: Path | None = None


def run_scans_on_cluster(
    address: str, scans: Sequence[Scan], model: ModelChoice, settings: RunSettings, resume: bool = False
) -> Generator[tuple[Scan, ScanResult | Exception], None, None]:
    """Run scans on the workers of a cluster; yields what `runner.run_scans` does, in the order of the scans.

    Parameters
    ----------
    address : of the Dask scheduler, such as tcp://10.0.0.7:8786.

    Raises
    ------
    UsageError : if the extra is not installed, the scheduler does not answer, or it has no worker.
    """
    folders = {settings.folder_for(scan) for scan in scans}
    for folder in folders:
        prepare_folder(folder)
    with _connected(address) as client:
        # The keys stand on the scheduler's pages: nothing of a scan is in them.
        futures = [
            client.submit(_run, scan, model, settings, resume, __version__, key=f"petseg-{uuid4()}") for scan in scans
        ]
        for scan, future in zip(scans, futures, strict=True):
            try:
                yield scan, future.result()
            except Exception as error:  # of Dask: the scan's workers died again and again, or the scheduler is gone
                yield scan, PetsegError(f"No worker of the cluster could do the scan ({type(error).__name__}).")
        with suppress(Exception):  # only a worker on the machine of one that died can tell its leavings
            client.run(_remove_leavings, folders)


@contextmanager
def _connected(address: str) -> Iterator[Client]:
    if not re.fullmatch(r"(\w+://)?\S+:\d{1,5}", address):
        raise UsageError(f"--scheduler is {address!r}, expected an address such as tcp://10.0.0.7:8786.")
    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError("A cluster needs an extra: pip install 'petseg[cluster]'.") from error
    for name in ("distributed", "distributed.client"):  # what of it matters is raised
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = Client(address, timeout=_ANSWER_S, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise UsageError(f"No Dask scheduler answers at {address}. Start one, or check --scheduler.") from error
    with client:
        if not client.scheduler_info()["workers"]:
            raise UsageError(f"The Dask scheduler at {address} has no worker. Start some with: dask worker {address}")
        yield client


def _run(scan: Scan, model: ModelChoice, settings: RunSettings, resume: bool, version: str) -> ScanResult | PetsegError:
    """On a worker: one scan. What goes wrong is returned: Dask would log what is raised, with all that it was given."""
    try:
        with _working if model.max_memory_gb is not None else nullcontext():  # the budget is for one scan at a time
            return _result(scan, model, settings, resume, version)
    except Exception as error:
        return as_petseg_error(error)


def _remove_leavings(folders: Iterable[Path]) -> None:
    for folder in folders:
        remove_leavings(folder)


def _result(scan: Scan, model: ModelChoice, settings: RunSettings, resume: bool, version: str) -> ScanResult:
    if version != __version__:
        raise UsageError(f"A worker has petseg {__version__}, expected {version}. Install the same everywhere.")
    return run_scan(scan, _segmenter(model), settings, resume)


_loading, _working = Lock(), Lock()
_loaded: dict[ModelChoice, Segmenter] = {}


def _segmenter(choice: ModelChoice) -> Segmenter:
    """The model of this worker: loaded by the first scan, for all of its threads."""
    with _loading:
        if choice not in _loaded:
            arguments = asdict(choice)
            expected = arguments.pop("sha256")
            segmenter = Segmenter(**arguments, cache=user_cache())
            if segmenter.model_sha256 != expected:
                raise ModelError("A worker has another model under the same path. Give every machine the same file.")
            _loaded.clear()
            _loaded[choice] = segmenter
        return _loaded[choice]
