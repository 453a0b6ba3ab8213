"""Who a scan is of: nowhere in what a run says and writes, unless it is asked for."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import body_array
from runtime.dicom_factory import pet_series, write
from runtime.watched import put_scan

from petseg_runtime.io.scans import find_scans, with_unique_names

IDENTITY = {
    "PatientID": "SECRET-4711",
    "AccessionNumber": "ACC-SECRET",
    "StudyInstanceUID": "1.2.3",
    "SeriesInstanceUID": "1.2.3.1.1",
    "StudyDate": "20240229",
}


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    stored = (body_array((24, 30, 32)) * 1000).astype(np.int16)
    series = pet_series(stored, spacing_mm=(4.0, 5.0, 5.0))
    for dataset in series:
        dataset.PatientID, dataset.AccessionNumber = IDENTITY["PatientID"], IDENTITY["AccessionNumber"]
        dataset.StudyDate = IDENTITY["StudyDate"]
    write(series, tmp_path / "in" / "study")
    put_scan(tmp_path / "in" / "scan.nii.gz")
    return tmp_path / "in"


def run(scans: Path, model: Path, *options: str) -> list[dict]:
    command = [Path(sys.executable).with_name("petseg-run"), scans, "-o", scans.parent / "out", "-m", model, "--json"]
    done = subprocess.run([*map(str, command), "-s", "--report", *options], capture_output=True, text=True, check=True)
    assert "SECRET" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_no_record_says_who_a_scan_is_of(scans: Path, known_model: Path) -> None:
    records = run(scans, known_model)
    written = "".join(
        path.read_text(errors="replace") for path in (scans.parent / "out").rglob("*") if not path.name.endswith(".gz")
    )
    for said in (json.dumps(records), written):
        assert "SECRET" not in said
        assert "1.2.3" not in said
        assert "20240229" not in said


def test_with_identify_the_records_say_it(scans: Path, known_model: Path) -> None:
    for options in (["--identify"], ["--identify", "--resume"]):
        image, study = run(scans, known_model, *options)
        assert "identity" not in image
        assert study["identity"] == IDENTITY
    assert json.loads((scans.parent / "out" / "study_run.json").read_text())["identity"] == IDENTITY
    with (scans.parent / "out" / "petseg_results.csv").open() as stream:
        rows = {row["scan"]: row for row in csv.DictReader(stream)}
    assert rows["study"]["PatientID"] == IDENTITY["PatientID"]
    assert rows["scan"]["PatientID"] == ""


def test_studies_in_one_folder_say_how_to_tell_them_apart(tmp_path: Path) -> None:
    for study in ("1.2.3", "1.2.4"):
        write(pet_series(study=study), tmp_path / "in", prefix=study)
    scans = with_unique_names(find_scans(tmp_path / "in"), lambda scan: scan.folder)
    assert [scan.name for scan in scans] == ["in-1", "in-2"]
    assert all("--identify says whose each is" in scan.warnings[-1] for scan in scans)
    shutil.rmtree(tmp_path / "in")
    write(pet_series(), tmp_path / "in/study")
    put_scan(tmp_path / "in/study.nii.gz")
    scans = with_unique_names(find_scans(tmp_path / "in"), lambda scan: scan.folder)
    assert [(scan.name, scan.warnings) for scan in scans] == [("study-1", ()), ("study-2", ())]
