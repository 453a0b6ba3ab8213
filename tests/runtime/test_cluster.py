"""Scans on a Dask cluster: the files of one machine, also when a worker dies during the work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from distributed import Client
from runtime.watched import put_scan, wait_until

SCANS = 8


def program(name: str) -> Path:
    return Path(sys.executable).with_name(name)


class Cluster:
    """A scheduler and workers, each a process of its own that nobody starts again."""

    def __init__(self, folder: Path, workers: int) -> None:
        file = folder / "scheduler.json"
        dask, quiet = program("dask"), {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        options = ["--scheduler-file", str(file), "--no-dashboard"]
        scheduler = [str(dask), "scheduler", "--host", "127.0.0.1", "--port", "0", *options]
        self.scheduler = subprocess.Popen(scheduler, **quiet)
        wait_until(file.exists)
        self.address = json.loads(file.read_text())["address"]
        worker = [str(dask), "worker", self.address, "--no-nanny", "--nthreads", "1", "--no-dashboard"]
        self.workers = [
            subprocess.Popen([*worker, "--local-directory", str(folder / "scratch")], cwd=folder, **quiet)
            for _ in range(workers)
        ]
        if workers:
            with Client(self.address, set_as_default=False) as client:
                client.wait_for_workers(workers, timeout=60)

    def stop(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[Cluster]:
    folder.mkdir()
    running = Cluster(folder, workers)
    try:
        yield running
    finally:
        running.stop()


def content(folder: Path) -> dict[str, bytes]:
    """Every file, hidden ones too; records without their times."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
            if path.name.endswith("_run.json"):
                record = json.loads(path.read_text())
                del record["timings_s"]
                found[str(path.relative_to(folder))] = json.dumps(record).encode()
    return found


def run(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [str(program("petseg-run")), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_a_worker_dies_and_the_results_are_those_of_one_machine(tmp_path: Path, known_model: Path) -> None:
    for seed in range(SCANS):
        put_scan(tmp_path / "in" / f"scan{seed}.nii.gz", seed)
    (tmp_path / "in" / "broken.nii.gz").write_bytes(b"no scan")
    assert run("in", "-o", "here", "-q", "-s", "-m", known_model, cwd=tmp_path).returncode == 7
    with cluster(tmp_path / "cluster", workers=2) as workers:
        command = [str(program("petseg-run")), "in", "-o", "there", "-q", "-s", "-m", str(known_model)]
        process = subprocess.Popen(
            [*command, "--scheduler", workers.address], cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )
        wait_until(lambda: any((tmp_path / "there").glob("*_run.json")))
        os.kill(workers.workers[0].pid, signal.SIGKILL)
        _, messages = process.communicate(timeout=120)
    assert process.returncode == 7
    assert len(messages.splitlines()) == 2  # the broken scan, and how many are done
    assert content(tmp_path / "there") == content(tmp_path / "here")


def test_what_is_done_is_not_done_again(tmp_path: Path, known_model: Path) -> None:
    put_scan(tmp_path / "in" / "scan.nii.gz")
    run("in", "-o", "out", "-q", "-m", known_model, cwd=tmp_path)
    before = (tmp_path / "out" / "scan_run.json").stat().st_mtime_ns
    with cluster(tmp_path / "cluster", workers=1) as workers:
        done = run("in", "-o", "out", "-m", known_model, "--resume", "--scheduler", workers.address, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "scan" in done.stdout
    assert (tmp_path / "out" / "scan_run.json").stat().st_mtime_ns == before


def test_a_cluster_that_cannot_work_is_said(tmp_path: Path, known_model: Path) -> None:
    put_scan(tmp_path / "in" / "scan.nii.gz")
    with cluster(tmp_path / "cluster", workers=0) as nobody:
        alone = run("in", "-o", "out", "-q", "-m", known_model, "--scheduler", nobody.address, cwd=tmp_path)
    gone = run("in", "-o", "out", "-q", "-m", known_model, "--scheduler", nobody.address, cwd=tmp_path)
    for done, says in ((alone, "has no worker"), (gone, "No Dask scheduler answers")):
        assert done.returncode == 2
        assert says in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("arguments", [["--watch"], ["--scheduler", "no address at all"]])
def test_options_that_do_not_go_together_are_refused(arguments: list[str], tmp_path: Path, known_model: Path) -> None:
    put_scan(tmp_path / "in" / "scan.nii.gz")
    done = run("in", "-o", "out", "-q", "-m", known_model, "--scheduler", "tcp://127.0.0.1:1", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
