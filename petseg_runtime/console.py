"""What petseg-run shows in a terminal: tables on standard output, notes and the bar on standard error."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from petseg_runtime.outputs.numbers import amount, number

if TYPE_CHECKING:  # a message must not wait for the imports of a run
    from petseg_runtime.commissioning import Record
    from petseg_runtime.quantification import RegionStatistics
    from petseg_runtime.runner import ScanResult

_MAX_LESION_ROWS = 20
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Let the caller know, who has the exit code for it; Rich would end the process with another."""
        raise BrokenPipeError


_MESSAGES = _Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)


def messages_console() -> Console:
    """Where everything but results goes; one for all, so that lines are printed above the bar and not into it."""
    return _MESSAGES


def on_one_line(text: object) -> str:
    """What may hold the name of a file, which may hold line feeds, and escapes that a terminal would obey."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", str(text))


class _Description(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(on_one_line(task.description))


def progress_bar() -> Progress:
    """The bar of a run; nothing where nobody watches."""
    return Progress(
        _Description(),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=_MESSAGES,
        transient=True,
        disable=not _MESSAGES.is_terminal,
    )


def complain(text: str) -> None:
    """One line that says what is wrong."""
    _MESSAGES.print(f"petseg-run: {on_one_line(' '.join(text.split()))}", style="red")


def print_notes(result: ScanResult, name_them: bool, verbose: bool) -> None:
    """What was decided, what to mind, and how long it took."""
    stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in result.timings_s.items())
    for note in (*result.decisions, *result.warnings, *([stages] if verbose else [])):
        _MESSAGES.print(on_one_line(f"{result.label}: {note}" if name_them else note), style="dim")


def print_table(results: Sequence[ScanResult], summary: Sequence[Path]) -> None:
    """The quantities of every scan, and the files written."""
    table = Table(title="Tumour", title_justify="left")
    for heading in ("scan", "lesion", "MTV ml", "SUVmax", "SUVpeak", "SUVmean", "TLG g", "seconds"):
        table.add_column(heading, justify="left" if heading == "scan" else "right", overflow="fold")
    for result in results:
        statistics = result.statistics
        rows = [("none" if not statistics.lesions else f"all {statistics.lesion_count}", statistics.tumour)]
        if statistics.lesion_count > 1:
            rows += [(str(lesion.label), lesion) for lesion in statistics.lesions[:_MAX_LESION_ROWS]]
        for row, (lesion, region) in enumerate(rows):
            table.add_row(
                on_one_line(result.label) if row == 0 else "",
                lesion,
                amount(region.mtv_ml),
                *_uptake(region, statistics.unit),
                f"{result.seconds:.1f}" if row == 0 else "",
            )
    output = _output()
    output.print(table)
    for result in results:
        if result.statistics.lesion_count > _MAX_LESION_ROWS:
            output.print(
                f"{on_one_line(result.label)}: listed are the {_MAX_LESION_ROWS} largest of "
                f"{result.statistics.lesion_count} lesions."
            )
    for result in results:
        for file in result.files:
            output.print(f"{'kept' if result.recalled else 'wrote'} {on_one_line(file)}")
    for file in summary:
        output.print(f"wrote {on_one_line(file)}")


def _uptake(region: RegionStatistics, unit: str) -> list[str]:
    if region.tlg_g is None:
        return ["in Bq/ml" if unit == "bqml" else "unit unknown", "–", "–", "–"]
    return [*(number(value, 2) for value in (region.suv_max, region.suv_peak, region.suv_mean)), amount(region.tlg_g)]


def print_self_test(record: Record, path: Path) -> None:
    """How each backend did, and where the record is."""
    table = Table(title=f"Self-test on {record.machine}", title_justify="left")
    for heading in ("backend", "max |Δp|", "mean |Δp|", "DSC", ""):
        table.add_column(heading, justify="left" if heading in ("backend", "") else "right")
    for outcome in record.outcomes:
        numbers = (f"{outcome.largest_difference:.1e}", f"{outcome.mean_difference:.1e}", f"{outcome.dsc:.4f}")
        table.add_row(outcome.name, *numbers, "passed" if outcome.passed else "FAILED")
    output = _output()
    output.print(table)
    output.print(f"wrote {on_one_line(path)}")


def _output() -> Console:
    return _Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
