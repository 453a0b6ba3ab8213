"""The inbox: every scan that arrives is done once, whatever happens on the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
from pydicom.filereader import dcmread
from runtime.dicom_factory import ct_series, write
from runtime.watched import PATIENCE_S, SETTLE_S, Watched, put_scan, save_dicom, wait_until

import petseg_runtime.inbox
import petseg_runtime.io.scans
from petseg_runtime import Segmenter
from petseg_runtime.errors import InputError, MemoryBudgetError, PetsegError, UsageError
from petseg_runtime.inbox import JOURNAL, MOST_ATTEMPTS, TAKEN, Journal, watch
from petseg_runtime.io.scans import Scan, find_scans, scans_in
from petseg_runtime.memory import MemoryBudget
from petseg_runtime.outputs.files import file_sha256
from petseg_runtime.runner import RunSettings, ScanResult
from petseg_runtime.volume import Volume


@pytest.fixture(scope="module")
def segmenter(known_model: Path) -> Segmenter:
    return Segmenter(known_model)


@pytest.fixture
def new(tmp_path: Path, segmenter: Segmenter) -> Callable[[], Watched]:
    return lambda: Watched(tmp_path, segmenter)


def test_what_arrives_is_done_once_also_after_a_restart(new: Callable[[], Watched]) -> None:
    with new() as watched:
        put_scan(watched.inbox / "first.nii.gz")
        watched.wait_for(1)
        put_scan(watched.inbox / "ward" / "second.nii.gz", seed=1)
        watched.wait_for(2)
    assert watched.masks == ["first_petseg.nii.gz", "ward/second_petseg.nii.gz"]
    written = {path: path.stat().st_mtime_ns for path in watched.output.rglob("*_run.json")}
    with new() as again:
        put_scan(again.inbox / "third.nii.gz", seed=2)
        again.wait_for(1)
    assert [name for name, _ in again.reported] == ["third"]
    assert {path: path.stat().st_mtime_ns for path in written} == written


@pytest.mark.parametrize("blank_slice", [False, True])
def test_studies_without_a_pet_are_refused_one_by_one(
    blank_slice: bool, new: Callable[[], Watched], tmp_path: Path
) -> None:
    """All of them were one to the journal, and the second was passed over in silence."""
    with new() as watched:
        for number, ward in enumerate("ab"):
            files = write(ct_series(study=f"1.2.{number}"), tmp_path / ward / "study")
            if blank_slice:
                (files[0].parent / "IM0099").touch()
            files[0].parent.parent.rename(watched.inbox / ward)
            watched.wait_for(number + 1)
    assert all(isinstance(outcome, InputError) for _, outcome in watched.reported)
    assert sorted(path.parent.name for path in watched.output.rglob("failed/*/study.json")) == ["a", "b"]


def test_what_is_moved_while_it_waits_keeps_the_place_of_its_results(tmp_path: Path) -> None:
    """Its name is another scan's in the new folder."""
    moved, other = (put_scan(tmp_path / folder / "PET.nii.gz", seed) for seed, folder in enumerate(("new", "p17")))
    scans = [Scan("PET", Path(file.parent.name), file.parent, file) for file in (other, moved)]
    with Journal.opened(tmp_path / JOURNAL) as journal:
        for digest, scan in zip(("d0", "d1"), scans):
            assert journal.take(digest, scan, "", "", tmp_path, False) == (scan, TAKEN)
        elsewhere = replace(scans[1], folder=Path("p17"))
        assert journal.take("d1", elsewhere, "", "", tmp_path, False) == (scans[1], TAKEN)
        assert journal.has_another("d1", elsewhere)
        assert not journal.has_another("d1", scans[1])
        assert not journal.has_another("d1", replace(scans[1], name="renamed"))


