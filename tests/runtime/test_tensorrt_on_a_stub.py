"""The TensorRT backend and cuda-core themselves, on a CUDA driver that is not one (stub_cuda.c)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

pytest.importorskip("cuda.core", reason="the extra `engine` is not installed")
pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc builds the stub")


@pytest.fixture(scope="module")
def driver_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("driver")
    library = ["-o", str(folder / "libcuda.so.1"), str(HERE / "stub_cuda.c")]
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", *library], check=True)
    return folder


@pytest.mark.parametrize(
    "what",
    [
        "windows_keep_their_order",
        "a_gpu_without_room_says_so_and_keeps_nothing",
        "nothing_is_freed_that_is_in_use",
        "the_current_gpu_stays_the_callers",
        "a_refused_engine_says_why",
    ],
)
def test_on_the_stub(what: str, driver_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, HERE / "on_stub_cuda.py", what],
        env={**os.environ, "LD_LIBRARY_PATH": f"{driver_folder}:{os.environ.get('LD_LIBRARY_PATH', '')}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
