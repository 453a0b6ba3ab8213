"""One Segmenter, many threads: every mask and probability as from one thread, bit for bit, and memory that stays.

    python benchmarks/threads.py --threads 16 --scans 200

The scans are ten cuts of the example. Prints the memory after every thread has done its first scan, and at the end;
exit code 1 if a result differs, or the memory has grown by more than a tenth.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import numpy as np

from petseg_runtime import Segmentation, Segmenter, Volume, read_volume

EXAMPLE = Path(__file__).parents[1] / "examples" / "pelvis.nii.gz"
CUTS = 10
SLICES = 32


def cut(volume: Volume, number: int) -> Volume:
    """A few slices of the scan, other ones for each number."""
    first = number * (volume.array.shape[0] - SLICES) // (CUTS - 1)
    array = np.ascontiguousarray(volume.array[first : first + SLICES])
    return Volume(array, replace(volume.geometry, shape=(SLICES, *volume.array.shape[1:])), volume.unit)


def memory_mb() -> float:
    """Memory of this process."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return float(fields["VmRSS"].split()[0]) / 1024


def main() -> int:
    """Run and compare; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--scans", type=int, default=200)
    options = parser.parse_args()
    segmenter, example = Segmenter(device="cpu"), read_volume(EXAMPLE, "suvbw")
    cuts = [cut(example, number) for number in range(CUTS)]
    alone = [segmenter.segment(one) for one in cuts]
    everybody = Barrier(min(options.threads, options.scans))
    after_first: list[float] = []

    def work(thread: int) -> int:
        differ = 0
        for turn, number in enumerate(range(thread, options.scans, options.threads)):
            differ += not _same(segmenter.segment(cuts[number % CUTS]), alone[number % CUTS])
            if turn == 0 and everybody.wait() == 0:
                after_first.append(memory_mb())
        return differ

    with ThreadPoolExecutor(options.threads) as pool:
        differ = sum(pool.map(work, range(options.threads)))
    end = memory_mb()
    print(
        f"{options.scans} scans on {options.threads} threads: {differ} differ; {after_first[0]:.0f} MB after each "
        f"thread's first, {end:.0f} MB at the end"
    )
    return int(differ > 0 or end > 1.1 * after_first[0])


def _same(one: Segmentation, other: Segmentation) -> bool:
    return np.array_equal(one.mask, other.mask) and np.array_equal(one.probabilities, other.probabilities)


if __name__ == "__main__":
    sys.exit(main())
