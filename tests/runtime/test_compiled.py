"""Compiled networks on disk: found again, never trusted when damaged, few, and no hindrance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from petseg_runtime.backends.compiled import CompiledNetwork
from petseg_runtime.backends.openvino import OpenVinoBackend

WINDOW = np.full((1, 1, 16, 16, 16), 2.5, np.float32)
EXPECTED = 1 / (1 + np.exp(-10 * (2.5 - 2.0)))  # the known model


def answer(model: Path, cache: Path | None) -> float:
    (probabilities,) = OpenVinoBackend(model.read_bytes(), cache=cache, window=(16, 16, 16)).predict([WINDOW])
    return float(probabilities[0, 0, 0, 0, 0])


def test_what_was_kept_is_found(tmp_path: Path) -> None:
    CompiledNetwork(tmp_path / "new", "key").write(b"network")
    assert CompiledNetwork(tmp_path / "new", "key").read() == b"network"
    assert CompiledNetwork(tmp_path / "new", "another key").read() is None


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content[:-1] + b"x", lambda _: b""])
def test_a_damaged_file_is_not_read(damage, tmp_path: Path) -> None:
    network = CompiledNetwork(tmp_path, "key")
    network.write(b"network")
    network.path.write_bytes(damage(network.path.read_bytes()))
    assert network.read() is None


def test_only_the_latest_few_are_kept(tmp_path: Path) -> None:
    for number in range(20):
        CompiledNetwork(tmp_path, f"key {number}").write(b"network")
    assert len(list(tmp_path.iterdir())) == 8
    assert CompiledNetwork(tmp_path, "key 19").read() == b"network"


def test_openvino_answers_the_same_from_a_kept_network(known_model: Path, tmp_path: Path) -> None:
    answers = [answer(known_model, tmp_path) for _ in range(2)]
    (kept,) = tmp_path.iterdir()
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    kept.write_bytes(content)
    answers.append(answer(known_model, tmp_path))
    assert answers == pytest.approx([EXPECTED] * 3, abs=1e-5)


def test_a_cache_that_cannot_be_written_is_done_without(known_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert answer(known_model, tmp_path / "file" / "cache") == pytest.approx(EXPECTED, abs=1e-5)
