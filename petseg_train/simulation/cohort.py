"""Makes the simulated cohort: a folder a patient, and the CSV that training and evaluation read.

Each patient follows from the seed and its number alone, so a patient of the cohort is the same whoever makes it, in
whatever order. A patient that is there already is not made again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rich.progress import track

from petseg_runtime.errors import UsageError
from petseg_runtime.io.images import write_image
from petseg_runtime.outputs.files import prepare_folder, whole_file, write_json
from petseg_train.simulation.centres import Centre, Scanner, cohort_plan
from petseg_train.simulation.dicom_series import write_dicom_series
from petseg_train.simulation.patient import record, simulate_patient
from petseg_train.simulation.truth import paper_truth


def simulate_cohort(output: Path, patients: int, seed: int, jobs: int | None = None, dicom: bool = False) -> Path:
    """Make the cohort, or what is missing of it; returns its CSV.

    A patient's folder holds `PET.nii.gz` (SUVbw), the paper's truth `mask.nii.gz`, `exact.nii.gz`, `bladder.nii.gz`,
    `patient.json` with what was drawn, and with `dicom` the scan as a DICOM series in `dicom`.

    Raises
    ------
    UsageError : if `output` cannot be written, or holds a cohort of another size or seed.
    """
    prepare_folder(output)
    _claim(output, {"patients": patients, "seed": seed})
    plan = list(_named(cohort_plan(patients)))
    todo = [
        (index, name, centre, scanner)
        for index, (name, centre, scanner) in enumerate(plan)
        if not (output / name / "patient.json").exists() or (dicom and not (output / name / "dicom").exists())
    ]
    # Spawned: forked workers of a process that runs threads may hang.
    with ProcessPoolExecutor(jobs or os.cpu_count(), get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        made = [
            pool.submit(make_patient, output / name, index, centre, scanner, seed, dicom)
            for index, name, centre, scanner in todo
        ]
        try:
            for future in track(as_completed(made), "Simulating", total=len(made), transient=True):
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    rows = [json.loads((output / name / "patient.json").read_text()) for name, _, _ in plan]
    csv = output / "cohort.csv"
    with whole_file(csv) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)
    return csv


def _named(plan: list[tuple[Centre, Scanner]]) -> Iterator[tuple[str, Centre, Scanner]]:
    counts: dict[str, int] = {}
    for centre, scanner in plan:
        counts[centre.name] = counts.get(centre.name, 0) + 1
        yield f"{centre.name.lower()}-{counts[centre.name]:03d}", centre, scanner


def make_patient(folder: Path, index: int, centre: Centre, scanner: Scanner, seed: int, dicom: bool) -> None:
    """Make patient `index` of the cohort in its folder."""
    rng = np.random.default_rng([seed, index])
    patient = simulate_patient(centre, scanner, rng)
    truth = paper_truth(patient, rng)
    prepare_folder(folder)
    geometry = patient.volume.geometry
    for name, array in (
        ("PET", patient.volume.array),
        ("mask", truth.mask),
        ("exact", patient.tumour),
        ("bladder", patient.bladder),
    ):
        write_image(array, geometry, folder / f"{name}.nii.gz")
    if dicom:
        write_dicom_series(patient, folder / "dicom", seed, index)
    name = folder.name
    row: dict[str, object] = {
        "case": name,
        "centre": patient.centre,
        "image": f"{name}/PET.nii.gz",
        "mask": f"{name}/mask.nii.gz",
    }
    row |= {key: f"{name}/{key}.nii.gz" for key in ("exact", "bladder")} | record(patient)
    row |= {"truth": truth.method, "truth_dsc_with_exact": round(truth.dsc_with_exact, 4)}
    row |= {f"noise_{organ}": round(value, 3) for organ, value in patient.noise.items()}
    write_json(row, folder / "patient.json")  # last: it says that the patient is whole


def _claim(output: Path, settings: dict[str, int]) -> None:
    """Write the settings of a new cohort, or check that an old one had the same."""
    file = output / "simulation.json"
    if not file.exists():
        write_json(settings, file)
    elif json.loads(file.read_text()) != settings:
        raise UsageError(
            f"{output.name} holds a simulated cohort of other patients or another seed. Choose another folder."
        )
