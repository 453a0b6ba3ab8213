"""A short run of benchmarks/fuzz.py: broken inputs end in a result or in one line."""

from __future__ import annotations

import importlib.util
from pathlib import Path

FUZZ = Path(__file__).parents[2] / "benchmarks/fuzz.py"


def test_broken_inputs_end_in_a_result_or_a_refusal(known_model: Path) -> None:
    specification = importlib.util.spec_from_file_location("fuzz", FUZZ)
    assert specification is not None
    assert specification.loader is not None
    fuzz = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(fuzz)
    counts, failures = fuzz.fuzz(60, 5000, known_model)
    assert failures == []
    assert counts["refused"] > 10
    assert counts["result"] > 3
    assert counts.total() == 60
