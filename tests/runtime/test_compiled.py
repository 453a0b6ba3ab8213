"""Compiled networks on disk: found again, never trusted when damaged, few, and no hindrance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from petseg_runtime.backends.compiled import CompiledNetworks
from petseg_runtime.backends.openvino import OpenVinoBackend

SHAPE = (1, 1, 16, 16, 16)
WINDOW = np.full((1, 1, 16, 16, 16), 2.5, np.float32)
EXPECTED = 1 / (1 + np.exp(-10 * (2.5 - 2.0)))  # the known model


def answer(model: Path, cache: Path | None) -> float:
    (probabilities,) = OpenVinoBackend(model.read_bytes(), cache=cache, window=(16, 16, 16)).predict([WINDOW])
    return float(probabilities[0, 0, 0, 0, 0])


def test_what_was_kept_is_found(tmp_path: Path) -> None:
    CompiledNetworks(tmp_path / "new", "key").write(SHAPE, b"network")
    assert CompiledNetworks(tmp_path / "new", "key").read(SHAPE) == b"network"
    assert CompiledNetworks(tmp_path / "new", "another key").read(SHAPE) is None
    assert CompiledNetworks(tmp_path / "new", "key").read((1, 1, 16, 16, 32)) is None


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content[:-1] + b"x", lambda _: b""])
def test_a_damaged_file_is_not_read(damage, tmp_path: Path) -> None:
    networks = CompiledNetworks(tmp_path, "key")
    networks.write(SHAPE, b"network")
    networks.path(SHAPE).write_bytes(damage(networks.path(SHAPE).read_bytes()))
    assert networks.read(SHAPE) is None


def test_only_the_few_used_last_are_kept(tmp_path: Path) -> None:
    for number in range(20):
        CompiledNetworks(tmp_path, f"key {number}").write(SHAPE, b"network")
        assert CompiledNetworks(tmp_path, "key 0").read(SHAPE) == b"network"
    assert len(list(tmp_path.iterdir())) == 8
    assert CompiledNetworks(tmp_path, "key 19").read(SHAPE) == b"network"
    assert CompiledNetworks(tmp_path, "key 12").read(SHAPE) is None


def test_the_last_shape_is_that_written_or_read_last(tmp_path: Path) -> None:
    networks = CompiledNetworks(tmp_path / "new", "key")
    assert networks.last_shape() is None
    for shape in (SHAPE, (1, 1, 16, 32, 48)):
        networks.write(shape, b"network")
        assert networks.last_shape() == shape
    CompiledNetworks(tmp_path / "new", "another key").write((1, 1, 64, 64, 64), b"network")
    assert networks.read(SHAPE) == b"network"
    assert networks.last_shape() == SHAPE
    kept = networks.path(SHAPE)
    kept.with_name(kept.name.replace("x", "-")).write_bytes(b"of somebody else")
    assert networks.last_shape() == SHAPE


def test_windows_of_another_size_than_the_kept_network_s_get_their_own(known_model: Path, tmp_path: Path) -> None:
    for window in (WINDOW, WINDOW[..., :8], WINDOW):  # no size is given, as where windows fit bodies
        (probabilities,) = OpenVinoBackend(known_model.read_bytes(), cache=tmp_path).predict([window])
        np.testing.assert_allclose(probabilities, np.full(window.shape, EXPECTED), atol=1e-5)
    assert len(list(tmp_path.iterdir())) == 2


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
