"""A console on a bad day: eight senders at once, the service killed in the middle, and an archive for the results.

    python benchmarks/senders.py --senders 8 --instances 2000

One simulated patient becomes studies with UIDs of their own. DCMTK's storescu sends them, each again until all of it is
acknowledged, as a scanner's queue does; the service (petseg-run --watch --dicom-port) is killed (SIGKILL) when half of
the instances have come, and started again. Results go to Orthanc. In the end every instance that was acknowledged
must be in the inbox, every study segmented once, and every result in the archive. Exit code 1 if not.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event
from time import monotonic, sleep
from urllib.request import urlopen

import pydicom
from pydicom.uid import generate_uid

from petseg_runtime.inbox import JOURNAL
from petseg_train.simulation.centres import cohort_plan
from petseg_train.simulation.cohort import make_patient

PATIENCE_S = 1800.0
HERE = "127.0.0.1"


def free_port() -> int:
    """A port that nobody has just now."""
    with socket.create_server((HERE, 0)) as listening:
        return int(listening.getsockname()[1])


def make_studies(folder: Path, instances: int) -> list[list[Path]]:
    """As many copies of one simulated patient as give that many instances, each a study of its own."""
    centre, scanner = cohort_plan(10)[0]
    make_patient(folder / "patient", 0, centre, scanner, seed=11, dicom=True)
    slices = [pydicom.dcmread(path) for path in sorted((folder / "patient" / "dicom").iterdir())]
    studies = []
    while sum(map(len, studies)) < instances:
        study, series, files = generate_uid(), generate_uid(), list[Path]()
        (folder / str(len(studies))).mkdir()
        for number, dataset in enumerate(slices):
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            files.append(folder / str(len(studies)) / f"{number:04d}.dcm")
            dataset.save_as(files[-1], enforce_file_format=True)
        studies.append(files)
    return studies


@contextmanager
def orthanc(folder: Path) -> Iterator[tuple[int, int]]:
    """A real archive; yields its DICOM and HTTP ports."""
    dicom, http = free_port(), free_port()
    folder.mkdir()
    settings = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "DicomAet": "ORTHANC",
        "DicomPort": dicom,
        "HttpPort": http,
        "RemoteAccessAllowed": False,
        "DicomAlwaysAllowStore": True,
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)
        try:
            wait_until(lambda: answers(http), "Orthanc does not answer")
            yield dicom, http
        finally:
            process.terminate()
            process.wait()


def answers(port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection((HERE, port), 1).close()
    except OSError:
        return False
    return True


def wait_until(condition: Callable[[], bool], otherwise: str) -> None:
    """Wait for it."""
    end = monotonic() + PATIENCE_S
    while not condition():
        if monotonic() > end:
            sys.exit(otherwise)
        sleep(0.2)


def send(files: list[Path], port: int, stopped: Event) -> set[str]:
    """Send a study until all of it is acknowledged; the names of the files whose storage was, at any time."""
    acknowledged: set[str] = set()
    while not stopped.is_set():
        command = ["storescu", "-v", "-aec", "PETSEG", HERE, str(port), *map(str, files)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        current = ""
        for line in (done.stdout + done.stderr).splitlines():
            if sending := re.search(r"Sending file: (\S+)", line):
                current = sending[1]
            elif "Received Store Response (Success)" in line:
                acknowledged.add(current)
        if done.returncode == 0 and len(acknowledged) == len(files):
            break
        sleep(1)
    return acknowledged


def uid_of(file: Path) -> str:
    """SOPInstanceUID of a DICOM file."""
    return str(pydicom.dcmread(file, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)


def states(output: Path) -> list[str]:
    """The states of all scans in the journal."""
    if not (output / JOURNAL).exists():
        return []
    with closing(sqlite3.connect(f"{(output / JOURNAL).as_uri()}?mode=ro", uri=True)) as journal:
        return [state for (state,) in journal.execute("SELECT state FROM scans")]


def main() -> int:
    """Run it and say what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--senders", type=int, default=8)
    parser.add_argument("--instances", type=int, default=2000)
    options = parser.parse_args()
    for tool in ("storescu", "Orthanc"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is not installed (Debian packages dcmtk and orthanc).")
    with tempfile.TemporaryDirectory() as place, orthanc(Path(place) / "archive") as (archive, http):
        root, port = Path(place), free_port()
        inbox, output = root / "inbox", root / "out"
        (root / "sent").mkdir()
        inbox.mkdir()
        print("Making the studies", flush=True)
        studies = make_studies(root / "sent", options.instances)
        instances = sum(map(len, studies))
        service = [Path(sys.executable).with_name("petseg-run"), inbox, "-o", output, "-q", "--watch", "--settle", "5"]
        service += ["--dicom-port", str(port), "--send-to", f"ORTHANC@{HERE}:{archive}"]
        service += ["--output-type", "dicom-seg", "--output-type", "dicom-sr"]

        def received() -> int:
            return len(list(inbox.glob("study-*/*.dcm")))

        running, stopped = subprocess.Popen(service), Event()
        with ThreadPoolExecutor(options.senders) as senders:
            try:
                sent = [senders.submit(send, study, port, stopped) for study in studies]
                wait_until(lambda: received() >= instances // 2, "The instances do not come")
                running.kill()
                running.wait()
                print(f"Killed when {received()} of {instances} instances had come", flush=True)
                sleep(3)
                running = subprocess.Popen(service)
                acknowledged = [one.result() for one in sent]
                wait_until(lambda: states(output).count("done") >= len(studies), "The studies are not done")
                sleep(10)  # for what should not come: a study that is done twice
            finally:
                stopped.set()
                running.terminate()
                running.wait()
        with urlopen(f"http://{HERE}:{http}/instances?expand") as answer:
            archived = [one["MainDicomTags"]["SOPInstanceUID"] for one in json.loads(answer.read())]
        written = [uid_of(path) for path in output.rglob("*.dcm")]
        in_inbox = {uid_of(path) for path in inbox.rglob("*.dcm")}
        lost = sum(uid_of(Path(path)) not in in_inbox for files in acknowledged for path in files)
        records = len(list(output.rglob("*_run.json")))
        refused = states(output).count("failed")
    print(
        f"{sum(map(len, acknowledged))} of {instances} instances acknowledged, {lost} of them lost; "
        f"{len(studies)} studies, {records} segmented, {refused} parts refused on the way; {len(written)} results, "
        f"{len(set(written) & set(archived))} of them in the archive, which holds {len(archived)}."
    )
    return int(lost > 0 or records != len(studies) or set(written) != set(archived))


if __name__ == "__main__":
    sys.exit(main())
