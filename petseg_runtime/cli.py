"""petseg-run: parse, call, map errors to exit codes. The only place of the runtime that prints.

Results go to standard output (a table, or JSON lines with --json), everything else to standard error.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import traceback
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petseg_runtime import __version__
from petseg_runtime.errors import BackendError, BatchError, MemoryBudgetError, PetsegError, UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from petseg_runtime.io.scans import Scan
    from petseg_runtime.io.suv_attributes import SuvOverrides
    from petseg_runtime.quantification import RegionStatistics
    from petseg_runtime.runner import RunSettings, ScanResult
    from petseg_runtime.segmenter import Segmenter

_MAX_LESION_ROWS = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run petseg-run; returns its exit code (see `petseg_runtime.errors`)."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.self_test == bool(options.input):
        parser.error("--self-test takes no input" if options.input else "the following arguments are required: input")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show is no reason to fail
            stream.reconfigure(errors="replace")
    from rich.console import Console

    messages = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
    try:
        if options.self_test:
            _self_test(options, messages)
        else:
            _run(options, messages)
    except PetsegError as error:
        _complain(messages, str(error))
        if options.json and not isinstance(error, BatchError):  # a batch has printed a record for each scan
            print(json.dumps({"error": str(error), "exit_code": error.exit_code}))
        return error.exit_code
    except MemoryError:
        _complain(messages, "The scan does not fit into the memory of this machine.")
        return MemoryBudgetError.exit_code
    except KeyboardInterrupt:
        _complain(messages, "Interrupted; finished scans are kept.")
        return 130
    except BrokenPipeError:
        # The reader of our output has gone, and the work is not done. Keep the interpreter from failing as it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:  # nobody thought of it: one line, and the trace for those who ask
        _complain(messages, str(_unexpected(error)))
        if options.verbose:
            messages.print(traceback.format_exc())
        return PetsegError.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="petseg-run",
        description="Outline the tumour in FDG PET scans. For research, not for diagnosis.",
        epilog="Exit codes: 0 done, 1 a fault of PETSeg, 2 usage, 3 input refused, 4 model refused, 5 backend or "
        "device, 6 too large for memory, 7 some scans of a batch failed.",
    )
    parser.add_argument(
        "input", nargs="*", type=Path, help="a .nii, .nii.gz, .mha or .nrrd file, a DICOM folder, or a folder of these"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="folder of the results; default beside the input"
    )
    parser.add_argument(
        "-m", "--model", type=Path, metavar="FILE", help=".onnx or .engine file; default the bundled model"
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
    parser.add_argument("--threshold", type=float, help="probability from which a voxel is tumour; default the model's")
    parser.add_argument("--overlap", type=float, help="overlap of the windows, 0 to 0.9; default the model's")
    parser.add_argument("--tta", action="store_true", help="average over mirrored copies; four times the work")
    parser.add_argument("--threads", type=int, help="CPU threads; default all")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="leave alone what is done: same input, model, settings")
    again.add_argument("--overwrite", action="store_true", help="do every scan again, which is the default")
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
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    loudness.add_argument("-v", "--verbose", action="store_true", help="print the time of each stage")
    parser.add_argument("--version", action="version", version=f"petseg {__version__}")
    return parser


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if "T" not in text or moment.tzinfo is not None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a local date and time such as 2026-01-31T14:05:00")
    return moment


def _overrides(options: argparse.Namespace) -> SuvOverrides:
    from petseg_runtime.io.suv_attributes import SuvOverrides

    return SuvOverrides(
        weight_kg=options.patient_weight_kg,
        height_m=options.patient_height_m,
        sex=options.patient_sex,
        dose_mbq=options.injected_dose_mbq,
        injection=options.injection_time,
        half_life_s=options.half_life_s,
    )


def _run(options: argparse.Namespace, messages: Console) -> None:
    # Imported here, so that --help and usage errors answer at once.
    import SimpleITK as sitk

    from petseg_runtime.outputs.files import prepare_folder
    from petseg_runtime.runner import RunSettings, write_summary
    from petseg_runtime.segmenter import Segmenter
    from petseg_runtime.volume import Unit

    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's warnings hold paths; what matters is checked and said
    settings = RunSettings(
        output=options.output,
        unit=Unit(options.unit or "unknown"),
        overrides=_overrides(options),
        output_types=tuple(dict.fromkeys(options.output_type or ["nifti"])),
        statistics=options.statistics,
        preview=options.preview,
        report=options.report,
        radiomics=options.radiomics,
        save_probabilities=options.save_probabilities,
        threshold=options.threshold,
        overlap=options.overlap,
        tta=options.tta,
    )
    scans, failures = _find(options, settings, messages)
    wanted = len(scans) + len(failures)
    if settings.overrides.options and wanted > 1:
        raise UsageError(
            f"{', '.join(settings.overrides.options)} is of one patient, but {wanted} scans were given. Pass one scan."
        )
    if settings.output is not None:
        prepare_folder(settings.output)
    segmenter = Segmenter(options.model, options.device, options.backend, options.threads, options.precision)
    results = _run_scans(scans, segmenter, settings, options, messages, failures)
    summary: tuple[Path, ...] = ()
    if wanted > 1 and (settings.statistics or settings.report):
        summary = write_summary(results, failures, _summary_folder(options, settings), settings.report)
    if results and not options.json and not options.quiet:
        _print_table(results, summary)
    if failures:
        raise BatchError(f"{len(failures)} of {wanted} scans failed{'; the others are done' if results else ''}.")


def _self_test(options: argparse.Namespace, messages: Console) -> None:
    """Test every backend, keep the record, and fail if one did."""
    from rich.console import Console
    from rich.table import Table

    from petseg_runtime.outputs.files import prepare_folder, write_json
    from petseg_runtime.self_test import keep, self_test

    record, passed_over = self_test(options.model, options.threads)
    for reason in passed_over:
        messages.print(reason, style="dim")
    path = keep(record)
    if options.output is not None:
        prepare_folder(options.output)
        path = options.output / "petseg_commissioning.json"
        write_json(record.to_json(), path)
    if options.json:
        print(json.dumps(record.to_json()))
    elif not options.quiet:
        table = Table(title=f"Self-test on {record.machine}", title_justify="left")
        for heading in ("backend", "max |Δp|", "mean |Δp|", "DSC", ""):
            table.add_column(heading, justify="left" if heading in ("backend", "") else "right")
        for outcome in record.outcomes:
            numbers = (f"{outcome.largest_difference:.1e}", f"{outcome.mean_difference:.1e}", f"{outcome.dsc:.4f}")
            table.add_row(outcome.name, *numbers, "passed" if outcome.passed else "FAILED")
        output = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
        output.print(table)
        output.print(f"wrote {path}")
    failed = [outcome.name for outcome in record.outcomes if not outcome.passed]
    if failed:
        raise BackendError(f"The self-test failed for {'; '.join(failed)}: refused from now on on this machine.")


def _summary_folder(options: argparse.Namespace, settings: RunSettings) -> Path:
    """Where the CSV and the index of a batch go: the output folder, or else the first input's own."""
    first: Path = options.input[0]
    return settings.output or (first if first.is_dir() else first.parent)


