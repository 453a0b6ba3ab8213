"""How long the whole command takes: `petseg-run` on one scan, backend beside backend, in turn, over several rounds.

    python benchmarks/command.py [SCAN] [--rounds N]

Wall time from the start of the process to its end, so start-up, reading, resampling and writing are in it. The machine
should do nothing else meanwhile. Prints medians, the range, the ratio to the first backend and the stages' shares.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

BACKENDS = ("openvino", "onnxruntime")
# Stage as the record names it, and as the table's heading.
STAGES = {
    "reading": "read",
    "preprocessing": "prepare",
    "inference": "infer",
    "postprocessing": "restore",
    "quantification": "quantify",
    "writing": "write",
}


def run_once(scan: Path, backend: str) -> tuple[float, dict[str, float]]:
    """Seconds of the whole command, and of each stage as the command records it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [Path(sys.executable).with_name("petseg-run"), scan, "-o", folder, "-q", "-d", "cpu"]
        started = perf_counter()
        subprocess.run([*command, "--backend", backend], check=True)
        seconds = perf_counter() - started
        (record,) = Path(folder).glob("*_run.json")
        return seconds, json.loads(record.read_text())["timings_s"]


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", nargs="?", type=Path, default=Path(__file__).parents[1] / "examples" / "pelvis.nii.gz")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()

    for backend in BACKENDS:  # once unmeasured, so that files and libraries are in the page cache for each
        run_once(options.scan, backend)
    seconds: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
    stages: dict[str, list[dict[str, float]]] = {backend: [] for backend in BACKENDS}
    for _ in track(range(options.rounds), description="Rounds", transient=True):
        for backend in BACKENDS:
            whole, parts = run_once(options.scan, backend)
            seconds[backend].append(whole)
            stages[backend].append(parts)

    table = Table(
        title=f"petseg-run {options.scan.name}, {options.rounds} rounds, seconds",
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for heading in ("backend", "median", "range", "ratio", "start", *STAGES.values()):
        table.add_column(heading, justify="left" if heading == "backend" else "right", no_wrap=True)
    first = statistics.median(seconds[BACKENDS[0]])
    for backend in BACKENDS:
        median = statistics.median(seconds[backend])
        parts = [statistics.median(run[stage] for run in stages[backend]) for stage in STAGES]
        table.add_row(
            backend,
            f"{median:.2f}",
            f"{min(seconds[backend]):.2f}-{max(seconds[backend]):.2f}",
            f"{median / first:.2f}",
            f"{median - sum(parts):.2f}",
            *(f"{part:.2f}" for part in parts),
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
