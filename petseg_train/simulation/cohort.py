"""Makes the simulated cohort: a folder a patient, and the CSV that training and evaluation read.

A patient follows from the seed, its number and its centre, whoever makes it and in whatever order. A patient that is
there already is not made again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

import numpy as np
import pandas as pd
from rich.progress import track

from petseg_runtime.errors import UsageError
from petseg_runtime.io.images import write_image
from petseg_runtime.outputs.files import prepare_folder, remove_leavings, scratch_folder, whole_file, write_json
from petseg_train.simulation.centres import Centre, Scanner, cohort_plan
from petseg_train.simulation.dicom_series import write_dicom_series
from petseg_train.simulation.patient import Patient, record, simulate_patient
from petseg_train.simulation.truth import Truth, paper_truth

# Raised with each change of anatomy, physics or truth, so that no cohort is made half by one and half by another.
VERSION = 2
_SETTINGS, _CSV = "simulation.json", "cohort.csv"
# Of the columns of a simulated patient, two that each has and no other patient.
_OF_THE_SIMULATION = ("touches_bladder", "truth")
TRUNK_VERSION = 2  # likewise, of what only scans of the trunk have


def simulate_cohort(
    output: Path, patients: int, seed: int, jobs: int | None = None, dicom: bool = False, trunk: bool = False
) -> Path:
    """Make the cohort, or what is missing of it; returns its CSV.

    A patient's folder holds `PET.nii.gz` (SUVbw), the paper's truth `mask.nii.gz`, `exact.nii.gz`, `bladder.nii.gz`,
    `patient.json` with what was drawn, and with `dicom` the scan as a DICOM series in `dicom`. With `trunk` the scans
    go on into thorax and head, which the paper's do not.

    Raises
    ------
    UsageError : if `output` cannot be written, or holds another cohort or one of patients, or a worker was killed.
    """
    plan = cohort_plan(patients)
    prepare_folder(output)
    remove_leavings(output)
    settings = {"patients": patients, "seed": seed, "dicom": dicom, "version": VERSION}
    _claim(output, settings | ({"trunk": TRUNK_VERSION} if trunk else {}))
    named = list(_named(plan, "trunk-" if trunk else ""))
    todo = [(index, *of) for index, of in enumerate(named) if not (output / of[0]).exists()]
    workers = ProcessPoolExecutor(jobs or os.cpu_count(), get_context("spawn"), _end_with_parent)
    with _single_threaded_children(), workers as pool:
        made = [
            pool.submit(make_patient, output / name, index, centre, scanner, seed, dicom, trunk, patients)
            for index, name, centre, scanner in todo
        ]
        try:
            for future in track(as_completed(made), "Simulating", total=len(made), transient=True):
                future.result()
        except BrokenProcessPool as error:
            raise UsageError(
                "A simulating process was killed, for want of memory perhaps. Run the command again with fewer --jobs; "
                "what is finished stays."
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    rows = [json.loads((output / name / "patient.json").read_text()) for name, _, _ in named]
    csv = output / _CSV
    with whole_file(csv) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)
    return csv


def _end_with_parent() -> None:
    """Have a worker end when the process that started it does, however that ended: it would work on for nobody."""

    def wait() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)

    Thread(target=wait, daemon=True).start()


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Processes started meanwhile use one thread each: there are as many of them as processors."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _named(plan: list[tuple[Centre, Scanner]], prefix: str) -> Iterator[tuple[str, Centre, Scanner]]:
    counts: dict[str, int] = {}
    for centre, scanner in plan:
        counts[centre.name] = counts.get(centre.name, 0) + 1
        yield f"{prefix}{centre.name.lower()}-{counts[centre.name]:03d}", centre, scanner


def make_patient(
    folder: Path,
    index: int,
    centre: Centre,
    scanner: Scanner,
    seed: int,
    dicom: bool = False,
    trunk: bool = False,
    patients: int = 1,
) -> None:
    """Make patient `index` of a cohort of `patients`; its folder appears when it is whole."""
    rng = np.random.default_rng([seed, index])
    patient = simulate_patient(centre, scanner, rng, trunk)
    truth = paper_truth(patient, rng)
    prepare_folder(folder.parent)
    with scratch_folder(folder.parent) as scratch:
        partial = scratch / folder.name
        partial.mkdir()
        _write(patient, truth, partial, dicom, f"{patients}-{seed}-{index}-{folder.name}", trunk)
        try:
            partial.rename(folder)
        except OSError:
            if not (folder / "patient.json").exists():  # another process made the same one meanwhile
                raise


def _write(patient: Patient, truth: Truth, partial: Path, dicom: bool, identity: str, trunk: bool) -> None:
    masks = {"mask": truth.mask, "exact": patient.tumour, "bladder": patient.bladder}
    with whole_file(partial / "PET.nii.gz") as temporary:
        write_image(patient.volume.array, patient.volume.geometry, temporary)
    for name, mask in masks.items():
        with whole_file(partial / f"{name}.nii.gz") as temporary:
            write_image(mask, patient.volume.geometry, temporary)
    if dicom:
        # All that the pixels depend on, so that no two scans have one UID.
        version = f"{VERSION}t{TRUNK_VERSION}" if trunk else str(VERSION)
        write_dicom_series(patient, partial / "dicom", f"SIM{version}-{identity}")
    name = partial.name
    row: dict[str, object] = {"case": name, "centre": patient.centre, "image": f"{name}/PET.nii.gz"}
    row |= {key: f"{name}/{key}.nii.gz" for key in ("mask", "exact", "bladder")} | record(patient)
    row |= {"truth": truth.method, "flab_dsc": round(truth.flab_dsc, 4)}
    row |= {f"noise_{organ}": round(value, 3) for organ, value in patient.noise.items()}
    write_json(row, partial / "patient.json")


def simulation_of(csv: Path) -> int | None:
    """The seed of the simulation that made a cohort's CSV; None of one with other patients in it."""
    try:
        seed = json.loads(csv.with_name(_SETTINGS).read_text())["seed"]
        whole = pd.read_csv(csv)[list(_OF_THE_SIMULATION)].notna().all(axis=None)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return int(seed) if csv.name == _CSV and whole else None


def _claim(output: Path, settings: dict[str, int]) -> None:
    """Write the settings of a new cohort, or check that an old one had the same."""
    file = output / _SETTINGS
    if not file.exists():
        if (output / _CSV).exists():
            raise UsageError(f"{output.name} holds a cohort.csv that was not simulated. Choose another folder.")
        write_json(settings, file)
        return
    try:
        same = json.loads(file.read_text()) == settings
    except ValueError:
        same = False
    if not same:
        raise UsageError(f"{output.name} holds a cohort simulated with other settings. Choose another folder.")
