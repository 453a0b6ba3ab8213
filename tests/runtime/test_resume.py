"""A batch that was interrupted goes on where it was: at any moment, with the files of an uninterrupted one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import benchmark, body_array
from runtime.test_cli import SMALL, files_in, save

from petseg_runtime.cli import main
from petseg_runtime.outputs.files import remove_leavings
from petseg_runtime.segmentation import Segmentation
from petseg_runtime.segmenter import Segmenter

SCANS = 6
OPTIONS = ("-s", "-p", "--unit", "suvbw")

content = benchmark("kills").content


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    for number in range(SCANS):
        save(body_array(SMALL, seed=number), tmp_path / f"in/{number % 2}/scan{number}.nii.gz")
    return tmp_path / "in"


@pytest.fixture
def run(known_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in (*arguments, "-m", known_model, "-o", tmp_path / "out", *OPTIONS)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def modified(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_mtime_ns for name in files_in(folder) if "/" in name}


def test_what_is_done_is_left_alone_and_counted(batch: Path, run, tmp_path: Path) -> None:
    code, out, _ = run(batch)
    assert code == 0
    written = [line.removeprefix("wrote ") for line in out.splitlines() if line.startswith("wrote ")]
    before, table = modified(tmp_path / "out"), (tmp_path / "out/petseg_results.csv").read_bytes()
    code, out, _ = run(batch, "--resume")
    assert code == 0
    kept = [line.removeprefix("kept ") for line in out.splitlines() if line.startswith("kept ")]
    assert kept == [file for file in written if "petseg_results.csv" not in file]
    assert modified(tmp_path / "out") == before
    assert (tmp_path / "out/petseg_results.csv").read_bytes() == table
    assert "scan5" in out


def test_without_resume_everything_is_done_again(batch: Path, run, tmp_path: Path) -> None:
    run(batch)
    before = modified(tmp_path / "out")
    run(batch)
    after = modified(tmp_path / "out")
    assert set(after) == set(before)
    assert all(after[name] > before[name] for name in before)


@pytest.mark.parametrize(
    "change", ["input", "settings", "preprocessing", "a file is gone", "a file is empty", "record of old"]
)
def test_what_changed_is_done_again(
    change: str, batch: Path, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(batch)
    before = modified(tmp_path / "out")
    extra: tuple[str, ...] = ()
    if change == "input":
        save(body_array(SMALL, seed=77), batch / "1/scan3.nii.gz")
    elif change == "settings":
        extra = ("--threshold", "0.4")
    elif change == "preprocessing":
        monkeypatch.setattr("petseg_runtime.runner.PREPROCESSING_VERSION", 99)
    elif change == "a file is gone":
        (tmp_path / "out/1/scan3_petseg.nii.gz").unlink()
    elif change == "a file is empty":
        (tmp_path / "out/1/scan3_petseg.nii.gz").write_bytes(b"")
    else:
        record = tmp_path / "out/1/scan3_run.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"statistics": []}))
    assert run(batch, "--resume", *extra)[0] == 0
    after = modified(tmp_path / "out")
    again = {name.split("_")[0] for name in after if after[name] != before.get(name)}
    of_all = change in ("settings", "preprocessing")
    assert again == ({f"{number % 2}/scan{number}" for number in range(SCANS)} if of_all else {"1/scan3"})


def test_a_run_that_writes_less_leaves_nothing_of_the_one_before(
    batch: Path, known_model: Path, tmp_path: Path
) -> None:
    """Else the numbers of another mask would lie beside the new one."""
    scan, out = batch / "0/scan0.nii.gz", tmp_path / "out"
    arguments = [str(scan), "-m", str(known_model), "-o", str(out)]
    assert main([*arguments, "-s", "-p", "--report"]) == 0
    (out / "scan0_notes.txt").write_text("of somebody else")
    assert main([*arguments, "--threshold", "0.9"]) == 0
    assert set(files_in(out)) == {"scan0_petseg.nii.gz", "scan0_run.json", "scan0_notes.txt"}


@pytest.mark.parametrize("record", ['{"foo": 1}', "// reviewed\n{}", "{", "", "\0" * 100])
def test_beside_a_record_that_is_none_nothing_is_written_over(record: str, run, tmp_path: Path) -> None:
    """Whoever wrote it may have corrected the mask, too."""
    scan = save(body_array(SMALL), tmp_path / "scan.nii.gz")
    run(scan)
    (tmp_path / "out/scan_petseg.nii.gz").write_bytes(b"corrected by hand")
    (tmp_path / "out/scan_run.json").write_text(record)
    before = files_in(tmp_path / "out")
    for again in ((), ("--resume",)):
        code, _, said = run(scan, *again)
        assert code == 2
        assert "was not written by a run before" in " ".join(said.split())
        assert files_in(tmp_path / "out") == before
        assert (tmp_path / "out/scan_petseg.nii.gz").read_bytes() == b"corrected by hand"
    assert run(scan, "--overwrite")[0] == 0


def test_a_mask_that_is_corrected_while_its_scan_is_done_again_is_kept(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan, mask = save(body_array(SMALL), tmp_path / "scan.nii.gz"), tmp_path / "out/scan_petseg.nii.gz"
    run(scan)
    segment = Segmenter.segment

    def meanwhile(*arguments: Any, **options: Any) -> Segmentation:
        mask.write_bytes(b"corrected by hand")
        return segment(*arguments, **options)

    monkeypatch.setattr(Segmenter, "segment", meanwhile)
    assert run(scan)[0] == 2
    assert mask.read_bytes() == b"corrected by hand"


@pytest.mark.parametrize("whose", ["somebody's", "ours, changed since", "ours, of the same size", "ours, record gone"])
def test_what_is_not_ours_any_more_is_not_written_over(whose: str, run, known_model: Path, tmp_path: Path) -> None:
    """A physician's contour may have the name of a result, or be one that was corrected."""
    scan, mask = save(body_array(SMALL), tmp_path / "scan.nii.gz"), tmp_path / "out/scan_petseg.nii.gz"
    if whose == "somebody's":
        mask.parent.mkdir()
    else:
        run(scan)
        (tmp_path / "out/scan_run.json").unlink() if "gone" in whose else None
    size = mask.stat().st_size if "size" in whose else 17
    mask.write_bytes(b"corrected by hand".ljust(size))
    before = files_in(tmp_path / "out")
    for again in ((), ("--resume",)):
        code, _, said = run(scan, *again)
        assert code == 2
        said = " ".join(said.split())
        written = whose in ("ours, changed since", "ours, of the same size")
        reason = "changed since the run before" if written else "not written by a run before"
        assert f"scan_petseg.nii.gz was {reason}" in said
        assert "--overwrite" in said
        assert mask.read_bytes().rstrip() == b"corrected by hand"
        assert files_in(tmp_path / "out") == before
    assert run(scan, "--overwrite")[0] == 0
    assert mask.read_bytes()[:2] == b"\x1f\x8b"
    if "changed" in whose:  # nor is it removed by a run that writes none such
        (tmp_path / "out/scan_preview.png").write_bytes(b"drawn on")
        assert main([str(scan), "-m", str(known_model), "-o", str(tmp_path / "out")]) == 2
        assert (tmp_path / "out/scan_preview.png").read_bytes() == b"drawn on"


