"""The JSON files of a run: its quantities, and what it was done with."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from petseg_runtime import __version__
from petseg_runtime.quantification import ScanStatistics
from petseg_runtime.segmenter import Segmenter


def statistics_record(statistics: ScanStatistics) -> dict[str, Any]:
    """Content of `_stats.json`. The `suv_*` and `tlg_g` fields are null unless the unit is SUVbw."""
    note = {"suvbw": "SUVbw, g/ml", "bqml": "Bq/ml, not SUV", "unknown": "unit unknown: no SUV quantities"}
    return {"unit": statistics.unit.value, "unit_note": note[statistics.unit.value]} | {
        key: value for key, value in asdict(statistics).items() if key != "unit"
    }


def run_record(
    segmenter: Segmenter,
    settings: dict[str, Any],
    timings_s: dict[str, float],
    decisions: Sequence[str],
    warnings: Sequence[str],
) -> dict[str, Any]:
    """Content of `_run.json`: what was run on what, how, and what was decided; nothing of the patient."""
    return {
        "petseg_version": __version__,
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
        "decisions": [segmenter.choice, *decisions],
        "warnings": list(warnings),
        "intended_use": "research",
    }
