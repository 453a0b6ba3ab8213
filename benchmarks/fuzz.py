"""Broken inputs: every one must end in a result or in one line that refuses it.

    python benchmarks/fuzz.py --inputs 1000 --seed 0

Scans (NIfTI and DICOM) are written, broken (bits flipped, bytes zeroed, _cut short, elements deleted or replaced, files
swapped or missing), and run as petseg-run does. A worker process takes them one after the other; a crash, a hang, an
unexpected exception, a message of several lines or a file that is not whole is a failure, named by its seed. Exit code
1 if there is one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from petseg_runtime import Segmenter
from petseg_runtime.errors import PetsegError
from petseg_runtime.io.images import write_image
from petseg_runtime.io.scans import find_scans
from petseg_runtime.runner import RunSettings, run_scan
from petseg_runtime.volume import Geometry

SHAPE = (12, 24, 26)
SPACING_MM = (6.0, 8.0, 8.0)
HANG_S = 60.0

PET_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.128"


def write_scan(folder: Path, kind: str, rng: np.random.Generator) -> None:
    """A small body with a hot ball, as one image file or as a PET series."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    array = np.where((y / 0.7) ** 2 + (x / 0.8) ** 2 < 1, rng.normal(1, 0.1, SHAPE), 0.01).clip(0)
    array[(z - 0.2) ** 2 + y**2 + x**2 < 0.1] = 9.0
    folder.mkdir(parents=True)
    if kind != "dicom":
        write_image(array.astype(np.float32), Geometry(SHAPE, SPACING_MM), folder / f"scan{kind}")
        return
    for index, plane in enumerate((array * 1000).astype("<i2")):
        dataset = _slice(plane, index)
        dataset.save_as(folder / f"IM{index:03d}", enforce_file_format=True)


def _slice(plane: np.ndarray, index: int) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = PET_IMAGE_STORAGE
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = f"1.2.3.{index + 1}"
    dataset.Modality, dataset.Manufacturer, dataset.Units, dataset.DecayCorrection = "PT", "Synthetic", "BQML", "START"
    dataset.PatientName, dataset.PatientID, dataset.PatientWeight = "Doe^Jane", "SECRET", 70
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2.4", "1.2.5"
    dataset.SeriesNumber, dataset.NumberOfSlices, dataset.SeriesType = 1, SHAPE[0], ["WHOLE BODY", "IMAGE"]
    dataset.CorrectedImage, dataset.ImageType = ["ATTN", "DECY"], ["ORIGINAL", "PRIMARY"]
    dataset.SeriesDate = dataset.AcquisitionDate = "20240229"
    dataset.SeriesTime = dataset.AcquisitionTime = "114946.2"
    dataset.FrameReferenceTime, dataset.ActualFrameDuration = 0, 120_000
    injection = Dataset()
    injection.RadiopharmaceuticalStartDateTime = "20240229100000"
    injection.RadionuclideTotalDose, injection.RadionuclideHalfLife = 350e6, 6586.2
    dataset.RadiopharmaceuticalInformationSequence = [injection]
    dataset.Rows, dataset.Columns = plane.shape
    dataset.PixelSpacing, dataset.SliceThickness = list(SPACING_MM[1:]), SPACING_MM[0]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [0, 0, index * SPACING_MM[0]]
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.PixelData = plane.tobytes()
    return dataset


# --- ways to break a file ---------------------------------------------------------------------------------------


def _flip_bits(file: Path, rng: np.random.Generator) -> None:
    content = bytearray(file.read_bytes())
    reach = len(content) if rng.random() < 0.3 else min(len(content), 2000)  # headers matter most
    for place in rng.integers(0, reach, rng.integers(1, 20)):
        content[place] ^= 1 << int(rng.integers(8))
    file.write_bytes(content)


def _overwrite(file: Path, rng: np.random.Generator) -> None:
    content = bytearray(file.read_bytes())
    start = int(rng.integers(0, len(content)))
    length = int(rng.integers(1, 400))
    content[start : start + length] = bytes([int(rng.choice([0, 255, 48]))]) * length
    file.write_bytes(content)


def _cut(file: Path, rng: np.random.Generator) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(rng.integers(0, len(content)))])


def _remove(file: Path, _: np.random.Generator) -> None:
    file.unlink()


def _double(file: Path, rng: np.random.Generator) -> None:
    shutil.copy(file, file.with_name(f"{rng.integers(1000)}-{file.name}"))


def _delete_element(file: Path, rng: np.random.Generator) -> None:
    dataset = pydicom.dcmread(file)
    tags = list(dataset.keys())
    del dataset[tags[int(rng.integers(len(tags)))]]
    dataset.save_as(file)


def _replace_element(file: Path, rng: np.random.Generator) -> None:
    dataset = pydicom.dcmread(file)
    tags = [tag for tag in dataset.keys() if dataset[tag].VR != "SQ"]  # noqa: SIM118
    value = rng.choice(["", "nonsense", "-1", "0", "1e99", "nan", "99999999", "20240229", "\\\\"])
    dataset.add_new(tags[int(rng.integers(len(tags)))], "LO", str(value))
    dataset.save_as(file)


