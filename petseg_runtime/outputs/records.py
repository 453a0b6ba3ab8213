"""The JSON files of a run: its quantities, and what it was done with."""

from __future__ import annotations

import csv
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from petseg_runtime import __version__
from petseg_runtime.outputs.files import whole_file
from petseg_runtime.quantification import LesionStatistics, RegionStatistics, ScanStatistics
from petseg_runtime.segmenter import Segmenter
from petseg_runtime.volume import Unit


def statistics_record(statistics: ScanStatistics) -> dict[str, Any]:
    """Content of `_stats.json`. The `suv_*` and `tlg_g` fields are null unless the unit is SUVbw."""
    note = {"suvbw": "SUVbw, g/ml", "bqml": "Bq/ml, not SUV", "unknown": "unit unknown: no SUV quantities"}
    return {"unit": statistics.unit.value, "unit_note": note[statistics.unit.value]} | {
        key: value for key, value in asdict(statistics).items() if key != "unit"
    }


def statistics_from(record: dict[str, Any]) -> ScanStatistics:
    """The inverse of `statistics_record`.

    Raises
    ------
    KeyError, TypeError, ValueError : if the record is of another version.
    """
    fields = {key: value for key, value in record.items() if key != "unit_note"}
    lesions = tuple(
        LesionStatistics(**{**lesion, "centroid_lps_mm": tuple(lesion["centroid_lps_mm"])})
        for lesion in fields["lesions"]
    )
    tumour = RegionStatistics(**fields["tumour"])
    return ScanStatistics(**{**fields, "unit": Unit(fields["unit"]), "tumour": tumour, "lesions": lesions})


def summary_row(
    name: str, identity: dict[str, str], statistics: ScanStatistics, warnings: Sequence[str]
) -> dict[str, Any]:
    """One row of the CSV of many scans: whose it is, where that was asked for, and the quantities of the tumour."""
    return {
        "scan": name,
        **identity,
        "unit": statistics.unit.value,
        "lesions": statistics.lesion_count,
        "dmax_mm": statistics.dmax_mm,
        **asdict(statistics.tumour),
        "warnings": " ".join(warnings),
        "error": "",
    }


def write_csv(rows: Sequence[dict[str, Any]], failures: Sequence[tuple[str, Exception]], path: Path) -> None:
    """Write the rows of `summary_row`, and one for each scan that was refused, with the reason."""
    refused = [{"scan": name, "error": str(error)} for name, error in failures]
    columns = list(dict.fromkeys(key for row in (*rows, *refused) for key in row)) or ["scan", "error"]
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8", errors="replace") as stream:
        writer = csv.DictWriter(stream, columns, restval="")
        writer.writeheader()
        writer.writerows([{key: _plain(value) for key, value in row.items()} for row in (*rows, *refused)])


def _plain(value: Any) -> Any:
    """A cell that a spreadsheet takes for text or a number, never for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def run_record(
    segmenter: Segmenter,
    key: str,
    input_sha256: str,
    statistics: ScanStatistics,
    settings: dict[str, Any],
    timings_s: dict[str, float],
    outputs: Sequence[str],
    decisions: Sequence[str],
    warnings: Sequence[str],
) -> dict[str, Any]:
    """Content of `_run.json`: what was run on what, how, and what was decided; no name or date of a patient."""
    return {
        "petseg_version": __version__,
        "run_key": key,
        "input_sha256": input_sha256,
        "python_version": platform.python_version(),
        "model": {
            "name": segmenter.manifest.name,
            "version": segmenter.manifest.version,
            "sha256": segmenter.model_sha256,
        },
        "backend": segmenter.backend_name,
        "device": segmenter.device,
        "settings": settings,
        "timings_s": timings_s,
        "outputs": list(outputs),
        "statistics": statistics_record(statistics),
        "decisions": [segmenter.choice, *decisions],
        "warnings": list(warnings),
        "intended_use": "research",
    }
