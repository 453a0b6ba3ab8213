"""Kill a batch at random moments, let it go on each time, and compare with one that was left alone.

    python benchmarks/kills.py --kills 50 --scans 20 --seed 0
    python benchmarks/kills.py --kills 50 --scans 20 --seed 0 --inbox

The batch runs `petseg-run FOLDER -o OUT --resume`, or with --inbox `petseg-run FOLDER -o OUT --watch`; each process is
killed (SIGKILL) at a random moment, early enough that the batch outlives many kills: with 20 scans within the first
quarter of the time that all of it takes. In the end every file must be there, byte for byte, and no other; of the
records all but the times, and of an inbox's journal the state of each scan. Exit code 1 if not.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from time import perf_counter, sleep

import numpy as np
from rich.progress import track

from petseg_runtime.inbox import JOURNAL
from petseg_runtime.io.images import write_image
from petseg_runtime.volume import Geometry

GEOMETRY = Geometry((24, 30, 32), (5.0, 8.0, 8.0))


def write_batch(folder: Path, scans: int, rng: np.random.Generator) -> None:
    """Small bodies with a hot ball, in two folders."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in GEOMETRY.shape), indexing="ij")
    for number in range(scans):
        array = np.where((y / 0.7) ** 2 + (x / 0.8) ** 2 < 1, rng.normal(1, 0.1, GEOMETRY.shape), 0.01).clip(0)
        array[(z - rng.uniform(-0.5, 0.5)) ** 2 + y**2 + x**2 < 0.1] = 9.0
        path = folder / str(number % 2) / f"scan{number:02d}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(array.astype(np.float32), GEOMETRY, path)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too; records without their times."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            data = journal(path) if path.name == JOURNAL else path.read_bytes()
            if path.name.endswith("_run.json"):
                record = json.loads(data)
                del record["timings_s"]
                data = json.dumps(record).encode()
            found[str(path.relative_to(folder))] = data
    return found


def journal(path: Path) -> bytes:
    """What the journal of an inbox says of each scan, without the time at which it did."""
    with closing(sqlite3.connect(path)) as connection:
        return json.dumps(
            connection.execute("SELECT digest, folder, name, state, reason FROM scans ORDER BY digest").fetchall()
        ).encode()


def complete(command: Sequence[str | Path], output: Path, scans: int) -> None:
    """Run a command until it ends, or an inbox until each scan is done and then a while longer."""
    if "--watch" not in command:
        subprocess.run([*command, output], check=True)
        return
    process = subprocess.Popen([*command, output])
    while len(list(output.rglob("*_run.json"))) < scans:
        if process.poll() is not None:
            sys.exit(f"The inbox ended by itself with exit code {process.returncode}.")
        sleep(0.2)
    sleep(3)
    process.terminate()
    if process.wait() != 0:
        sys.exit(f"The inbox ended with exit code {process.returncode} after SIGTERM.")


def main() -> int:
    """Run it and say what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--scans", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inbox", action="store_true")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        write_batch(root / "in", options.scans, rng)
        how = ["--watch", "--settle", "0.2"] if options.inbox else ["--resume"]
        petseg_run = [Path(sys.executable).with_name("petseg-run"), root / "in", "-q", "-s", "-p", *how, "-o"]
        began = perf_counter()
        complete(petseg_run, root / "whole", options.scans)
        took_s = perf_counter() - began
        killed = 0
        for _ in track(range(options.kills), "Killing", transient=True):
            process = subprocess.Popen([*petseg_run, root / "killed"])
            sleep(rng.uniform(0, 1.2) * took_s / max(1, options.scans / 4))
            process.kill()
            killed += process.wait() != 0
        complete(petseg_run, root / "killed", options.scans)
        whole, resumed = content(root / "whole"), content(root / "killed")
    odd = sorted(name for name in whole.keys() | resumed.keys() if whole.get(name) != resumed.get(name))
    print(
        f"{killed} of {options.kills} processes died; {len(whole)} files, {len(odd)} differ or are missing: {odd[:10]}"
    )
    return 1 if odd else 0


if __name__ == "__main__":
    sys.exit(main())
