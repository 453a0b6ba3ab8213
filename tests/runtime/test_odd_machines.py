"""petseg-run on machines that are set up oddly: homes, locales, signals, streams."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import GEOMETRIES, body_array

from petseg_runtime.backends.compiled import _by_use
from petseg_runtime.cli import main
from petseg_runtime.commissioning import kept, record_path, user_folder
from petseg_runtime.errors import ModelError, UsageError
from petseg_runtime.io.images import write_image
from petseg_runtime.manifest import read_model
from petseg_runtime.self_test import self_test

PETSEG_RUN = Path(sys.executable).with_name("petseg-run")


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.nii.gz"
    write_image(body_array(GEOMETRIES["axial"].shape), GEOMETRIES["axial"], path)
    return path


def command(*arguments: object, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PETSEG_RUN), *map(str, arguments)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env=os.environ | settings,
    )


# The signal comes while a module is imported, where an exception would be lost; or twice, the first time where it is.
SIGNALLED = {
    "in an import": """
import pathlib, sys, tempfile
folder = pathlib.Path(tempfile.mkdtemp())
(folder / "signalled_here.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
sys.path.append(str(folder))
import petseg_runtime.cli as cli
cli._run = lambda options: __import__("signalled_here")
cli.main(["x"])
""",
    "twice": """
import os, signal, time
import petseg_runtime.cli as cli
cli._SECOND_SIGNAL_S = 0.05
def run(options):
    while True:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
        except KeyboardInterrupt:
            time.sleep(0.1)
cli._run = run
cli.main(["x"])
""",
}


@pytest.mark.parametrize("when", SIGNALLED)
def test_sigterm_ends_the_process_where_no_exception_can(when: str) -> None:
    done = subprocess.run([sys.executable, "-c", SIGNALLED[when]], timeout=60, check=False)
    assert done.returncode == 128 + signal.SIGTERM


def test_a_home_that_may_not_be_entered_costs_a_cache_only(scan: Path, known_model: Path, tmp_path: Path) -> None:
    done = command(scan, "-m", known_model, "-o", tmp_path / "out", XDG_CACHE_HOME=f"/{'x' * 300}")
    assert done.returncode == 0, done.stderr
    assert _by_use(Path(f"/{'x' * 300}"), "*") == []


def test_a_relative_folder_of_the_user_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the XDG base directory specification."""
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    folder = user_folder("XDG_CACHE_HOME", ".cache")
    assert folder is not None
    assert folder.is_absolute()


@pytest.mark.parametrize("where", ["scan", "output"])
def test_a_locale_that_does_not_know_a_letter_is_said(
    where: str, scan: Path, known_model: Path, tmp_path: Path
) -> None:
    umlaut = tmp_path / "Schädel"
    umlaut.mkdir()
    taken = Path(shutil.copy(scan, umlaut)) if where == "scan" else scan
    output = tmp_path / "out" if where == "scan" else umlaut / "out"
    done = command(
        taken, "-m", known_model, "-o", output, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING=""
    )
    assert done.returncode == (3 if where == "scan" else 2)
    assert "Set LC_ALL=C.UTF-8 and run again." in " ".join(done.stderr.split())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_the_exit_code_does_not_hang_on_messages_that_cannot_be_written(scan: Path, known_model: Path) -> None:
    with Path("/dev/full").open("w") as full:
        for arguments, code in ((["nope.nii.gz", "-m", known_model], 3), ([scan, "-m", "nope.onnx"], 4)):
            done = subprocess.run([str(PETSEG_RUN), *map(str, arguments)], stderr=full, check=False)
            assert done.returncode == code


def test_a_pipe_is_no_model(tmp_path: Path) -> None:
    """To read it would wait for whoever writes into it."""
    os.mkfifo(tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="is not a file"):
        read_model(tmp_path / "model.onnx")


def test_a_folder_that_was_removed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["../scan.nii.gz"]) == 2
    assert "The current folder was removed." in capsys.readouterr().err


def test_a_record_of_brackets_is_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    path = record_path("0" * 64)
    assert path is not None
    path.parent.mkdir(parents=True)
    path.write_text("[" * 200_000)
    assert kept("0" * 64) is None


def test_a_self_test_takes_no_more_threads_than_a_run() -> None:
    with pytest.raises(UsageError, match="expected 1 to 512"):
        self_test(threads=100_000)


def test_a_record_that_cannot_be_kept_says_where_it_may(known_model: Path, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way of the folder")
    done = command("--self-test", XDG_STATE_HOME=str(tmp_path / "state"))
    assert done.returncode == 2
    assert "Set XDG_STATE_HOME" in done.stderr
