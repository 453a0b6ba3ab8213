"""An inbox: a folder that scans arrive in. Each is done once, also across restarts and power cuts. Prints nothing.

A scan is taken when none of its files has changed for a while: a DICOM study as a whole, however its files arrive. What
became of it stands in a journal beside the results. Nothing in the inbox is ever moved or removed. What is sent again
is done again where that makes a difference: other model or settings, results that are gone, a refusal before.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import sqlite3
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from petseg_runtime.errors import BackendError, InputError, PetsegError, UsageError, as_petseg_error
from petseg_runtime.io.identity import FileState, file_state
from petseg_runtime.io.scans import Scan, scans_in
from petseg_runtime.outputs.files import file_sha256, prepare_folder, remove_leavings, write_json
from petseg_runtime.runner import RunSettings, ScanResult, run_key, run_scan
from petseg_runtime.segmenter import Segmenter

if TYPE_CHECKING:
    from petseg_runtime.io.dicom import Header

JOURNAL = ".petseg-journal.sqlite"
FAILURES = "failed"

# In this folder of the inbox each folder is one scan that was moved there whole; named after it are its results.
SUBMITTED = ".submitted"

# In the folder of a submission, where it came again after it was done or refused.
AGAIN = ".again"

POLL_S, LONGEST_PAUSE_S = 1.0, 30.0
# After trouble that is not the scan's own, such as a full disk, before it is tried again.
RETRY_S = 30.0

# So often the process may have ended, one time after the other, with the same scan in hand: by kills and power cuts a
# few times, by a file that ends the process each time.
MOST_ATTEMPTS = 5

_LONGEST_NOTE = 200  # bytes of its name, without what ends it and what a file has while it is written

# Errors of the machine and its folders: a full disk, a share that is away, a GPU that does not answer.
_NOT_ITS_FAULT = (UsageError, BackendError)

Report = Callable[[Scan, ScanResult | PetsegError], None]
Deliver = Callable[[ScanResult], None]


def watch(
    inbox: Path,
    segmenter: Segmenter,
    settings: RunSettings,
    stop: Event,
    report: Report,
    settle_s: float = 10.0,
    deliver: Deliver | None = None,
    destination: str = "",
) -> None:
    """Do the scans of an inbox as they arrive, until `stop` is set; the scan in hand is finished.

    Parameters
    ----------
    settings : with an output folder; results go there, and for each scan that is refused a note to "failed" in it.
    report : called after each scan with its result, or with the error that it ended in; after what is no fault of the
        scan (a `UsageError`, a `BackendError`, trouble with what stands round it) it is tried again.
    settle_s : for so long, in seconds, no file of a scan may have changed.
    deliver : called with each result before its scan counts as done; where it raises a `UsageError` it is called
        again later, as where it fails in any other way. After a crash it may be called twice with one result.
    destination : says where `deliver` brings results; what is sent again after it has changed is delivered again.

    Raises
    ------
    InputError : if the inbox is no folder.
    UsageError : if there is no output folder, it cannot be written, or another process works into it.
    """
    output = settings.output
    if output is None:
        raise UsageError("An inbox needs a folder for its results. Pass --output.")
    if not inbox.is_dir():
        raise InputError(f"{inbox.name} is not a folder. Pass the folder that scans arrive in.")
    prepare_folder(output)
    arrivals, reported = _Arrivals(inbox, settle_s), ""
    with Journal.opened(output / JOURNAL) as journal:
        for folder in (output, *(path for path in output.rglob("*") if path.is_dir())):
            remove_leavings(folder)
        worker = _Worker(segmenter, settings, output, journal, deliver, destination)
        while not stop.is_set():
            began = time.monotonic()
            ready, trouble = arrivals.ready(), arrivals.trouble
            looked_s = time.monotonic() - began
            if trouble != reported:
                reported = trouble
                if trouble:
                    report(Scan(inbox.name, Path(), inbox), UsageError(trouble))
            for scan, signatures in ready:
                if stop.is_set():
                    return
                if _signatures(scan) != signatures:  # the scans before it took a while; it has to settle again
                    continue
                outcome, state = worker.do(scan)
                if outcome is not None:
                    report(scan, outcome)
                # What is still taken is tried again after a while; the others go on.
                arrivals.dealt_with(scan, signatures, RETRY_S if state == TAKEN else None, state == DONE)
            # An inbox of thousands of files, or on a slow share, is not looked through without a pause.
            stop.wait(max(min(POLL_S, max(settle_s, 0.05)), min(10 * looked_s, LONGEST_PAUSE_S)))


@dataclass(frozen=True)
class _Worker:
    """What a scan is done with, and where what became of it goes; see `watch`."""

    segmenter: Segmenter
    settings: RunSettings
    output: Path
    journal: Journal
    deliver: Deliver | None
    destination: str

    def do(self, scan: Scan) -> tuple[ScanResult | PetsegError | None, str]:
        """Do one scan; also its state from now on. No outcome where the journal says that it was dealt with before."""
        if not _is_utf8(scan):
            return _NO_UTF8, FAILED
        digest = ""
        try:
            digest = _digest(scan)
            attempt, marked = self._attempt(digest), _is_marked(scan)
            named, state = self.journal.take(digest, scan, attempt, _study_digest(scan), self.output, marked)
            if marked:
                _again(scan).unlink(missing_ok=True)  # from here on the journal says it
            if state != TAKEN:
                return None, state
            result = self._take_in_hand(scan, named, digest)
            if not isinstance(result, ScanResult) and _is_changed(scan):
                self.journal.release(digest)
                raise UsageError(f"{scan.name} was changed or removed while in hand. It is taken up when it settles.")
            return result, self._note_down(result, scan, named, digest, attempt)
        except (OSError, sqlite3.Error) as error:
            return UsageError(f"The output folder or its journal cannot be written: {error}. Check the disk."), TAKEN
        except Exception as error:  # trouble round the scan, or a fault of our own in what stands there, ends no inbox
            known = as_petseg_error(error)
            with suppress(sqlite3.Error):
                self.journal.waits(digest, str(known))
            return known, TAKEN

    def _attempt(self, digest: str) -> str:
        """Stands for all that what becomes of a scan depends on."""
        budget = "" if self.segmenter.budget is None else self.segmenter.budget.gigabytes
        return f"{run_key(digest, self.segmenter, self.settings)} {budget} {self.destination}"

    def _take_in_hand(self, scan: Scan, named: Scan, digest: str) -> ScanResult | PetsegError:
        """Do a scan that is taken, under the name that the journal gave it."""
        result: ScanResult | PetsegError = _ENDS_THE_PROCESS
        if self.journal.begin(digest) <= MOST_ATTEMPTS:
            warnings = _other_results(self.journal.done_of(_study_digest(scan), digest))
            if named.name != scan.name and not warnings and self.journal.has_another(digest, scan):
                warnings = (f"Another scan was done under the name {scan.name} before: these results have another.",)
            try:
                result = run_scan(replace(named, warnings=warnings), self.segmenter, self.settings, True)
            except Exception as error:  # whatever a scan does, the scans after it are done
                result = as_petseg_error(error)
        self.journal.survived(digest)
        return result

    def _note_down(self, result: ScanResult | PetsegError, scan: Scan, named: Scan, digest: str, attempt: str) -> str:
        """Deliver a result, or leave a note of a refusal, and say so in the journal; the state of the scan."""
        short = named.name if len(os.fsencode(named.name)) <= _LONGEST_NOTE else digest
        note = self.output / FAILURES / named.folder / f"{short}.json"
        if isinstance(result, ScanResult):
            if self.deliver is not None:
                self.deliver(result)
            note.unlink(missing_ok=True)
            self.journal.done(digest, attempt, file_sha256(result.files[-1]))
            return DONE
        if isinstance(result, _NOT_ITS_FAULT):
            self.journal.waits(digest, str(result))
            return TAKEN
        prepare_folder(note.parent)
        reason = str(result).encode(errors="replace").decode()  # it may hold a file's name that is not UTF-8
        write_json({"scan": scan.label, "error": reason, "exit_code": result.exit_code}, note)
        self.journal.failed(digest, reason, attempt)
        return FAILED


def _digest(scan: Scan) -> str:
    try:
        if not any(header.unreadable for header in scan.dicom):
            return scan.digests().scan
    except InputError:
        pass
    raise UsageError(f"{scan.name} cannot be read just now. It is taken up when it can.")


def _is_changed(scan: Scan) -> bool:
    try:
        scan.check_unchanged()
    except InputError:
        return True
    return False


def _other_results(names: list[str]) -> tuple[str, ...]:
    if not names:
        return ()
    others = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"This study was segmented before with other files than now, as {', '.join(names[-3:])}{others}: more of it "
        "came since, or it was sent anew. Use the results of one of them.",
    )


_ENDS_THE_PROCESS = InputError(
    f"{MOST_ATTEMPTS} times the process ended with this scan in hand, so it is passed over. Check its files."
)


_NO_UTF8 = InputError("Its name, or that of a folder that it lies in, is not valid UTF-8. Rename it.")


def _is_utf8(scan: Scan) -> bool:
    """Whether everybody can write its name: what Linux calls a file may be any bytes."""
    try:
        scan.label.encode()
    except UnicodeEncodeError:
        return False
    return True


TAKEN, DONE, FAILED = "taken", "done", "failed"


@dataclass(frozen=True)
class Entry:
    """What the journal says of a scan: its state, where its results are if it is done, or why it was refused.

    Attributes
    ----------
    reason : why it was refused, or what it waits for.
    record : SHA-256 of the record of its results; empty where it never had any.
    """

    state: str
    folder: Path
    name: str
    reason: str
    record: str


class Journal:
    """What became of each scan, by the digest of its files; on disk before a call returns."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS scans (digest TEXT PRIMARY KEY, folder TEXT NOT NULL, name TEXT, "
            "state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', changed TEXT NOT NULL, "
            "attempts INTEGER NOT NULL DEFAULT 0, attempt TEXT NOT NULL DEFAULT '', study TEXT NOT NULL, "
            "record TEXT NOT NULL DEFAULT '', newest INTEGER NOT NULL, UNIQUE (folder, name))"
        )

    @classmethod
    @contextmanager
    def opened(cls, path: Path) -> Iterator[Journal]:
        """The journal at `path`, for this process alone.

        Raises
        ------
        UsageError : if it cannot be read or written, or another process has it open.
        """
        with ExitStack() as held:
            try:
                lock = held.enter_context(path.with_suffix(".lock").open("w"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                journal = cls(held.enter_context(closing(sqlite3.connect(path, isolation_level=None))))
            except BlockingIOError as error:
                raise UsageError(
                    "Another petseg-run works into this output folder. Choose another --output."
                ) from error
            except (OSError, sqlite3.Error) as error:
                raise UsageError(
                    f"The journal {path.name} cannot be used: {error}. Check the output folder; without the journal "
                    "what is done is known by its results."
                ) from error
            yield journal

    def take(self, digest: str, scan: Scan, attempt: str, study: str, output: Path, marked: bool) -> tuple[Scan, str]:
        """A scan by the name and folder of its results, which no other scan's have, and its state; a new one is taken.

        So is one that failed with another model, version, budget or settings, which `attempt` stands for; or one that
        came again since it failed, or since it was done if that was another attempt or the results in `output` are
        gone. It came again if it is `marked`, or if its files are newer than those that were first seen there. `study`
        stays the same where more of its files come.
        """
        known = self._connection.execute(
            "SELECT name, state, folder, attempt, record, newest FROM scans WHERE digest = ?", (digest,)
        ).fetchone()
        newest, number = _newest_ns(scan), 0
        if known is not None:
            name, state, folder, before, record, newest_before = known
            is_there = folder == str(scan.folder)  # a copy elsewhere is not the same come again
            redo = marked or (is_there and newest > newest_before)
            if state == FAILED:
                redo = redo or before != attempt
            elif state == DONE and redo:
                found = _results_now(output / folder / f"{name}_run.json", record)
                redo = found == _GONE or (found == _WHOLE and before != attempt)
            if redo and (state == FAILED or (state == DONE and not is_there)):
                self._connection.execute("DELETE FROM scans WHERE digest = ?", (digest,))
                known = None
            elif state == DONE:
                state = TAKEN if redo else DONE
                self._connection.execute(
                    "UPDATE scans SET state = ?, reason = '', newest = ? WHERE digest = ?",
                    (state, newest if is_there else newest_before, digest),
                )
            known = known and (name or scan.name, folder, state)
        while known is None:
            # Digits alone may be the end of another scan's name.
            name = "-".join((scan.name, digest[:8], str(number))[: number + 1])
            try:
                self._connection.execute(
                    "INSERT INTO scans (digest, folder, name, state, changed, study, newest) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (digest, str(scan.folder), name, TAKEN, _now(), study, newest),
                )
                known = name, str(scan.folder), TAKEN
            except sqlite3.IntegrityError:  # the name is another's
                number += 1
        name, folder, state = known
        return replace(scan, name=name, folder=Path(folder)), state

    def done_of(self, study: str, but: str) -> list[str]:
        """The names of all results of a study but one, which differ in the files that had come; none without a UID."""
        if not study:
            return []
        found = self._connection.execute(
            "SELECT name FROM scans WHERE study = ? AND state = ? AND digest != ? ORDER BY changed, name",
            (study, DONE, but),
        )
        return [name for (name,) in found]

    def has_another(self, digest: str, scan: Scan) -> bool:
        """Whether the name and folder of this scan are another's."""
        query = "SELECT 1 FROM scans WHERE folder = ? AND name = ? AND digest != ?"
        return self._connection.execute(query, (str(scan.folder), scan.name, digest)).fetchone() is not None

    @staticmethod
    def look_up(path: Path, digest: str) -> Entry | None:
        """What the journal at `path` says of a scan, for anybody beside the process that keeps it.

        Raises
        ------
        UsageError : if there is a journal and it cannot be read.
        """
        if not path.exists():
            return None
        try:
            with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
                if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'scans'").fetchone():
                    return None  # the file is there a moment before its table
                found = connection.execute(
                    "SELECT state, folder, name, reason, record FROM scans WHERE digest = ?", (digest,)
                ).fetchone()
        except sqlite3.Error as error:
            raise UsageError(f"The journal {path.name} cannot be read: {error}.") from error
        if not found:
            return None
        state, folder, name, reason, record = found
        return Entry(state, Path(folder), name or "", reason, record)

    def begin(self, digest: str) -> int:
        """Note that a scan is taken in hand; how often it was since the process last survived that."""
        self._connection.execute("UPDATE scans SET attempts = attempts + 1 WHERE digest = ?", (digest,))
        found = self._connection.execute("SELECT attempts FROM scans WHERE digest = ?", (digest,)).fetchone()
        return int(found[0])

    def survived(self, digest: str) -> None:
        """Note that the process has not ended with the scan in hand."""
        self._connection.execute("UPDATE scans SET attempts = 0 WHERE digest = ?", (digest,))

    def done(self, digest: str, attempt: str, record: str) -> None:
        """Note that a scan's results are in their place, with a record of that SHA-256."""
        self._connection.execute(
            "UPDATE scans SET state = ?, reason = '', attempt = ?, record = ?, changed = ? WHERE digest = ?",
            (DONE, attempt, record, _now(), digest),
        )

    def waits(self, digest: str, reason: str) -> None:
        """Note what a scan that is taken waits for."""
        self._connection.execute("UPDATE scans SET reason = ? WHERE digest = ? AND state = ?", (reason, digest, TAKEN))

    def release(self, digest: str) -> None:
        """Have a scan be what it was before it was taken: done, or nothing that was ever heard of."""
        self._connection.execute("UPDATE scans SET state = ? WHERE digest = ? AND record != ''", (DONE, digest))
        self._connection.execute("DELETE FROM scans WHERE digest = ? AND record = ''", (digest,))

    def failed(self, digest: str, reason: str, attempt: str) -> None:
        """Note that a scan was refused. It has no results, so its name is free: for itself, when the rest has come."""
        self._connection.execute(
            "UPDATE scans SET state = ?, name = NULL, reason = ?, attempt = ?, changed = ? WHERE digest = ?",
            (FAILED, reason, attempt, _now(), digest),
        )


_WHOLE, _GONE, _CHANGED = "whole", "gone", "changed"


def _results_now(record: Path, sha256: str) -> str:
    """Whether the results of a scan are as the inbox wrote them, with a record of this SHA-256."""
    try:
        content = record.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            return _CHANGED
        fields = json.loads(content)
        digests = fields["sha256"]
        files = [record.with_name(name) for name in fields["outputs"]]
        if not all(file.exists() for file in files):
            return _GONE
        whole = all(file.name not in digests or file_sha256(file) == digests[file.name] for file in files)
    except OSError:
        return _GONE
    return _WHOLE if whole else _CHANGED


def _newest_ns(scan: Scan) -> int:
    """When the newest of a scan's files was written, by the clock of their disk."""
    newest = max((state.modified_ns for state in filter(None, map(file_state, scan.files))), default=0)
    return min(newest, 2**63 - 1)  # what SQLite holds


def _is_submitted(scan: Scan) -> bool:
    return scan.files[0].parent.parent.name == SUBMITTED


def _is_marked(scan: Scan) -> bool:
    return _is_submitted(scan) and os.path.exists(_again(scan))  # Path.exists raises where a share went away


def _again(scan: Scan) -> Path:
    return scan.files[0].parent / AGAIN


_Signature = tuple[str, FileState]


class _Arrivals:
    """The files of the inbox, how long each has been as it is, and which scans were dealt with.

    What counts is how long we have seen them, not the times they bear: a copy may bear the time of its original. What
    is left of a scan that was done is no other scan: somebody is removing it.
    """

    def __init__(self, inbox: Path, settle_s: float) -> None:
        self._inbox, self._settle_s = inbox, settle_s
        self.trouble = ""  # why nothing was found the last time
        self._since: dict[Hashable, tuple[frozenset[_Signature], float]] = {}
        self._headers: dict[_Signature, list[Header]] = {}
        self._rests_until: dict[frozenset[_Signature], float] = {}
        self._done: dict[Hashable, list[frozenset[tuple[str, int, int]]]] = {}

    def ready(self) -> list[tuple[Scan, frozenset[_Signature]]]:
        """Scans that are settled and new, each with what its files are now."""
        submitted, scans, self.trouble = list[Scan](), list[Scan](), ""
        try:
            submitted = self._submitted()
            scans = scans_in(self._inbox, self._read_headers)
        except (InputError, OSError) as error:  # a share that went away comes back
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            self.trouble = f"The inbox cannot be read just now, so what came into it waits: {reason}"
        now, before, ready = time.monotonic(), self._since, []
        self._since, seen = {}, set[_Signature]()
        for scan in (*submitted, *scans):
            signatures = _signatures(scan)
            seen |= signatures
            files, since = before.get(_study(scan), (signatures, now))
            since = since if files == signatures else now
            self._since[_study(scan)] = signatures, since
            settled = _is_submitted(scan) or now - since >= self._settle_s
            until = self._rests_until.get(signatures, now)
            rested = now >= until or (until == math.inf and _is_marked(scan))
            is_left = any(_lasting(signatures) < files for files in self._done.get(_study(scan), ()))
            if settled and rested and not is_left and len(signatures) == len(scan.files):
                ready.append((scan, signatures))
        self._headers = {signature: found for signature, found in self._headers.items() if signature in seen}
        if not self.trouble:  # a share that is away comes back
            self._rests_until = {files: end for files, end in self._rests_until.items() if files <= seen}
            self._done = {study: done for study, done in self._done.items() if study in self._since}
        return ready

    def _submitted(self) -> list[Scan]:
        folder = self._inbox / SUBMITTED
        return [
            replace(scan, folder=Path(SUBMITTED.lstrip(".")), name=submission.name)
            for submission in (sorted(folder.iterdir()) if folder.is_dir() else ())
            for scan in scans_in(submission, self._read_headers)
        ]

    def dealt_with(
        self, scan: Scan, signatures: frozenset[_Signature], again_after_s: float | None, done: bool
    ) -> None:
        """Leave a scan alone until one of its files changes, or for a while."""
        if done:
            self._done.setdefault(_study(scan), []).append(_lasting(signatures))
        self._rests_until[signatures] = math.inf if again_after_s is None else time.monotonic() + again_after_s

    def _read_headers(self, files: Iterable[Path]) -> list[Header]:
        from petseg_runtime.io.dicom import read_headers

        headers = []
        for file in files:
            signature = _signature(file)
            if signature is None:
                continue
            found = self._headers.get(signature)
            if found is None:
                found = read_headers([file])
            if not any(header.unreadable for header in found):
                self._headers[signature] = found
            headers += found
        return headers


def _study(scan: Scan) -> Hashable:
    """What stays the same of a scan while its files come and go; a submission is one by itself."""
    if _is_submitted(scan):
        return scan.name
    return _dicom_study(scan) or (scan.folder, scan.name, scan.image)


def _dicom_study(scan: Scan) -> tuple[str, str] | None:
    return next(((header.patient, header.study) for header in scan.dicom if header.sop_class), None)


def _study_digest(scan: Scan) -> str:
    """Tells a DICOM study from others, and nobody whose it is; empty of what has no UID: the next may be of another."""
    study = _dicom_study(scan)
    if study is None or not study[1]:
        return ""
    return hashlib.sha256(repr(study).encode("utf-8", "surrogateescape")).hexdigest()


def _signatures(scan: Scan) -> frozenset[_Signature]:
    """What the files of a scan are now; those that are gone are left out."""
    return frozenset(filter(None, map(_signature, scan.files)))


def _signature(file: Path) -> _Signature | None:
    state = file_state(file)
    return None if state is None else (str(file), state)


def _lasting(signatures: frozenset[_Signature]) -> frozenset[tuple[str, int, int]]:
    """What stays the same of files while others of their study are removed, also if those are links to them."""
    return frozenset((file, state.size, state.modified_ns) for file, state in signatures)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