Breaking = Callable[[Path, np.random.Generator], None]
ANY: tuple[Breaking, ...] = (_flip_bits, _overwrite, _cut)
DICOM: tuple[Breaking, ...] = (
    *ANY,
    _remove,
    _double,
    _delete_element,
    _replace_element,
    _delete_element,
    _replace_element,
)


def break_scan(folder: Path, rng: np.random.Generator) -> str:
    """Break one file of a scan, or all in the same way; returns what was done."""
    files = sorted(folder.iterdir())
    is_dicom = len(files) > 1
    breaking = (DICOM if is_dicom else ANY)[int(rng.integers(len(DICOM if is_dicom else ANY)))]
    everywhere = is_dicom and rng.random() < 0.4 and breaking not in (_remove, _double)
    seed = int(rng.integers(2**32))
    for file in files if everywhere else [files[int(rng.integers(len(files)))]]:
        breaking(file, np.random.default_rng(seed))
    return f"{breaking.__name__.strip('_')}{' everywhere' if everywhere else ''}"


# --- the run ----------------------------------------------------------------------------------------------------


def try_one(seed: int, segmenter: Segmenter, folder: Path) -> tuple[str, str]:
    """Outcome ("result", "refused" or "failure") of one broken input, and what was done or went wrong."""
    rng = np.random.default_rng(seed)
    kind = str(rng.choice([".nii", ".nii.gz", ".mha", ".nrrd", "dicom", "dicom", "dicom", "dicom"]))
    done = ""
    try:
        write_scan(folder / "in", kind, rng)
        done = f"{kind}: {break_scan(folder / 'in', rng)}"
        kinds = ("nifti", "dicom-seg", "dicom-sr", "dicom-rtstruct") if kind == "dicom" else ("nifti",)
        settings = RunSettings(output=folder / "out", output_types=kinds, statistics=True, preview=True, report=True)
        for scan in find_scans(folder / "in"):
            run_scan(scan, segmenter, settings)
    except PetsegError as error:
        message = str(error)
        left = list((folder / "out").rglob("*")) if (folder / "out").exists() else []
        if "\n" in message or not message or "Doe" in message or "SECRET" in message:
            return "failure", f"{done}: message {message!r}"
        if any(path.is_file() for path in left):
            return "failure", f"{done}: {len(left)} files left after {message!r}"
        return "refused", done
    except Exception as error:  # that is what is looked for
        return "failure", f"{done}: {type(error).__name__}: {error}"
    written = [path.name for path in (folder / "out").rglob("*") if path.is_file()]
    if not any(name.endswith("_run.json") for name in written) or any(name.startswith(".") for name in written):
        return "failure", f"{done}: left {written}"
    return "result", done


def work(model: Path | None, seeds: list[int]) -> None:
    """A worker: one line of JSON for each seed, before and after it."""
    segmenter = Segmenter(model, "cpu", threads=1)
    for seed in seeds:
        print(json.dumps({"began": seed}), flush=True)
        with tempfile.TemporaryDirectory() as folder:
            outcome, said = try_one(seed, segmenter, Path(folder))
        print(json.dumps({"seed": seed, "outcome": outcome, "said": said}), flush=True)


def fuzz(inputs: int, seed: int, model: Path | None = None) -> tuple[Counter[str], list[str]]:
    """Run broken inputs in worker processes, a fresh one after each crash; outcomes, and what failed."""
    counts: Counter[str] = Counter()
    failures: list[str] = []
    seeds = list(range(seed, seed + inputs))
    while seeds:
        command = [sys.executable, __file__, "--worker", json.dumps(seeds[:200])]
        command += ["--model", str(model)] if model else []
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=HANG_S + 2 * len(seeds[:200]), check=False
            )
            output, code = done.stdout, done.returncode
        except subprocess.TimeoutExpired as expired:
            output = expired.stdout.decode() if isinstance(expired.stdout, bytes) else (expired.stdout or "")
            code = None
        lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        finished = {line["seed"] for line in lines if "seed" in line}
        for line in lines:
            if "seed" in line:
                counts[line["outcome"]] += 1
                failures += [f"seed {line['seed']}: {line['said']}"] if line["outcome"] == "failure" else []
        if code != 0:
            broke = next((line["began"] for line in reversed(lines) if "began" in line), seeds[0])
            counts["failure"] += 1
            failures.append(f"seed {broke}: {'hung' if code is None else f'the process ended with {code}'}")
            finished |= {broke}
        seeds = [one for one in seeds if one not in finished]
    return counts, failures


def main() -> int:
    """Run the fuzzing and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.model, json.loads(options.worker))
        return 0
    counts, failures = fuzz(options.inputs, options.seed, options.model)
    for failure in failures:
        print(failure)
    print(", ".join(f"{counts[outcome]} {outcome}" for outcome in ("result", "refused", "failure")))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
