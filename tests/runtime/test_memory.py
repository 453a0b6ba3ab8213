"""The memory budget: what it refuses, and that what it lets through keeps to it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import body_array
from runtime.dicom_factory import pet_series, write
from runtime.watched import put_scan

from petseg_runtime import MemoryBudgetError, Segmenter, UsageError, Volume
from petseg_runtime.io.images import write_image
from petseg_runtime.memory import MemoryBudget
from petseg_runtime.runner import OUTPUT_TYPES
from petseg_runtime.volume import Geometry

PEAK_OF_A_RUN = """
import sys
from pathlib import Path
from petseg_runtime import Segmenter
from petseg_runtime.io.scans import find_scans
from petseg_runtime.runner import RunSettings, run_scan
from petseg_runtime.volume import Unit
scan, output, *types = sys.argv[1:]
segmenter = Segmenter(device="cpu", threads=1)
settings = RunSettings(Path(output), Unit.SUVBW, output_types=tuple(types), preview=True, report=True,
                       statistics=True, save_probabilities=True)
run_scan(find_scans(Path(scan))[0], segmenter, settings)
# Not ru_maxrss, which a process inherits from the one that started it.
print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024)
"""


def bound_bytes(scan_voxels: int, network_voxels: int) -> float:
    """The smallest budget that lets a scan of the bundled model through."""
    segmenter = Segmenter(device="cpu", max_memory_gb=100)
    assert segmenter.budget is not None
    window_bytes = segmenter.budget.window_bytes
    low, high = 0.0, 100.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        try:
            enough = MemoryBudget(middle, window_bytes).network_voxels(scan_voxels) >= network_voxels
        except MemoryBudgetError:
            enough = False
        low, high = (low, middle) if enough else (middle, high)
    return high * 1e9


@pytest.mark.parametrize(
    ("kind", "shape", "spacing_mm"),
    [("nifti", (120, 200, 200), (2.0, 4.0, 4.0)), ("nifti", (60, 90, 90), (5.0, 6.0, 6.0)),
     ("dicom", (120, 200, 200), (2.0, 4.0, 4.0))],
    ids=["as the network's grid", "coarse", "DICOM with every result"],
)  # fmt: skip
def test_a_run_keeps_to_the_smallest_budget_that_lets_it_through(
    kind: str, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], tmp_path: Path
) -> None:
    array, types = body_array(shape), ["nifti"]
    if kind == "dicom":
        write(pet_series((array * 1000).astype(np.int16), spacing_mm=spacing_mm), tmp_path / "scan")
        scan, types = tmp_path / "scan", list(OUTPUT_TYPES)
    else:
        scan = tmp_path / "scan.nii.gz"
        write_image(array, Geometry(shape, spacing_mm), scan)
    network_voxels = int(np.prod([size * step / new for size, step, new in zip(shape, spacing_mm, (2, 4, 4))]))
    command = [sys.executable, "-c", PEAK_OF_A_RUN, str(scan), str(tmp_path / "out"), *types]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) <= bound_bytes(array.size, network_voxels)


def test_a_scan_is_refused_by_its_header(tmp_path: Path, known_model: Path) -> None:
    """A file of a few kilobytes that unpacks to 800 MB, and a budget of 600 MB."""
    geometry = Geometry((600, 600, 600), (2.0, 2.0, 2.0))
    write_image(np.zeros(geometry.shape, np.uint8), geometry, tmp_path / "scan.nii.gz")
    command = [str(Path(sys.executable).with_name("petseg-run")), "scan.nii.gz", "-q", "-m", str(known_model)]
    done = subprocess.run(
        [*command, "--max-memory-gb", "0.6", "-o", "out"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == MemoryBudgetError.exit_code
    assert "600 x 600 x 600 voxels, and the memory budget" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_a_scan_that_grows_on_the_networks_grid_is_refused(known_model: Path) -> None:
    segmenter = Segmenter(known_model, max_memory_gb=0.5)
    geometry = Geometry((80, 40, 40), (10.0, 20.0, 20.0))
    with pytest.raises(MemoryBudgetError, match="network's grid"):
        segmenter.segment(Volume(body_array(geometry.shape), geometry))


def test_a_batch_with_a_budget_gives_the_same(tmp_path: Path, known_model: Path) -> None:
    for seed in range(3):
        put_scan(tmp_path / "in" / f"scan{seed}.nii.gz", seed)
    (tmp_path / "in" / "broken.nii.gz").write_bytes(b"no scan")
    command = [str(Path(sys.executable).with_name("petseg-run")), "in", "-q", "-m", str(known_model)]
    for name, budget in (("without", []), ("with", ["--max-memory-gb", "2"])):
        done = subprocess.run(
            [*command, "-o", name, *budget], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 7
    for mask in sorted((tmp_path / "without").glob("*_petseg.nii.gz")):
        assert (tmp_path / "with" / mask.name).read_bytes() == mask.read_bytes()


@pytest.mark.parametrize("gigabytes", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_budget_is_refused(gigabytes: float, known_model: Path) -> None:
    with pytest.raises(UsageError, match="memory budget"):
        Segmenter(known_model, max_memory_gb=gigabytes)


def test_a_budget_that_is_too_small_for_the_model_is_refused(known_model: Path) -> None:
    with pytest.raises(MemoryBudgetError, match="without any scan"):
        Segmenter(known_model, max_memory_gb=0.1)


def test_a_backend_that_does_not_plan_its_memory_takes_no_budget(known_model: Path) -> None:
    with pytest.raises(UsageError, match="keeps no memory budget"):
        Segmenter(known_model, backend="onnxruntime", device="cpu", max_memory_gb=2)
