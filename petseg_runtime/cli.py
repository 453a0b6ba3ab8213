"""petseg-run: parse, call, map errors to exit codes. It and `console` are the only places of the runtime that print.

Results go to standard output (a table, or JSON lines with --json), everything else to standard error.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from threading import Event
from time import monotonic
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from petseg_runtime.arguments import command_line
from petseg_runtime.errors import (
    BackendError,
    BatchError,
    PetsegError,
    UsageError,
    as_petseg_error,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from petseg_runtime.io.scans import Scan
    from petseg_runtime.io.suv_attributes import SuvOverrides
    from petseg_runtime.runner import Report, RunSettings, ScanResult
    from petseg_runtime.segmenter import Segmenter


def command() -> None:
    """petseg-run itself: `main`, and after a success an end at once.

    The system takes back networks and buffers faster than the libraries free them: a fifth of a second.
    """
    # OpenVINO does without its converter of models, which takes as long to import as the rest of it.
    sys.modules["openvino.tools.ovc"] = None  # type: ignore[assignment]
    code = main()
    if code:
        sys.exit(code)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    os._exit(0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run petseg-run; returns its exit code (see `petseg_runtime.errors`)."""
    parser = command_line()
    options = parser.parse_args(arguments)
    _check(options, parser)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show is no reason to fail
            stream.reconfigure(errors="replace")
    try:
        if options.self_test:
            _self_test(options)
        else:
            with _clean_end():
                _run(options)
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except PetsegError as error:
        _complain(str(error))
        if options.json and not isinstance(error, BatchError):  # a batch has printed a record for each scan
            print(json.dumps({"error": str(error), "exit_code": error.exit_code}))
        return error.exit_code
    except KeyboardInterrupt as stop:
        _complain("Interrupted; finished scans are kept.")
        return 128 + (signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT)
    except BrokenPipeError:
        _give_up_unwritable_output()  # its reader has gone, and the work is not done
        return 141
    except Exception as error:  # one line, and the trace for those who ask
        known = as_petseg_error(error)
        _complain(str(known))
        if options.json:
            with suppress(OSError):  # that may be the fault
                print(json.dumps({"error": str(known), "exit_code": known.exit_code}))
        if options.verbose:
            _messages().print(traceback.format_exc())
        _give_up_unwritable_output()
        return known.exit_code
    return 0


# Schedulers send a signal to a process and to its group at once; a second one after this means that the first was lost.
_SECOND_SIGNAL_S = 2.0


class _Terminated(KeyboardInterrupt):
    """SIGTERM, of a scheduler or a container that is stopped."""


@contextmanager
def _clean_end() -> Iterator[None]:
    """Have SIGTERM end a run as Ctrl-C does, with nothing half-written; a program that embeds us keeps its own."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return

    first: list[float] = []

    def stop(_: int, frame: FrameType | None) -> NoReturn:
        # What is raised inside the import system is lost there, and leaves its lock held. Where the first signal was
        # lost the second must not be. What is left then, the next run removes.
        if _is_importing(frame) or (first and monotonic() - first[0] > _SECOND_SIGNAL_S):
            os._exit(128 + signal.SIGTERM)
        first.append(monotonic())
        raise _Terminated

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code is not main.__code__:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _give_up_unwritable_output() -> None:
    """Keep the interpreter from failing at its end, when it flushes what cannot be written."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _messages() -> Console:
    from petseg_runtime.console import messages_console  # a tenth of a second, and a quiet run has no use for it

    return messages_console()


def _complain(text: str) -> None:
    from petseg_runtime.console import complain

    with suppress(OSError):  # the exit code still says it
        complain(text)


# What the self-test looks at, and what only an inbox does.
_OF_SELF_TEST = {"self_test", "model", "threads", "output", "json", "quiet", "verbose"}
_OF_WATCH = {"settle", "bind", "dicom_port", "dicom_title", "dicom_caller", "send_to", "http_port", "http_token_file"}