Failures = list[tuple[str, PetsegError]]


def _find(options: argparse.Namespace, settings: RunSettings, messages: Console) -> tuple[list[Scan], Failures]:
    """The scans of all inputs, under names that do not collide, and the inputs that are refused."""
    from petseg_runtime.io.scans import find_scans, with_unique_names

    scans: list[Scan] = []
    failures: Failures = []
    for path in options.input:
        try:
            scans += find_scans(path)
        except PetsegError as error:
            if len(options.input) == 1:
                raise
            _report_failure(path.name, error, options, messages)
            failures.append((path.name, error))
    return with_unique_names(scans, lambda scan: settings.folder_for(scan).resolve()), failures


def _run_scans(
    scans: Sequence[Scan],
    segmenter: Segmenter,
    settings: RunSettings,
    options: argparse.Namespace,
    messages: Console,
    failures: Failures,
) -> list[ScanResult]:
    """Run each scan; one that fails is reported, added to `failures` and passed over, unless it is the only one."""
    from petseg_runtime.outputs.files import remove_leavings
    from petseg_runtime.runner import finished, run_scan

    for folder in {settings.folder_for(scan) for scan in scans} if options.resume else ():
        remove_leavings(folder)
    results: list[ScanResult] = []
    with _progress_bar(messages, visible=not options.quiet) as bar:
        task = bar.add_task("", total=len(scans))
        for number, scan in enumerate(scans):

            def show(done: int, windows: int, number: int = number) -> None:
                bar.update(task, completed=number + done / windows)

            bar.update(task, description=scan.name, completed=number)
            try:
                done = finished(scan, segmenter, settings) if options.resume else None
                result = done or run_scan(scan, segmenter, settings, show)
            except (BrokenPipeError, KeyboardInterrupt):
                raise
            except Exception as error:  # whatever a scan does, the scans after it are done
                if len(options.input) == len(scans) == 1:
                    raise
                known = error if isinstance(error, PetsegError) else _unexpected(error)
                name = str(scan.folder / scan.name)
                _report_failure(name, known, options, messages)
                failures.append((name, known))
                continue
            if not results and not options.quiet:
                messages.print(segmenter.choice, style="dim")
            results.append(result)
            if options.json:
                print(json.dumps(_json_record(result)), flush=True)
            if not options.quiet:
                _print_notes(result, len(scans) > 1, options.verbose, messages)
        bar.update(task, completed=len(scans))
    return results


