"""A short run of benchmarks/fuzz.py: broken inputs end in a result or in one line."""

from __future__ import annotations

from pathlib import Path

from conftest import benchmark


def test_broken_inputs_end_in_a_result_or_a_refusal(known_model: Path) -> None:
    counts, failures = benchmark("fuzz").fuzz(60, 5000, known_model)
    assert failures == []
    assert counts["refused"] > 10
    assert counts["result"] > 3
    assert counts.total() == 60