def _check(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse a system that PETSeg does not run on, and options that do not go together."""
    if sys.platform == "win32":  # which locks files and syncs folders otherwise than what is written here
        parser.error("PETSeg runs on Linux: on Windows, in its Subsystem for Linux (WSL) or in Docker")
    if options.self_test == bool(options.input):
        parser.error("--self-test takes no input" if options.input else "the following arguments are required: input")
    given = {name for name, value in vars(options).items() if value != parser.get_default(name)} - {"input"}
    if options.self_test and (unused := given - _OF_SELF_TEST):
        parser.error(f"--self-test tries every backend of this machine: leave out {_spelled(unused)}")
    if not options.watch and (unused := given & _OF_WATCH):
        parser.error(f"{_spelled(unused)} {'is' if len(unused) == 1 else 'are'} for an inbox: add --watch")
    if options.radiomics and options.max_memory_gb is not None:
        parser.error("--radiomics takes what memory it needs (mirp): leave out --max-memory-gb")


def _spelled(names: Iterable[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in sorted(names))


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


def _load(options: argparse.Namespace) -> Segmenter:
    from petseg_runtime.segmenter import Segmenter, user_cache

    return Segmenter(**_model(options), cache=user_cache())


def _model(options: argparse.Namespace) -> dict[str, Any]:
    """What a `Segmenter` is made of, here and on the workers of a cluster."""
    return {
        "model": options.model,
        "device": options.device,
        "backend": options.backend,
        "threads": options.threads,
        "precision": options.precision,
        "max_memory_gb": options.max_memory_gb,
        "key": options.model_key,
    }


def _run(options: argparse.Namespace) -> None:
    if options.scheduler is not None:  # workers may have been started in any folder
        options.input = [path.absolute() for path in options.input]
        for name in ("output", "model", "model_key"):
            path = getattr(options, name)
            setattr(options, name, path and path.absolute())
        _run_with(None, options)
        return
    # Imported here, so that --help and usage errors answer at once. What reading needs comes first and by itself: two
    # threads that import share one core. The model then loads while the scans are found and the first one is read.
    import_module("petseg_runtime.io.scans")
    if not all(path.is_absolute() for path in (*options.input, options.output or Path("/"))):
        try:
            Path.cwd()
        except FileNotFoundError as error:
            raise UsageError("The current folder was removed. Change to another.") from error
    with ThreadPoolExecutor(1) as loader:
        loading = loader.submit(_load, options)
        if not options.quiet:
            loader.submit(_messages)  # imported before the first window is done
        _run_with(loading, options)


def _settings(options: argparse.Namespace) -> RunSettings:
    from petseg_runtime.runner import RunSettings
    from petseg_runtime.volume import Unit

    return RunSettings(
        output=options.output,
        unit=Unit(options.unit or "unknown"),
        overrides=_overrides(options),
        series=options.series or "",
        output_types=tuple(dict.fromkeys(options.output_type or ["nifti"])),
        statistics=options.statistics,
        preview=options.preview,
        report=options.report,
        radiomics=options.radiomics,
        save_probabilities=options.save_probabilities,
        threshold=options.threshold,
        overlap=options.overlap,
        tta=options.tta,
        identify=options.identify,
        overwrite=options.overwrite,
    )


def _run_with(loading: Future[Segmenter] | None, options: argparse.Namespace) -> None:
    import SimpleITK as sitk

    from petseg_runtime.outputs.files import check_inputs_stay, prepare_folder
    from petseg_runtime.runner import remove_summary, results_before, summary_files, write_summary

    # Warnings of libraries hold paths and what files and peers say; what matters is checked and said.
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    for package in ("pydicom", "pynetdicom"):
        warnings.filterwarnings("ignore", module=package)
    settings = _settings(options)
    if options.watch:
        if loading is None:
            raise UsageError("--watch works on this machine. Leave out --scheduler.")
        _watch(loading, settings, options)
        return
    scans, failures = _find(options, settings)
    wanted = len(scans) + len(failures)
    if settings.overrides.options and wanted > 1:
        raise UsageError(
            f"{', '.join(settings.overrides.options)} is of one patient, but {wanted} scans were given. Pass one scan."
        )
    to_write = (path for scan in scans for path in (*settings.results_of(scan), *results_before(scan, settings)))
    check_inputs_stay(to_write, (*options.input, *(file for scan in scans for file in scan.files)))
    if settings.output is not None:
        prepare_folder(settings.output)
    in_folder = any(path.is_dir() for path in options.input) and any(scan.image is not None for scan in scans)
    folder = _summary_folder(options, settings) if wanted > 1 or in_folder else None
    results: list[ScanResult] = []
    summary: tuple[Path, ...] = ()
    if folder is None:
        _run_scans(scans, loading, settings, options, results, failures)
        before = [file.name for file in summary_files(settings.folder_for(scans[0])) if file.exists()] if scans else []
        if before and not options.quiet:
            of = "are of a run before: they do" if len(before) > 1 else "is of a run before: it does"
            _messages().print(f"{' and '.join(before)} in the output folder {of} not hold this result.")
    else:
        prepare_folder(folder)
        remove_summary(folder, settings.overwrite)
        try:
            _run_scans(scans, loading, settings, options, results, failures)
        finally:  # of what is done, also if somebody interrupts the rest
            if results or failures:
                summary = write_summary(results, failures, folder, settings.report)
    if results and not options.json and not options.quiet:
        from petseg_runtime.console import print_table

        print_table(results, summary)
    if failures:
        raise BatchError(f"{len(failures)} of {wanted} scans failed{'; the others are done' if results else ''}.")


def _watch(loading: Future[Segmenter], settings: RunSettings, options: argparse.Namespace) -> None:
    """Do what arrives in the inbox until SIGTERM or Ctrl-C; the scan in hand is finished."""
    from petseg_runtime.console import on_one_line, print_notes
    from petseg_runtime.inbox import watch

    if len(options.input) != 1 or settings.overrides.options:
        raise UsageError("--watch takes one folder, and nothing that is said of one patient.")
    if settings.output is None:
        raise UsageError("--watch needs a folder for the results. Pass --output.")
    if not options.settle >= 0:
        raise UsageError(f"--settle is {options.settle}, expected at least 0 seconds.")
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    def report(scan: Scan, outcome: ScanResult | PetsegError) -> None:
        if isinstance(outcome, PetsegError):
            _report_failure(scan.label, outcome, options)
            return
        if options.json:
            print(json.dumps(_json_record(outcome)), flush=True)
        if not options.quiet:
            print_notes(outcome, True, options.verbose)
            _messages().print(f"{on_one_line(outcome.label)}: done in {outcome.seconds:.1f} s")

    with ExitStack() as services:
        segmenter = loading.result()
        if not options.quiet:
            _messages().print(segmenter.choice, style="dim")
        deliver = _serve(services, segmenter, settings, options)
        watch(options.input[0], segmenter, settings, stop, report, options.settle, deliver, options.send_to or "")


def _serve(
    services: ExitStack, segmenter: Segmenter, settings: RunSettings, options: argparse.Namespace
) -> Callable[[ScanResult], None] | None:
    """Start the services that are asked for; returns what sends a result on."""
    if options.dicom_port is None and options.http_port is None and options.send_to is None:
        return None
    try:
        from petseg_runtime.serve.dicom import DicomNode, Outbox, checked_title, dicom_listener
        from petseg_runtime.serve.http import application, http_service, read_token
    except ImportError as error:
        raise UsageError("DICOM and HTTP need an extra: pip install 'petseg[serve]'.") from error

    inbox, title = options.input[0], checked_title(options.dicom_title)
    node = DicomNode.parse(options.send_to) if options.send_to is not None else None
    if node is not None and not settings.wants_dicom:
        raise UsageError("--send-to has nothing to send. Add --output-type dicom-seg, dicom-sr or dicom-rtstruct.")
    if options.dicom_port is not None:
        listener = dicom_listener(inbox, title, options.bind, options.dicom_port, options.dicom_caller or ())
        port = services.enter_context(listener)
        _announce(f"Listens for DICOM as {title} at {options.bind}, port {port}.", options)
    if options.http_port is not None:
        if options.http_token_file is None:
            raise UsageError("--http-port needs --http-token-file, a file with the token that callers bring.")
        manifest = segmenter.manifest
        model = {"name": manifest.name, "version": manifest.version, "sha256": segmenter.model_sha256}
        app = application(inbox, options.output, read_token(options.http_token_file), model)
        port = services.enter_context(http_service(app, options.bind, options.http_port))
        _announce(f"Answers HTTP at {options.bind}, port {port}.", options)
    if node is None:
        return None
    outbox = Outbox(node, title)
    return lambda result: outbox.send(result.files)


def _announce(line: str, options: argparse.Namespace) -> None:
    if not options.quiet:
        _messages().print(line, style="dim")


def _self_test(options: argparse.Namespace) -> None:
    """Test every backend, keep the record, and fail if one did."""
    from petseg_runtime.console import print_self_test
    from petseg_runtime.outputs.files import prepare_folder
    from petseg_runtime.self_test import keep, self_test, write_record

    record, passed_over = self_test(options.model, options.threads)
    for reason in passed_over if not options.quiet else ():
        _messages().print(reason, style="dim")
    path = keep(record)
    if options.output is not None:
        prepare_folder(options.output)
        path = options.output / "petseg_commissioning.json"
        write_record(record, path)
    if options.json:
        print(json.dumps(record.to_json()))
    elif not options.quiet:
        print_self_test(record, path)
    failed = [outcome.name for outcome in record.outcomes if not outcome.passed]
    if failed:
        raise BackendError(f"The self-test failed for {'; '.join(failed)}: refused from now on on this machine.")


def _summary_folder(options: argparse.Namespace, settings: RunSettings) -> Path | None:
    """Where the CSV and the index of a batch go: the output folder, or else the own of the first input that exists."""
    own = (path if path.is_dir() else path.parent for path in options.input if path.exists())
    return settings.output or next(own, None)


Failures = list[tuple[str, PetsegError]]


def _find(options: argparse.Namespace, settings: RunSettings) -> tuple[list[Scan], Failures]:
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
            _report_failure(str(path), error, options)
            failures.append((str(path), error))
    return with_unique_names(scans, lambda scan: settings.folder_for(scan).resolve()), failures


def _run_scans(
    scans: Sequence[Scan],
    loading: Future[Segmenter] | None,
    settings: RunSettings,
    options: argparse.Namespace,
    results: list[ScanResult],
    failures: Failures,
) -> None:
    """Run each scan and add its result; one that fails is reported, added to `failures` and passed over.

    Unless it is the only one: then the error is raised.

    They go to the cluster where no segmenter loads here.
    """
    from petseg_runtime.outputs.files import remove_leavings
    from petseg_runtime.runner import REPLACED, run_scans

    for folder in {settings.folder_for(scan) for scan in scans}:
        remove_leavings(folder)
    with ExitStack() as stack:
        show = None if options.quiet else _bar(scans, stack)
        outcomes = (
            run_scans(scans, loading, settings, options.resume, show, ahead=options.max_memory_gb is None)
            if loading is not None
            else _on_cluster(scans, settings, options)
        )
        if show is not None and loading is None:  # nothing is heard of a cluster until the first scan is done
            show(0, 0, 1)
        # Closed here if a scan's error ends it. The garbage collector might close it while a thread starts, and then
        # wait for the reader's end, under the lock that this end needs.
        stack.enter_context(closing(outcomes))
        for number, (scan, result) in enumerate(outcomes):
            if isinstance(result, Exception):
                if isinstance(result, BrokenPipeError):
                    raise result
                known = as_petseg_error(result)
                name = scan.label
                failures.append((name, known))
                if len(options.input) == len(scans) == 1:
                    raise result
                _report_failure(name, known, options)
            else:
                results.append(result)
                if options.json:
                    print(json.dumps(_json_record(result)), flush=True)
                if options.quiet and REPLACED in result.warnings:
                    _complain(f"{result.label}: {REPLACED}")
                if not options.quiet:
                    _print_notes(result, loading if len(results) == 1 else None, len(scans) > 1, options.verbose)
            if show is not None:
                show(number, 1, 1)


def _bar(scans: Sequence[Scan], stack: ExitStack) -> Report:
    """Progress on a bar, drawn from the first news on: what draws it is imported while the first scan is read."""
    bar: Progress | None = None

    def show(number: int, done: int, windows: int) -> None:
        nonlocal bar
        if bar is None:
            from petseg_runtime.console import progress_bar

            bar = stack.enter_context(progress_bar())
            bar.add_task("", total=len(scans))
        bar.update(bar.task_ids[0], description=scans[number].name, completed=number + done / windows)

    return show


def _print_notes(result: ScanResult, loaded: Future[Segmenter] | None, name_them: bool, verbose: bool) -> None:
    from petseg_runtime.console import print_notes

    if loaded is not None:
        _messages().print(loaded.result().choice, style="dim")
    print_notes(result, name_them, verbose)


def _on_cluster(
    scans: Sequence[Scan], settings: RunSettings, options: argparse.Namespace
) -> Generator[tuple[Scan, ScanResult | Exception], None, None]:
    from petseg_runtime.cluster import ModelChoice, run_scans_on_cluster
    from petseg_runtime.segmenter import model_digest

    model = ModelChoice(model_digest(options.model), **_model(options))
    return run_scans_on_cluster(options.scheduler, scans, model, settings, options.resume)


def _report_failure(name: str, error: PetsegError, options: argparse.Namespace) -> None:
    _complain(f"{name}: {error}")
    if options.json:
        print(json.dumps({"scan": name, "error": str(error), "exit_code": error.exit_code}), flush=True)


def _json_record(result: ScanResult) -> dict[str, Any]:
    from petseg_runtime.outputs.records import statistics_record

    return {
        "scan": result.label,
        **({"identity": result.identity} if result.identity else {}),
        "statistics": statistics_record(result.statistics),
        "files": [str(file) for file in result.files],
        "timings_s": result.timings_s,
        "decisions": list(result.decisions),
        "warnings": list(result.warnings),
    }


if __name__ == "__main__":
    command()