def test_a_copy_of_what_was_done_is_not_done_again(new: Callable[[], Watched]) -> None:
    with new() as watched:
        one = put_scan(watched.inbox / "one.nii.gz")
        watched.wait_for(1)
        (watched.inbox / "other").mkdir()
        shutil.copy(one, watched.inbox / "other" / "one.nii.gz")
        put_scan(watched.inbox / "two.nii.gz", seed=1)
        watched.wait_for(2)
        time.sleep(3 * SETTLE_S)
    assert watched.masks == ["one_petseg.nii.gz", "two_petseg.nii.gz"]


def test_a_file_that_is_still_written_is_left_until_it_is_whole(new: Callable[[], Watched], tmp_path: Path) -> None:
    content = put_scan(tmp_path / "elsewhere.nii.gz").read_bytes()
    with new() as watched, (watched.inbox / "slow.nii.gz").open("wb") as stream:
        for start in range(0, len(content), len(content) // 8 + 1):
            stream.write(content[start : start + len(content) // 8 + 1])
            stream.flush()
            time.sleep(SETTLE_S / 3)
            assert watched.reported == []
        watched.wait_for(1)
    (_, outcome) = watched.reported[0]
    assert isinstance(outcome, ScanResult)


def test_a_series_that_arrives_file_by_file_is_one_scan(new: Callable[[], Watched], tmp_path: Path) -> None:
    save_dicom(tmp_path / "study")
    with new() as watched:
        (watched.inbox / "study").mkdir()
        for file in sorted((tmp_path / "study").iterdir()):
            shutil.copy2(file, watched.inbox / "study")  # bears an older time
            time.sleep(SETTLE_S / 10)
        watched.wait_for(1)
        time.sleep(3 * SETTLE_S)
    ((name, outcome),) = watched.reported
    assert name == "study"
    assert isinstance(outcome, ScanResult)


def test_what_is_left_of_a_done_study_while_it_is_removed_is_no_other(
    new: Callable[[], Watched], tmp_path: Path
) -> None:
    for file in save_dicom(tmp_path / "study"):
        slice_ = dcmread(file)
        del slice_.NumberOfSlices  # nothing says how many there were
        slice_.save_as(file)
    for expected in (1, 0):  # the second process knows it from the journal
        session = new()
        shutil.copytree(tmp_path / "study", session.inbox / "study", dirs_exist_ok=True)
        with session:
            session.wait_for(expected)
            time.sleep(4 * SETTLE_S)
            sorted((session.inbox / "study").iterdir())[0].unlink()
            time.sleep(6 * SETTLE_S)
        assert len(session.reported) == expected
        assert session.masks == ["study_petseg.nii.gz"]


def test_results_of_a_study_of_which_more_came_say_so(new: Callable[[], Watched], tmp_path: Path) -> None:
    for file in save_dicom(tmp_path / "study"):
        slice_ = dcmread(file)
        del slice_.NumberOfSlices  # nothing says how many there are
        slice_.save_as(file)
    *most, last = sorted((tmp_path / "study").iterdir(), key=lambda file: dcmread(file).ImagePositionPatient[2])
    with new() as watched:
        (watched.inbox / "study").mkdir()
        for file in most:
            shutil.copy(file, watched.inbox / "study")
        watched.wait_for(1)
        put_scan(watched.inbox / "other.nii.gz")
        watched.wait_for(2)
    with new() as again:  # also where the process was started anew
        shutil.copy(last, again.inbox / "study")
        again.wait_for(1)
    outcomes = [outcome for _, outcome in (*watched.reported, *again.reported)]
    first, other, grown = (outcome.warnings for outcome in outcomes if isinstance(outcome, ScanResult))
    assert not any("segmented before" in warning for warning in (*first, *other))
    assert "segmented before with other files than now, as study:" in grown[0]


def test_studies_without_a_uid_are_not_one_study(new: Callable[[], Watched], tmp_path: Path) -> None:
    with new() as watched:
        for number, folder in enumerate(("one", "other"), 1):
            for file in save_dicom(tmp_path / folder):
                slice_ = dcmread(file)
                slice_.PatientID = slice_.StudyInstanceUID = ""
                slice_.InstanceNumber = number  # other files, of another patient
                slice_.save_as(file)
            shutil.copytree(tmp_path / folder, watched.inbox / folder)
            watched.wait_for(number)
            shutil.rmtree(watched.inbox / folder)
    outcomes = [outcome for _, outcome in watched.reported]
    assert all(isinstance(outcome, ScanResult) for outcome in outcomes)
    assert not any("segmented before" in text for outcome in outcomes for text in outcome.warnings)


def test_a_mask_that_was_corrected_is_not_written_over(new: Callable[[], Watched], segmenter: Segmenter) -> None:
    with new() as watched:
        scan = put_scan(watched.inbox / "scan.nii.gz")
        watched.wait_for(1)
    (watched.output / JOURNAL).unlink()
    mask = watched.output / "scan_petseg.nii.gz"
    mask.write_bytes(b"corrected by hand")
    assert scan.exists()
    with new() as again:
        again.wait_for(1)
    (_, outcome) = again.reported[0]
    assert isinstance(outcome, UsageError)
    assert "changed since the run before" in str(outcome)
    assert mask.read_bytes() == b"corrected by hand"


def test_what_is_refused_goes_to_its_own_place_and_is_done_when_the_rest_has_come(
    new: Callable[[], Watched], tmp_path: Path
) -> None:
    save_dicom(tmp_path / "study")
    first, *others = sorted((tmp_path / "study").iterdir())
    with new() as watched:
        (watched.inbox / "study").mkdir()
        for file in others[: len(others) // 2]:
            shutil.copy(file, watched.inbox / "study")
        watched.wait_for(1)
        assert isinstance(watched.reported[0][1], InputError)
        note = watched.output / "failed" / "study.json"
        assert json.loads(note.read_text())["exit_code"] == 3
        for file in (first, *others):
            shutil.copy(file, watched.inbox / "study")
        watched.wait_for(2)
    assert isinstance(watched.reported[1][1], ScanResult)
    assert watched.masks == ["study_petseg.nii.gz"]
    assert not note.exists()


def test_a_scan_under_a_name_that_was_used_before_gets_one_of_its_own(new: Callable[[], Watched]) -> None:
    with new() as watched:
        put_scan(watched.inbox / "scan.nii.gz")
        watched.wait_for(1)
        put_scan(watched.inbox / "scan.nii.gz", seed=1)  # another patient's
        watched.wait_for(2)
        put_scan(watched.inbox / "scan-1.nii.gz", seed=2)  # whose results must bear its own name
        watched.wait_for(3)
    (_, first), (_, second), (_, third) = watched.reported
    assert isinstance(first, ScanResult)
    assert isinstance(second, ScanResult)
    assert isinstance(third, ScanResult)
    assert (first.name, third.name) == ("scan", "scan-1")
    assert re.fullmatch("scan-[0-9a-f]{8}", second.name)
    assert "under the name scan before" in second.warnings[0]


def test_a_study_that_is_renamed_while_it_waits_keeps_its_first_name_and_nothing_is_said_of_another(
    new: Callable[[], Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, real = new(), petseg_runtime.inbox.run_scan

    def run_scan(scan: Scan, *others: object) -> ScanResult:
        if not watched.reported:
            raise UsageError("The results cannot be written now.")
        return real(scan, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(petseg_runtime.inbox, "run_scan", run_scan)
    study = watched.inbox / "study"
    save_dicom(study)
    with watched:
        watched.wait_for(1)
        study.rename(watched.inbox / "renamed")
        watched.wait_for(2)
    (_, waiting), (_, result) = watched.reported
    assert isinstance(waiting, UsageError)
    assert isinstance(result, ScanResult)
    assert result.name == "study"
    assert not any("under the name" in warning for warning in result.warnings)


def test_a_study_that_is_corrected_while_it_waits_is_done_as_it_is_then(
    new: Callable[[], Watched], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The header of the one and the voxels of the other would be a SUV of neither."""
    watched, real = new(), petseg_runtime.inbox.run_scan
    save_dicom(tmp_path / "study")

    def run_scan(scan: Scan, *others: object) -> ScanResult:
        if scan.name == "a":  # meanwhile
            for file in (watched.inbox / "study").iterdir():
                slice_ = dcmread(file)
                slice_.PatientWeight = 35
                slice_.save_as(file)
        return real(scan, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(petseg_runtime.inbox, "run_scan", run_scan)
    put_scan(watched.inbox / "a.nii.gz")
    shutil.copytree(tmp_path / "study", watched.inbox / "study")
    with watched:
        watched.wait_for(2)
    (_, result) = watched.reported[1]
    assert isinstance(result, ScanResult)
    assert any("35 kg" in decision for decision in result.decisions)


def test_a_file_that_is_replaced_while_it_is_read_is_done_anew(
    new: Callable[[], Watched], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("petseg_runtime.inbox.RETRY_S", 0.1)
    watched, real, replaced = new(), petseg_runtime.io.scans.read_image, list[Path]()
    other = put_scan(tmp_path / "other.nii.gz", seed=1)
    os.utime(other, (1e9, 1e9))

    def read_image(path: Path, *others: object) -> Volume:
        if not replaced:
            replaced.append(other.replace(path))
        return real(path, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(petseg_runtime.io.scans, "read_image", read_image)
    put_scan(watched.inbox / "scan.nii.gz")
    with watched:
        watched.wait_for(2)
    (_, trouble), (_, result) = watched.reported
    assert "was changed or removed while in hand" in str(trouble)
    assert isinstance(result, ScanResult)
    record = json.loads((watched.output / "scan_run.json").read_text())
    assert record["input_sha256"] == file_sha256(watched.inbox / "scan.nii.gz")


def test_a_replaced_file_of_the_same_size_and_time_is_another_scan(new: Callable[[], Watched]) -> None:
    with new() as watched:
        scan = put_scan(watched.inbox / "scan.nii")
        os.utime(scan, (1e9, 1e9))
        watched.wait_for(1)
        put_scan(scan, seed=1)
        os.utime(scan, (1e9, 1e9))
        watched.wait_for(2)
    assert len(watched.masks) == 2


def test_what_comes_again_is_done_again_where_its_results_are_gone(new: Callable[[], Watched], tmp_path: Path) -> None:
    scan = put_scan(tmp_path / "scan.nii.gz")
    with new() as watched:
        shutil.copy(scan, watched.inbox / "scan.nii.gz")
        watched.wait_for(1)
        (watched.output / "scan_petseg.nii.gz").unlink()  # one of them is enough
    with new() as restarted:  # what only lies there is done
        time.sleep(4 * SETTLE_S)
        assert not restarted.reported
        shutil.copy(scan, restarted.inbox / "scan.nii.gz")
        restarted.wait_for(1)
        shutil.copy(scan, restarted.inbox / "scan.nii.gz")
        time.sleep(6 * SETTLE_S)
    assert len(restarted.reported) == 1
    assert restarted.masks == ["scan_petseg.nii.gz"]


def test_a_date_that_no_journal_holds_stops_nothing(new: Callable[[], Watched]) -> None:
    with new() as watched:
        os.utime(put_scan(watched.inbox / "a.nii.gz"), (1e10, 1e10))  # the year 2286
        put_scan(watched.inbox / "b.nii.gz", seed=1)
        watched.wait_for(2)
    assert watched.masks == ["a_petseg.nii.gz", "b_petseg.nii.gz"]


def test_what_was_corrected_by_hand_is_not_done_again(tmp_path: Path, segmenter: Segmenter) -> None:
    scan = put_scan(tmp_path / "scan.nii.gz")
    with Watched(tmp_path, segmenter) as watched:
        shutil.copy(scan, watched.inbox / "scan.nii.gz")
        watched.wait_for(1)
    mask = watched.output / "scan_petseg.nii.gz"
    mask.write_bytes(b"corrected by hand")
    again = Watched(tmp_path, segmenter)
    again._settings = replace(again._settings, threshold=0.9)
    with again:
        shutil.copy(scan, again.inbox / "scan.nii.gz")
        time.sleep(6 * SETTLE_S)
    assert not again.reported
    assert mask.read_bytes() == b"corrected by hand"


def test_a_backup_by_links_or_a_new_owner_changes_no_scan(new: Callable[[], Watched], tmp_path: Path) -> None:
    (scan,) = find_scans(put_scan(tmp_path / "elsewhere.nii.gz"))
    assert scan.image is not None
    os.link(scan.image, tmp_path / "backup.nii.gz")
    scan.image.chmod(0o600)
    scan.check_unchanged()
    scan.read()
    with new() as watched:
        put_scan(watched.inbox / "scan.nii.gz")
        watched.wait_for(1)
        os.link(watched.inbox / "scan.nii.gz", tmp_path / "backup")
        time.sleep(4 * SETTLE_S)
    assert len(watched.reported) == 1


@pytest.mark.parametrize("other", ["settings", "destination"])
def test_what_comes_again_is_done_and_delivered_as_is_asked_for_now(
    other: str, tmp_path: Path, segmenter: Segmenter
) -> None:
    scan, delivered = put_scan(tmp_path / "scan.nii.gz"), list[str]()

    def inbox(changed: bool) -> Watched:
        watched = Watched(tmp_path, segmenter, deliver=lambda result: delivered.append(result.name))
        if changed and other == "settings":
            watched._settings = replace(watched._settings, threshold=0.9)
        watched.destination = "ELSEWHERE@archive:104" if changed and other == "destination" else ""
        return watched

    for changed in (False, True):
        with inbox(changed) as watched:
            shutil.copy(scan, watched.inbox / "scan.nii.gz")
            watched.wait_for(1)
    assert delivered == ["scan", "scan"]
    record = json.loads((watched.output / "scan_run.json").read_text())
    assert record["settings"]["threshold"] == (0.9 if other == "settings" else 0.5)


def test_a_refusal_speaks_of_the_scan_by_its_own_name(new: Callable[[], Watched]) -> None:
    with new() as watched:
        scan = put_scan(watched.inbox / "scan.nii.gz")
        watched.wait_for(1)
        scan.write_bytes(scan.read_bytes()[:500])
        watched.wait_for(2)
        put_scan(watched.inbox / f"{'x' * 246}.nii.gz", seed=1)
        watched.wait_for(3)
    notes = {json.loads(note.read_text())["scan"] for note in (watched.output / "failed").iterdir()}
    assert notes == {"scan", "x" * 246}
    assert watched.masks == ["scan_petseg.nii.gz"]


def test_two_processes_do_not_work_into_one_folder(new: Callable[[], Watched], segmenter: Segmenter) -> None:
    with new() as watched:
        wait_until((watched.output / JOURNAL).exists)
        with pytest.raises(UsageError, match="Another petseg-run"):
            watch(watched.inbox, segmenter, RunSettings(output=watched.output), Event(), watched._report)


def test_a_journal_that_is_none_is_said(new: Callable[[], Watched], segmenter: Segmenter) -> None:
    watched = new()
    watched.output.mkdir()
    (watched.output / JOURNAL).write_text("no journal, but some text that is long enough for a header" * 40)
    with pytest.raises(UsageError, match="journal"):
        watch(watched.inbox, segmenter, RunSettings(output=watched.output), Event(), watched._report)


@pytest.mark.parametrize(("output", "inbox", "error"), [(None, "", UsageError), ("out", "absent", InputError)])
def test_an_inbox_without_folders_is_refused(
    output: str | None, inbox: str, error: type[PetsegError], segmenter: Segmenter, tmp_path: Path
) -> None:
    settings = RunSettings(output=None if output is None else tmp_path / output)
    with pytest.raises(error):
        watch(tmp_path / inbox, segmenter, settings, Event(), lambda *_: None)


def test_trouble_that_is_not_the_scans_own_is_tried_again_and_holds_up_no_other(
    new: Callable[[], Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, full = petseg_runtime.inbox.run_scan, iter([True, True])

    def run_scan(scan: Scan, *others: object) -> ScanResult:
        if scan.name == "a" and next(full, False):
            raise UsageError("a_petseg.nii.gz cannot be written: No space left on device.")
        return real(scan, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(petseg_runtime.inbox, "run_scan", run_scan)
    monkeypatch.setattr(petseg_runtime.inbox, "RETRY_S", 0.4)
    watched = new()
    put_scan(watched.inbox / "a.nii.gz")
    put_scan(watched.inbox / "b.nii.gz", seed=1)
    with watched:
        watched.wait_for(4)
    kinds = [(name, type(outcome)) for name, outcome in watched.reported]
    assert kinds[:2] == [("a", UsageError), ("b", ScanResult)]
    assert kinds[2:] == [("a", UsageError), ("a", ScanResult)]
    assert not (watched.output / "failed").exists()


@pytest.mark.parametrize(("fault", "says"), [(IndexError(), "Unexpected IndexError"), (MemoryError(), "memory")])
def test_a_fault_that_nobody_thought_of_is_noted_and_the_next_scan_is_done(
    fault: Exception, says: str, new: Callable[[], Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = petseg_runtime.inbox.run_scan

    def run_scan(scan: Scan, *others: object) -> ScanResult:
        if scan.name == "a":
            raise fault
        return real(scan, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(petseg_runtime.inbox, "run_scan", run_scan)
    watched = new()
    put_scan(watched.inbox / "a.nii.gz")
    put_scan(watched.inbox / "b.nii.gz", seed=1)
    with watched:
        watched.wait_for(2)
    assert says in json.loads((watched.output / "failed" / "a.json").read_text())["error"]
    assert watched.masks == ["b_petseg.nii.gz"]


def petseg_run_watch(inbox: Path, output: Path, model: Path) -> subprocess.Popen[str]:
    command = [Path(sys.executable).with_name("petseg-run"), inbox, "-o", output, "--watch", "--settle", "0.2"]
    return subprocess.Popen([*map(str, command), "-m", str(model), "--json"], stdout=subprocess.PIPE, text=True)


def test_sigterm_ends_the_command_in_order(tmp_path: Path, known_model: Path) -> None:
    put_scan(tmp_path / "inbox" / "scan.nii.gz")
    process = petseg_run_watch(tmp_path / "inbox", tmp_path / "out", known_model)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["scan"] == "scan"
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0


def test_killed_at_any_moment_every_scan_is_done_once(tmp_path: Path, known_model: Path) -> None:
    inbox, output = tmp_path / "inbox", tmp_path / "out"
    for seed in range(6):
        put_scan(inbox / f"scan{seed}.nii.gz", seed)
    moments = iter((1.2, 1.5, 1.8, 2.2))
    while len(list(output.glob("*_run.json"))) < 6:
        process = petseg_run_watch(inbox, output, known_model)
        try:
            process.wait(next(moments, 15.0))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    written = {path: path.stat().st_mtime_ns for path in output.glob("*_run.json")}
    process = petseg_run_watch(inbox, output, known_model)  # nothing is left to do
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(4.0)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE_S)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    names = {path.name for path in output.iterdir() if not path.name.startswith(".petseg-journal")}
    expected = {f"scan{seed}{end}" for seed in range(6) for end in ("_petseg.nii.gz", "_run.json")}
    assert names == expected


@pytest.mark.parametrize("arguments", [["--settle", "-1"], ["other"], ["--patient-weight-kg", "70"]])
def test_options_that_an_inbox_cannot_take_are_refused(arguments: list[str], tmp_path: Path, known_model: Path) -> None:
    (tmp_path / "inbox").mkdir()
    command = [Path(sys.executable).with_name("petseg-run"), tmp_path / "inbox", *arguments, "-o", tmp_path / "out"]
    done = subprocess.run(
        [*map(str, command), "--watch", "-m", str(known_model)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_a_scan_that_ends_the_process_each_time_is_passed_over(new: Callable[[], Watched], tmp_path: Path) -> None:
    """As a file would on which a library crashes: else the inbox would never do another."""
    with new() as watched:
        poison = put_scan(watched.inbox / "poison.nii.gz")
        watched.wait_for(1)
    with closing(sqlite3.connect(watched.output / JOURNAL)) as journal, journal:
        journal.execute("UPDATE scans SET state = ?, attempts = ?", (TAKEN, MOST_ATTEMPTS))
    poison.touch()
    with new() as again:
        put_scan(again.inbox / "sound.nii.gz", seed=1)
        again.wait_for(2)
    outcomes = dict(again.reported)
    assert isinstance(outcomes["poison"], InputError)
    assert "5 times the process ended" in str(outcomes["poison"])
    assert isinstance(outcomes["sound"], ScanResult)


def test_a_name_that_is_not_utf8_is_reported_and_holds_up_no_other(new: Callable[[], Watched]) -> None:
    watched = new()
    latin = put_scan(watched.inbox / "plain.nii.gz")
    os.rename(latin, os.fsencode(watched.inbox) + b"/M\xfcller.nii.gz")
    with watched:
        put_scan(watched.inbox / "z.nii.gz", seed=1)
        watched.wait_for(2)
    (first, refused), (second, done) = watched.reported
    assert "not valid UTF-8" in str(refused)
    assert (os.fsencode(first), second) == (b"M\xfcller", "z")
    assert isinstance(done, ScanResult)


def test_a_slice_whose_name_is_not_utf8_holds_up_no_other(new: Callable[[], Watched]) -> None:
    """It is damaged, so that the refusal speaks of it by its name."""
    watched = new()
    (damaged, *_) = save_dicom(watched.inbox / "study")
    damaged.write_bytes(damaged.read_bytes()[:400])
    os.rename(damaged, os.fsencode(watched.inbox) + b"/study/M\xfcller.dcm")
    with watched:
        watched.wait_for(1)
        put_scan(watched.inbox / "z.nii.gz", seed=1)
        watched.wait_for(2)
    outcomes = dict(watched.reported)
    assert isinstance(outcomes["study"], InputError)
    assert isinstance(outcomes["z"], ScanResult)
    assert "M?ller.dcm" in json.loads((watched.output / "failed" / "study.json").read_text())["error"]


def test_a_name_that_is_not_utf8_is_printed(known_model: Path, tmp_path: Path) -> None:
    latin = put_scan(tmp_path / "inbox" / "plain.nii.gz")
    os.rename(latin, os.fsencode(tmp_path) + b"/inbox/M\xfcller.nii.gz")
    process = petseg_run_watch(tmp_path / "inbox", tmp_path / "out", known_model)
    assert process.stdout is not None
    assert "not valid UTF-8" in json.loads(process.stdout.readline())["error"]
    put_scan(tmp_path / "inbox" / "z.nii.gz")
    assert json.loads(process.stdout.readline())["scan"] == "z"
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0


def test_an_inbox_that_cannot_be_read_says_so_once_and_goes_on_when_it_can(
    new: Callable[[], Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, broken = petseg_runtime.inbox.scans_in, [True]

    def scans_in(*arguments: object) -> object:
        if broken[0]:
            raise InputError("A folder in inbox cannot be read: Permission denied.")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("petseg_runtime.inbox.scans_in", scans_in)
    with new() as watched:
        put_scan(watched.inbox / "scan.nii.gz")
        watched.wait_for(1)
        time.sleep(4 * SETTLE_S)
        broken[0] = False
        watched.wait_for(2)
    (name, trouble), (done, result) = watched.reported
    assert (name, done) == ("inbox", "scan")
    assert "Permission denied" in str(trouble)
    assert isinstance(result, ScanResult)


def test_what_a_file_system_keeps_for_itself_is_passed_over(tmp_path: Path) -> None:
    put_scan(tmp_path / "lost+found" / "old.nii.gz")
    put_scan(tmp_path / "new.nii.gz")
    assert [scan.name for scan in scans_in(tmp_path)] == ["new"]


def test_what_failed_is_tried_again_with_other_settings_and_only_then(
    tmp_path: Path, known_model: Path, segmenter: Segmenter
) -> None:
    """As a scan too large for the memory is, once the budget was raised."""
    small = Segmenter(known_model)
    small.budget = MemoryBudget(0.6, 10)
    small.budget = replace(small.budget, window_bytes=int((0.6e9 - 350e6) / 1.3) - 1000)  # no voxel has room
    put_scan(tmp_path / "inbox" / "scan.nii.gz")
    outcomes = []
    for one in (small, small, segmenter, segmenter):
        with Watched(tmp_path, one) as watched:
            put_scan(watched.inbox / f"other{len(outcomes)}.nii.gz", seed=len(outcomes) + 1)
            watched.wait_for(1)
            time.sleep(3 * SETTLE_S)
        outcomes.append(dict(watched.reported).get("scan"))
    assert isinstance(outcomes[0], MemoryBudgetError)
    assert outcomes[1] is None
    assert isinstance(outcomes[2], ScanResult)
    assert outcomes[3] is None


def test_a_note_that_cannot_be_written_holds_up_no_other(new: Callable[[], Watched]) -> None:
    watched = new()
    (watched.inbox / "a.nii.gz").write_bytes(b"no scan")
    put_scan(watched.inbox / "b.nii.gz")
    watched.output.mkdir()
    (watched.output / "failed").write_text("in the way of the folder of the notes")
    with watched:
        watched.wait_for(2)
    assert isinstance(dict(watched.reported)["a"], UsageError)
    assert watched.masks == ["b_petseg.nii.gz"]


def test_a_file_that_the_disk_does_not_give_just_now_is_taken_up_later(
    new: Callable[[], Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("petseg_runtime.inbox.RETRY_S", 0.1)
    real, failing = Path.open, [True]

    def open_file(path: Path, *arguments: object, **options: object) -> object:
        if failing[0] and path.name.startswith("IM") and arguments == ("rb",):
            raise OSError(24, "Too many open files")
        return real(path, *arguments, **options)  # type: ignore[call-overload]

    watched = new()
    save_dicom(watched.inbox / "study")
    monkeypatch.setattr(Path, "open", open_file)
    with watched:
        watched.wait_for(1)
        assert isinstance(watched.reported[0][1], UsageError)
        failing[0] = False
        wait_until(lambda: isinstance(watched.reported[-1][1], ScanResult))
    assert not (watched.output / "failed").exists()


@pytest.mark.parametrize("trouble", [UsageError("The archive is away."), ZeroDivisionError("a fault of our own")])
def test_what_cannot_be_sent_on_waits(
    trouble: Exception, tmp_path: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("petseg_runtime.inbox.RETRY_S", 0.1)
    delivered: list[str] = []

    def deliver(result: ScanResult) -> None:
        delivered.append(result.name)
        if len(delivered) == 1:
            raise trouble

    watched = Watched(tmp_path, segmenter, deliver=deliver)
    put_scan(watched.inbox / "scan.nii.gz")
    with watched:
        watched.wait_for(2)
    assert delivered == ["scan", "scan"]
    assert isinstance(watched.reported[-1][1], ScanResult)