def _unexpected(error: Exception) -> PetsegError:
    if isinstance(error, MemoryError):
        return MemoryBudgetError("The scan does not fit into the memory of this machine.")
    return PetsegError(f"Unexpected {type(error).__name__}: please report it, with what --verbose prints.")


def _report_failure(name: str, error: PetsegError, options: argparse.Namespace, messages: Console) -> None:
    _complain(messages, f"{name}: {error}")
    if options.json:
        print(json.dumps({"scan": name, "error": str(error), "exit_code": error.exit_code}), flush=True)


def _progress_bar(messages: Console, visible: bool) -> Progress:
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=messages,
        transient=True,
        disable=not (visible and messages.is_terminal),
    )


def _complain(messages: Console, text: str) -> None:
    messages.print(f"petseg-run: {' '.join(text.split())}", style="red")


def _print_notes(result: ScanResult, name_them: bool, verbose: bool, messages: Console) -> None:
    stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in result.timings_s.items())
    for note in (*result.decisions, *result.warnings, *([stages] if verbose else [])):
        messages.print(f"{result.label}: {note}" if name_them else note, style="dim")


def _print_table(results: Sequence[ScanResult], summary: Sequence[Path]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Tumour", title_justify="left")
    for heading in ("scan", "lesion", "MTV ml", "SUVmax", "SUVpeak", "SUVmean", "TLG g", "seconds"):
        table.add_column(heading, justify="left" if heading == "scan" else "right", overflow="fold")
    for result in results:
        statistics = result.statistics
        rows = [("none" if not statistics.lesions else f"all {statistics.lesion_count}", statistics.tumour)]
        if statistics.lesion_count > 1:
            rows += [(str(lesion.label), lesion) for lesion in statistics.lesions[:_MAX_LESION_ROWS]]
        for number, (lesion, region) in enumerate(rows):
            table.add_row(
                result.label if number == 0 else "",
                lesion,
                f"{region.mtv_ml:.1f}",
                *_uptake(region),
                f"{sum(result.timings_s.values()):.1f}" if number == 0 else "",
            )
    output = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    output.print(table)
    for file in (*(file for result in results for file in result.files), *summary):
        output.print(f"wrote {file}")


def _uptake(region: RegionStatistics) -> list[str]:
    if region.tlg_g is None:
        return ["unit unknown", "–", "–", "–"]
    values = (region.suv_max, region.suv_peak, region.suv_mean, region.tlg_g)
    return ["–" if value is None else f"{value:.2f}" for value in values]


def _json_record(result: ScanResult) -> dict[str, Any]:
    from petseg_runtime.outputs.records import statistics_record

    return {
        "scan": result.label,
        "statistics": statistics_record(result.statistics),
        "files": [str(file) for file in result.files],
        "timings_s": result.timings_s,
        "decisions": list(result.decisions),
        "warnings": list(result.warnings),
    }


if __name__ == "__main__":
    sys.exit(main())