@pytest.mark.parametrize("further", [(), ("-p",)], ids=["less than before", "more than before"])
def test_a_run_that_ended_while_its_files_moved_goes_on(
    further: tuple[str, ...], known_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the results lie there without a record: they are ours all the same."""
    scan, out = save(body_array(SMALL), tmp_path / "scan.nii.gz"), tmp_path / "out"
    arguments = [str(scan), "-m", str(known_model), "-o", str(out), *further]
    assert main([*arguments, "--report"]) == 0
    moved, replace = [], os.replace

    def ends(source: Path, target: Path) -> None:
        if target.parent == out:
            moved.append(target.name)
            if len(moved) == 2:
                raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", ends)
        assert main([*arguments, "-s"]) == 130
    assert len(moved) == 2
    assert "scan_run.json" not in files_in(out)
    assert main([*arguments, "-s", "--resume"]) == 0
    expected = ["scan_petseg.nii.gz", *(["scan_preview.png"] if further else []), "scan_run.json", "scan_stats.json"]
    assert files_in(out) == expected


def test_a_scan_that_is_refused_says_that_results_of_another_lie_there(run, tmp_path: Path) -> None:
    scan = save(body_array(SMALL), tmp_path / "scan.nii.gz")
    run(scan)
    save(body_array(SMALL) * np.nan, scan)
    code, _, said = run(scan)
    assert code == 3
    assert "results of another scan of this name still lie" in " ".join(said.split())


def test_the_table_never_speaks_of_results_that_were_replaced(batch: Path, run, tmp_path: Path) -> None:
    """Nor does the page, whose links a run without reports leaves dead."""
    out = tmp_path / "out"
    run(batch, "--report")
    assert (out / "petseg_index.html").exists()
    run(batch, "--threshold", "0.9")
    assert not (out / "petseg_index.html").exists()
    assert "of a run before: it does not hold this result" in " ".join(run(batch / "0/scan0.nii.gz")[2].split())


def test_an_interrupted_batch_has_a_table_of_what_is_done(
    batch: Path, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(batch)
    segment, calls = Segmenter.segment, []

    def interrupted(*arguments: object, **further: object) -> Segmentation:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return segment(*arguments, **further)

    monkeypatch.setattr(Segmenter, "segment", interrupted)
    assert run(batch, "--threshold", "0.4")[0] == 130
    table = (tmp_path / "out/petseg_results.csv").read_text().splitlines()
    records = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("*_run.json")]
    done = [record for record in records if record["settings"]["threshold"] == 0.4]
    assert table[0].startswith("scan,unit")
    assert 2 <= len(table) - 1 <= len(done) <= 3


def test_another_backend_does_everything_again(batch: Path, run, tmp_path: Path) -> None:
    """Its masks may differ, and whoever asks for it wants its masks."""
    run(batch, "--backend", "openvino")
    before = modified(tmp_path / "out")
    run(batch, "--backend", "onnxruntime", "--resume")
    after = modified(tmp_path / "out")
    assert all(after[name] > before[name] for name in before)


def test_who_replaces_the_results_of_another_scan_is_told(run, tmp_path: Path) -> None:
    digests = []
    for seed in (1, 2, 2):
        scan = save(body_array(SMALL, seed=seed), tmp_path / f"p{seed}/PET.nii.gz")
        code, _, said = run(scan)
        assert code == 0
        record = json.loads((tmp_path / "out/PET_run.json").read_text())
        digests.append(record["input_sha256"])
        warned = any("another scan of this name" in warning for warning in record["warnings"])
        assert warned is (len(digests) == 2)
        assert ("another scan of this name" in " ".join(said.split())) is warned
    assert digests[0] != digests[1] == digests[2]


def test_a_record_never_lies_beside_files_of_another_run(batch: Path, run, tmp_path: Path, monkeypatch) -> None:
    """The process ends when the first of the new files is in its place."""
    run(batch / "0/scan0.nii.gz", "--save-probabilities")
    assert (tmp_path / "out/scan0_prob.nii.gz").exists()
    real, record = os.replace, tmp_path / "out/scan0_run.json"
    assert record.exists()

    def ends(source: Path, target: Path) -> None:
        real(source, target)
        if Path(target).name == "scan0_petseg.nii.gz" and Path(target).parent.name == "out":
            raise KeyboardInterrupt

    monkeypatch.setattr("petseg_runtime.outputs.files.os.replace", ends)
    assert run(batch / "0/scan0.nii.gz", "--threshold", "0.9")[0] == 130
    assert not record.exists()
    assert not (tmp_path / "out/scan0_prob.nii.gz").exists()  # of the run before, which alone spoke of it


def test_another_model_does_everything_again(batch: Path, run, manifest, tmp_path: Path, capsys) -> None:
    from dataclasses import replace

    from conftest import onnx_model

    run(batch)
    before = modified(tmp_path / "out")
    (tmp_path / "other.onnx").write_bytes(onnx_model(replace(manifest, version="2")))
    arguments = [str(batch), "-m", str(tmp_path / "other.onnx"), "-o", str(tmp_path / "out"), "--resume", *OPTIONS]
    assert main(arguments) == 0
    assert all(after > before[name] for name, after in modified(tmp_path / "out").items())


def test_a_failure_is_tried_again(batch: Path, run, tmp_path: Path) -> None:
    (batch / "0/scan9.nii.gz").write_bytes(b"not yet copied")
    assert run(batch)[0] == 7
    save(body_array(SMALL), batch / "0/scan9.nii.gz")
    assert run(batch, "--resume")[0] == 0
    assert (tmp_path / "out/0/scan9_run.json").is_file()


def test_resume_and_overwrite_exclude_each_other(batch: Path, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(batch), "--resume", "--overwrite"])
    assert stopped.value.code == 2


def test_leavings_of_the_dead_are_removed_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    from petseg_runtime.outputs.files import staged

    with staged(tmp_path, "x_run.json") as mine:
        dead = tmp_path / mine.name.replace(str(os.getpid()), "999999999")
        elsewhere = tmp_path / f".petseg-otherhost.{os.getpid()}-abc"
        for folder in (dead, elsewhere):
            folder.mkdir()
            (folder / "half.nii.gz").write_bytes(b"x")
        remove_leavings(tmp_path)
        assert mine.is_dir()
        assert elsewhere.is_dir()
        assert not dead.exists()


def test_leavings_are_removed_beside_the_scans_and_beside_their_table(batch: Path, run, tmp_path: Path) -> None:
    from petseg_runtime.outputs.files import staged

    for folder in (tmp_path / "out", tmp_path / "out/0"):
        folder.mkdir()
        with staged(folder, "x_run.json") as mine:
            (folder / mine.name.replace(str(os.getpid()), "999999999")).mkdir()
    assert run(batch)[0] == 0
    assert not [*(tmp_path / "out").rglob("*999999999*")]


def test_a_disk_that_fills_before_anything_moves_leaves_nothing(
    batch: Path, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from petseg_runtime.outputs import files

    def full(*paths: Path) -> None:
        if any("moving" in path.name for path in paths):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "sync", full)
    code, _, err = run(batch / "0/scan0.nii.gz")
    assert code == 2
    assert "A result cannot be written: No space left on device" in err
    assert files_in(tmp_path / "out") == []


def test_killed_at_any_moment_it_ends_with_the_files_of_an_uninterrupted_run(
    batch: Path, known_model: Path, tmp_path: Path
) -> None:
    """A few kills here; benchmarks/kills.py does fifty on a batch of twenty."""
    command = [
        sys.executable,
        "-m",
        "petseg_runtime.cli",
        str(batch),
        "-m",
        str(known_model),
        "-q",
        "--resume",
        *OPTIONS,
    ]

    def start(output: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*command, "-q", "-o", str(output)], stderr=subprocess.PIPE)

    began = time.perf_counter()
    assert start(tmp_path / "whole").wait() == 0
    took = time.perf_counter() - began
    moments = np.random.default_rng(4)
    for _ in range(5):
        process = start(tmp_path / "killed")
        time.sleep(moments.uniform(0.2, 1.0) * took)
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = start(tmp_path / "killed")
    assert process.wait() == 0, process.stderr and process.stderr.read()
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_masks_do_not_depend_on_when_they_were_written(batch: Path, run, tmp_path: Path) -> None:
    """Compressed files hold no time: the same scan gives the same bytes."""
    run(batch)
    first = content(tmp_path / "out")
    time.sleep(1.1)
    shutil.rmtree(tmp_path / "out")
    run(batch)
    assert content(tmp_path / "out") == first
    assert np.any([name.endswith("_petseg.nii.gz") for name in first])
