"""The examples for other software: the golden vectors are those of the bundled model, also in Node.js."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from runtime.watched import Watched, put_scan

from petseg_runtime import Segmenter
from petseg_runtime.backends import open_backend
from petseg_runtime.manifest import read_model
from petseg_runtime.segmenter import BUNDLED_MODEL
from petseg_runtime.serve.http import application, http_service

EXAMPLES = REPOSITORY / "examples" / "embedding"
MODEL = REPOSITORY / "petseg_runtime" / "models" / BUNDLED_MODEL


def test_the_golden_vectors_are_of_the_bundled_model() -> None:
    """Recomputed by the other backend, on a window that is made anew, voxel by voxel, by another rule of the same."""
    golden = json.loads((EXAMPLES / "golden.json").read_text())
    model = read_model(MODEL)
    assert golden["model_sha256"] == model.sha256
    shape = tuple(golden["shape"])
    state, noise = 1, []
    for _ in range(int(np.prod(shape))):
        state = (1664525 * state + 1013904223) & 0xFFFFFFFF
        noise.append((state // 2**24) / 256 - 0.5)
    axes = [np.arange(side) - side // 2 for side in shape]
    ball = axes[0][:, None, None] ** 2 + axes[1][:, None] ** 2 + axes[2] ** 2 < 100
    window = (np.reshape(noise, shape) + np.where(ball, 6, 0)).astype(np.float32)
    (found,) = open_backend(model.content, "openvino", "cpu")[0].predict([window[None, None]])
    np.testing.assert_allclose(found.ravel()[:: golden["every"]], golden["probabilities"], rtol=0.01, atol=1e-6)


def test_ten_lines_of_python() -> None:
    example = EXAMPLES / "segment.py"
    scan = REPOSITORY / "examples" / "pelvis.nii.gz"
    done = subprocess.run([sys.executable, example, scan], capture_output=True, text=True, check=True)
    assert "lesions" in done.stdout
    assert "SUVmax None" in done.stdout  # a NIfTI does not say its unit


def test_the_http_client_gets_the_result(tmp_path: Path, known_model: Path) -> None:
    (tmp_path / "token").write_text("a-token-that-nobody-guesses\n")
    watched = Watched(tmp_path, Segmenter(known_model))
    put_scan(tmp_path / "scan.nii.gz")
    app = application(watched.inbox, watched.output, "a-token-that-nobody-guesses", {})
    with watched, http_service(app, "127.0.0.1", 0) as port:
        example = [sys.executable, EXAMPLES / "segment_over_http.py", f"http://127.0.0.1:{port}"]
        done = subprocess.run(
            [*example, tmp_path / "token", tmp_path / "scan.nii.gz"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
    assert done.stdout.startswith("1 lesions")
    assert zipfile.is_zipfile(tmp_path / "result.zip")


def test_node_gives_the_same_probabilities() -> None:
    if shutil.which("node") is None or not (EXAMPLES / "node" / "node_modules" / "onnxruntime-node").is_dir():
        pytest.skip("needs node, and npm install --ignore-scripts in examples/embedding/node")
    done = subprocess.run(
        ["node", "run.mjs", MODEL], cwd=EXAMPLES / "node", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "largest difference" in done.stdout
