"""The command line of petseg-run: its options, and what argparse itself refuses."""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path

from petseg_runtime import __version__


def command_line() -> argparse.ArgumentParser:
    """The parser of all options."""
    parser = argparse.ArgumentParser(
        prog="petseg-run",
        description="Outline the tumour in FDG PET scans. For research, not for diagnosis.",
        epilog="Exit codes: 0 done, 1 a fault of PETSeg, 2 usage, 3 input refused, 4 model refused, 5 backend or "
        "device, 6 too large for memory, 7 some scans of a batch failed, 130 interrupted, 141 nobody reads the output.",
    )
    parser.add_argument(
        "input", nargs="*", type=_path, help="a .nii, .nii.gz, .mha or .nrrd file, a DICOM folder, or a folder of these"
    )
    parser.add_argument(
        "-o", "--output", type=_path, metavar="DIR", help="folder of the results; default beside the input"
    )
    parser.add_argument(
        "-m", "--model", type=_path, metavar="FILE", help=".onnx or .engine file; default the bundled model"
    )
    parser.add_argument(
        "--model-key", type=_path, metavar="FILE", help="public key that the model must be signed by (extra: sign)"
    )
    parser.add_argument("-d", "--device", default="auto", help="auto, cpu, gpu or gpu:N; only auto ever falls back")
    parser.add_argument("--backend", default="auto", help="auto, openvino, onnxruntime or tensorrt")
    parser.add_argument(
        "--output-type",
        action="append",
        choices=["nifti", "dicom-seg", "dicom-sr", "dicom-rtstruct"],
        help="of the mask, nifti by default; may be given several times; the structured report brings its SEG along",
    )
    parser.add_argument(
        "--precision", choices=["auto", "f32", "bf16"], default="auto", help="on the CPU; bf16 only after --self-test"
    )
    parser.add_argument(
        "--self-test", action="store_true", help="compare this machine's backends with the model's own results"
    )
    parser.add_argument("-s", "--statistics", action="store_true", help="write the quantities as JSON")
    parser.add_argument("-p", "--preview", action="store_true", help="write projections with the outline as PNG")
    parser.add_argument("--radiomics", action="store_true", help="write IBSI features as CSV (extra: radiomics)")
    parser.add_argument("--report", action="store_true", help="write a page for the physician as HTML")
    parser.add_argument("--save-probabilities", action="store_true", help="write the probabilities as well")
    parser.add_argument("--unit", choices=["suvbw", "bqml"], help="what a NIfTI, MHA or NRRD file holds")
    parser.add_argument(
        "--series",
        type=_series,
        metavar="WHICH",
        help="of a study's PET series, by its number or a part of its description; needed where several fit",
    )
    parser.add_argument("--threshold", type=float, help="probability from which a voxel is tumour; default the model's")
    parser.add_argument("--overlap", type=float, help="overlap of the windows, 0 to 0.9; default the model's")
    parser.add_argument("--tta", action="store_true", help="average over mirrored copies; four times the work")
    parser.add_argument("--max-memory-gb", type=float, metavar="GB", help="refuse a scan that would take more")
    parser.add_argument("--threads", type=int, help="CPU threads; default all")
    parser.add_argument("--scheduler", metavar="ADDRESS", help="send the scans to this Dask cluster (extra: cluster)")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="leave alone what is done: same input, model, settings")
    again.add_argument(
        "--overwrite", action="store_true", help="write also over files that no run before wrote, or that changed"
    )
    parser.add_argument(
        "--identify", action="store_true", help="write patient and study identifiers of DICOM to the records as well"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON record a scan instead of the table")
    patient = parser.add_argument_group(
        "what the header lacks", "of one patient, for SUV; written to the record of the run"
    )
    patient.add_argument("--patient-weight-kg", type=float, metavar="KG")
    patient.add_argument("--patient-height-m", type=float, metavar="M", help="for lean-mass and body-surface SUV")
    patient.add_argument("--patient-sex", choices=["M", "F", "O"], help="likewise")
    patient.add_argument("--injected-dose-mbq", type=float, metavar="MBQ", help="at the injection")
    patient.add_argument("--half-life-s", type=float, metavar="S", help="of the radionuclide")
    patient.add_argument(
        "--injection-time", type=_moment, metavar="WHEN", help="by the scanner's clock, as 2026-01-31T14:05:00"
    )
    inbox = parser.add_argument_group("inbox", "go on, and do each scan that arrives in the one input folder")
    inbox.add_argument("--watch", action="store_true", help="until SIGTERM; the scan in hand is finished")
    inbox.add_argument(
        "--settle", type=float, default=10.0, metavar="S", help="for so long no file of a scan may change; default 10"
    )
    inbox.add_argument("--bind", default="127.0.0.1", metavar="ADDRESS", help="to listen at; default this machine only")
    inbox.add_argument("--dicom-port", type=int, metavar="PORT", help="take PET images over DICOM (extra: serve)")
    inbox.add_argument("--dicom-title", default="PETSEG", metavar="AET", help="our own title; default PETSEG")
    inbox.add_argument(
        "--dicom-caller", action="append", metavar="AET", help="who may send; may be given several times; default all"
    )
    inbox.add_argument("--send-to", metavar="AET@HOST:PORT", help="send the DICOM results there (extra: serve)")
    inbox.add_argument("--http-port", type=int, metavar="PORT", help="answer over HTTP (extra: serve)")
    inbox.add_argument("--http-token-file", type=_path, metavar="FILE", help="holds the token that HTTP callers bring")
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    loudness.add_argument("-v", "--verbose", action="store_true", help="print the time of each stage")
    parser.add_argument("--version", action="version", version=f"petseg {__version__}")
    return parser


def _path(text: str) -> Path:
    if not text:  # an unset variable of a script: it would stand for the current folder
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def _series(text: str) -> str:
    if not text.strip():  # it would be a part of every description
        raise argparse.ArgumentTypeError("the number or description is empty")
    return text.strip()


def _moment(text: str) -> datetime:
    expected = argparse.ArgumentTypeError(f"{text!r} is not a local date and time such as 2026-01-31T14:05:00")
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise expected from error
    if "T" not in text or moment.tzinfo is not None:
        raise expected
    return moment
