"""The HTTP service: what is submitted is done by the inbox, and only callers with the token see anything."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian
from runtime.dicom_factory import pet_series, write
from runtime.watched import Watched, put_scan, save_dicom, wait_until

import petseg_runtime.serve.http as service
from petseg_runtime import Segmenter
from petseg_runtime.errors import InputError, UsageError
from petseg_runtime.inbox import JOURNAL
from petseg_runtime.io.dicom import read_headers
from petseg_runtime.io.scans import scans_in
from petseg_runtime.runner import ScanResult
from petseg_runtime.serve.http import application, http_service, read_token, unpack

TOKEN = "a-token-that-nobody-guesses"
MODEL = {"name": "known", "version": "1", "sha256": "0" * 64}


class Client:
    """Asks as other software would; the status and the body of each answer."""

    def __init__(self, port: int) -> None:
        self.port, self._base = port, f"http://127.0.0.1:{port}"

    def ask(self, path: str, body: bytes | None = None, token: str = TOKEN) -> tuple[int, bytes]:
        request = Request(self._base + path, data=body, headers={"Authorization": f"Bearer {token}"} if token else {})
        try:
            with urlopen(request, timeout=30) as answer:
                return answer.status, answer.read()
        except HTTPError as error:
            with error:
                return error.code, error.read()

    def submit(self, body: bytes, form: str = "nii.gz") -> dict:
        status, answer = self.ask(f"/scans?format={form}", body)
        assert status == 202, answer
        return json.loads(answer)

    def state(self, identifier: str) -> dict:
        status, answer = self.ask(f"/scans/{identifier}")
        assert status == 200, answer
        return json.loads(answer)

    def done(self, identifier: str) -> dict:
        wait_until(lambda: self.state(identifier)["state"] != "waiting")
        return self.state(identifier)


@pytest.fixture(scope="module")
def segmenter(known_model: Path) -> Segmenter:
    return Segmenter(known_model)


@pytest.fixture
def watched(tmp_path: Path, segmenter: Segmenter) -> Watched:
    return Watched(tmp_path, segmenter)


@pytest.fixture
def client(watched: Watched) -> Iterator[Client]:
    with http_service(application(watched.inbox, watched.output, TOKEN, MODEL), "127.0.0.1", 0) as port:
        yield Client(port)


@pytest.fixture
def scan(tmp_path: Path) -> bytes:
    return put_scan(tmp_path / "elsewhere.nii.gz").read_bytes()


def zipped(folder: Path, files: list[Path]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for file in files:
            archive.write(file, file.relative_to(folder))
    return content.getvalue()


def test_a_scan_is_submitted_done_and_fetched(client: Client, watched: Watched, scan: bytes) -> None:
    submitted = client.submit(scan)
    assert submitted["state"] == "waiting"
    with watched:
        state = client.done(submitted["id"])
    assert state["state"] == "done"
    assert state["statistics"]["lesion_count"] == 1
    status, archive = client.ask(f"/scans/{state['id']}/result")
    assert status == 200
    with zipfile.ZipFile(io.BytesIO(archive)) as result:
        assert (
            result.namelist() == state["outputs"] == [f"{state['id']}{end}" for end in ("_petseg.nii.gz", "_run.json")]
        )
        mask = result.read(state["outputs"][0])
    assert mask == (watched.output / "submitted" / state["outputs"][0]).read_bytes()


def test_clients_that_ask_for_nothing_are_dropped(
    client: Client, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(service, "_PATIENCE_S", 0.3)
    idle = socket.create_connection(("127.0.0.1", client.port))
    started = socket.create_connection(("127.0.0.1", client.port))
    started.sendall(b"GET /health HTTP/1.1\r\n")
    trickling = socket.create_connection(("127.0.0.1", client.port))
    trickling.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nG")  # and then a second one, that never comes whole
    assert b"200 OK" in trickling.recv(4096)
    pausing = socket.create_connection(("127.0.0.1", client.port))
    head = (
        f"POST /scans?format=nii HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 99\r\n\r\nab"
    )
    pausing.sendall(head.encode())
    for silent in (idle, started, trickling, pausing):
        silent.settimeout(20)
        while silent.recv(4096):
            pass
        silent.close()
    monkeypatch.setattr(service, "_PATIENCE_S", 30.0)
    crowd = [socket.create_connection(("127.0.0.1", client.port)) for _ in range(service._MOST_CLIENTS + 5)]
    crowd[-1].settimeout(20)
    assert crowd[-1].recv(1) == b""
    for one in crowd:
        one.close()
    wait_until(lambda: _answers(client))
    assert capfd.readouterr() == ("", "")


def _answers(client: Client) -> bool:
    try:
        return client.ask("/health", token="")[0] == 200
    except OSError:
        return False


def test_a_deflated_bomb_is_refused_before_it_fills_the_memory(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("petseg_runtime.io.dicom_header._MOST_INFLATED", 2**20)
    slices = pet_series()
    for one in slices:
        one.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        one.add_new(0x00204000, "UT", "x" * 2**21)  # comes before the pixels
    files = write(slices, tmp_path / "bomb")
    status, answer = client.ask("/scans?format=dicom.zip", zipped(tmp_path, files))
    assert max(file.stat().st_size for file in files) < 2**16
    assert status == 202, answer  # damaged slices are refused by the inbox, one line each
    assert all("cannot be read as DICOM" in header.damage for header in read_headers(files))
    for file in files[:1]:  # neither a wrong length of the group nor a missing preamble walks round it
        content = file.read_bytes()
        file.write_bytes(content[:140] + b"\xff\xff\xff\x7f" + content[144:])
        assert "cannot be read as DICOM" in read_headers([file])[0].damage
        file.write_bytes(content[132:])
        assert not read_headers([file]) or read_headers([file])[0].damage
        file.write_bytes(content)
    monkeypatch.setattr("petseg_runtime.io.dicom_header._MOST_INFLATED", 2**23)
    assert not any(header.damage for header in read_headers(files))
    files[0].write_bytes(content[:132] + content[144:])  # sound, but for the length of the group
    assert not read_headers(files[:1])[0].damage


def test_a_dicom_study_comes_as_an_archive(client: Client, watched: Watched, tmp_path: Path) -> None:
    files = save_dicom(tmp_path / "study")
    submitted = client.submit(zipped(tmp_path, files), "dicom.zip")
    part = client.submit(zipped(tmp_path, files[:-2]), "dicom.zip")  # the same study, but not all of it
    with watched:
        assert client.done(submitted["id"])["statistics"]["unit"] == "suvbw"
        refused = client.done(part["id"])
    assert refused["state"] == "failed"
    assert "Pass the whole series" in refused["error"]
    assert client.ask(f"/scans/{part['id']}/result")[0] == 409


def test_the_same_scan_is_the_same_id_and_is_done_once(client: Client, watched: Watched, scan: bytes) -> None:
    first = client.submit(scan)
    assert client.submit(scan) == first
    with watched:
        client.done(first["id"])
        client.submit(scan)
        assert client.done(first["id"])["state"] == "done"
    assert len(watched.reported) == 1


def test_a_restart_forgets_nothing(watched: Watched, scan: bytes) -> None:
    app = application(watched.inbox, watched.output, TOKEN, MODEL)
    with http_service(app, "127.0.0.1", 0) as port:
        identifier = Client(port).submit(scan)["id"]
    with watched:
        watched.wait_for(1)
    with http_service(application(watched.inbox, watched.output, TOKEN, MODEL), "127.0.0.1", 0) as port:
        assert Client(port).state(identifier)["state"] == "done"


@pytest.mark.parametrize("token", ["", "a-token-that-nobody-guessed"])
@pytest.mark.parametrize("path", ["/scans/" + "0" * 64, "/scans/" + "0" * 64 + "/result", "/scans?format=nii"])
def test_without_the_token_there_is_nothing_to_see(client: Client, watched: Watched, path: str, token: str) -> None:
    status, _ = client.ask(path, b"scan" if "format" in path else None, token)
    assert status in (401, 403)
    assert not list((watched.inbox / ".submitted").iterdir())


def test_health_and_the_openapi_document_need_no_token(client: Client) -> None:
    status, answer = client.ask("/health", token="")
    assert status == 200
    assert json.loads(answer)["model"] == MODEL
    status, answer = client.ask("/openapi.json", token="")
    assert set(json.loads(answer)["paths"]) == {
        "/health",
        "/scans",
        "/scans/{identifier}",
        "/scans/{identifier}/result",
    }


@pytest.mark.parametrize("identifier", ["0" * 64, "..%2f..%2fpasswd", "x"])
def test_an_unknown_id_is_not_found(client: Client, identifier: str) -> None:
    assert client.ask(f"/scans/{identifier}")[0] == 404
    assert client.ask(f"/scans/{identifier}/result")[0] == 404


def test_names_in_an_archive_choose_no_path(client: Client, watched: Watched, tmp_path: Path) -> None:
    file = save_dicom(tmp_path / "study")[0]
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in ("../../../outside", "/absolute", "a/../../b"):
            archive.writestr(name, file.read_bytes())
    before = set(tmp_path.rglob("*"))
    identifier = client.submit(content.getvalue(), "dicom.zip")["id"]
    new = set(tmp_path.rglob("*")) - before
    assert {path.relative_to(watched.inbox).parts[:2] for path in new} == {(".submitted", identifier)}


@pytest.mark.parametrize("body", [b"", b"no archive at all", zipfile.BadZipFile.__name__.encode() * 100])
def test_what_is_no_archive_is_refused(client: Client, watched: Watched, body: bytes) -> None:
    status, answer = client.ask("/scans?format=dicom.zip", body)
    assert status == 422
    assert b"ZIP" in answer
    assert sorted(path.name for path in watched.inbox.iterdir()) == [".submitted"]


def test_a_note_in_the_archive_does_not_stop_the_slices(client: Client, watched: Watched, tmp_path: Path) -> None:
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "README.txt").write_text("made by an archive of images")
    save_dicom(tmp_path / "series")
    files = sorted((tmp_path / "series").iterdir())
    submitted = client.submit(zipped(tmp_path / "series", files), "dicom.zip")
    with watched:
        assert client.done(submitted["id"])["state"] == "done"


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_archive_or_one_that_unpacks_without_limit_is_refused(client: Client, method: int) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        archive.writestr("slice", bytes(range(256)) * 1000)
    damaged = bytearray(content.getvalue())
    damaged[60:80] = bytes(20)
    for body in (bytes(damaged), content.getvalue()):
        status, answer = client.ask("/scans?format=dicom.zip", body)
        assert status == 422
        assert b"whole" not in answer


def test_an_archive_that_points_before_its_beginning_is_refused(client: Client) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("slice", b"content")
    body = content.getvalue()
    directory = body.rfind(b"PK\x05\x06") + 16  # APPNOTE.TXT 4.3.16: offset of start of central directory
    status, answer = client.ask("/scans?format=dicom.zip", body[:directory] + b"\xff\xff\0\0" + body[directory + 4 :])
    assert status == 422
    assert b"not a ZIP archive that can be unpacked" in answer


def test_an_archive_of_an_old_windows_is_what_it_packed(client: Client, tmp_path: Path) -> None:
    """.NET before 4.6.1 wrote backslashes, and so no directory that ends in a slash."""
    files = save_dicom(tmp_path / "study")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("study2024\\", b"")
        for file in files:
            archive.write(file, f"study2024\\{file.name}")
    plain = client.submit(zipped(tmp_path, files), "dicom.zip")
    assert client.submit(content.getvalue(), "dicom.zip")["id"] == plain["id"]


def test_a_file_without_a_name_does_not_stop_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        archive.writestr("slice", b"content")
        archive.writestr("QQQ", b"nameless")
    named = (tmp_path / "study.zip").read_bytes()
    (tmp_path / "study.zip").write_bytes(named.replace(b"QQQ", b"\0QQ"))
    (tmp_path / "unpacked").mkdir()
    unpack(tmp_path / "study.zip", tmp_path / "unpacked")
    assert [file.read_bytes() for file in (tmp_path / "unpacked").iterdir()] == [b"content"]


def test_an_upload_that_ends_early_leaves_nothing(client: Client, watched: Watched, capfd) -> None:
    with socket.create_connection(("127.0.0.1", client.port)) as peer:
        head = f"POST /scans?format=nii HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 1000"
        peer.sendall(f"{head}\r\n\r\nbeginning".encode())
        wait_until(lambda: len(list(watched.inbox.iterdir())) == 2)
    wait_until(lambda: [path.name for path in watched.inbox.iterdir()] == [".submitted"])
    with socket.create_connection(("127.0.0.1", client.port)) as peer:
        peer.sendall(b"no HTTP at all\r\n\r\n")
        peer.recv(1)
    assert capfd.readouterr().err == ""


def test_an_archive_of_no_or_two_studies_is_refused(client: Client, tmp_path: Path) -> None:
    assert client.ask("/scans?format=dicom.zip", zipped(tmp_path, []))[0] == 422
    files = [*save_dicom(tmp_path / "a", "1.2.3"), *save_dicom(tmp_path / "b", "1.2.4")]
    status, answer = client.ask("/scans?format=dicom.zip", zipped(tmp_path, files))
    assert status == 422
    assert b"2 scans" in answer or b"2 studies" in answer


def test_an_unknown_format_is_refused(client: Client, scan: bytes) -> None:
    assert client.ask("/scans?format=jpeg", scan)[0] == 422


def test_too_much_is_refused(client: Client, watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MOST_BYTES", 1000)
    assert client.ask("/scans?format=nii", bytes(1001))[0] == 413
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(100_000))
    assert len(bomb.getvalue()) < 1000
    assert client.ask("/scans?format=dicom.zip", bomb.getvalue())[0] == 413
    assert sorted(path.name for path in watched.inbox.iterdir()) == [".submitted"]


def test_a_scan_waits_while_the_journal_is_being_made(client: Client, watched: Watched, scan: bytes) -> None:
    identifier = client.submit(scan)["id"]
    watched.output.mkdir(exist_ok=True)
    (watched.output / JOURNAL).touch()  # as SQLite leaves it until the first table is written
    assert client.state(identifier)["state"] == "waiting"


def test_a_journal_that_cannot_be_read_is_said(client: Client, watched: Watched, scan: bytes) -> None:
    identifier = client.submit(scan)["id"]
    watched.output.mkdir(exist_ok=True)
    assert client.ask("/health", token="")[0] == 200
    (watched.output / JOURNAL).write_text("no journal, but some text that is long enough for a header" * 40)
    assert client.ask(f"/scans/{identifier}")[0] == 503
    assert client.ask("/health", token="")[0] == 503


def test_results_that_were_removed_are_gone(client: Client, watched: Watched, scan: bytes) -> None:
    identifier = client.submit(scan)["id"]
    with watched:
        client.done(identifier)
        for file in (watched.output / "submitted").iterdir():
            file.unlink()
        assert client.ask(f"/scans/{identifier}")[0] == 410
        assert client.submit(scan) == {"id": identifier, "state": "waiting"}
        assert client.done(identifier)["state"] == "done"
        for file in [*(watched.output / "submitted").iterdir(), *(watched.inbox / ".submitted" / identifier).iterdir()]:
            file.unlink()  # the submission too, but for its folder
        client.submit(scan)
        assert client.done(identifier)["state"] == "done"
        os.utime(next((watched.inbox / ".submitted" / identifier).iterdir()), (4e9, 4e9))  # of a clock that is ahead
        assert client.state(identifier)["state"] == "done"


def test_marks_and_hidden_files_in_an_archive_are_no_slices(client: Client, tmp_path: Path) -> None:
    """Unpacked, each is called by its digest: an empty one was a blank slice, and the study refused."""
    files = save_dicom(tmp_path / "study")
    marks = [tmp_path / "study" / name for name in ("COMPLETE", ".IM0001", "lock", ".Trash-1/IM5", "lost+found/IM1")]
    for mark in marks:
        mark.parent.mkdir(exist_ok=True)
        mark.write_bytes(bytes(512) if mark.name == "lock" else b"")
    plain, marked = (zipped(tmp_path, several) for several in (files, [*files, *marks]))
    assert client.submit(marked, "dicom.zip")["id"] == client.submit(plain, "dicom.zip")["id"]


@pytest.mark.parametrize("top", ["..", ".made", "study", "../.made/study"])
def test_the_folder_that_an_archive_was_made_of_may_be_called_anything(
    top: str, client: Client, tmp_path: Path
) -> None:
    """`zip -r` keeps the dots of ../study."""
    files, hidden = save_dicom(tmp_path / "study"), save_dicom(tmp_path / "hidden", study="1.2.4")[0]
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for file in files:
            archive.write(file, f"{top}/{file.name}")
        archive.write(hidden, f"{top}/.hidden/IM1")
    plain = client.submit(zipped(tmp_path, files), "dicom.zip")
    assert client.submit(content.getvalue(), "dicom.zip")["id"] == plain["id"]


def test_slices_without_a_preamble_have_one_id_whatever_they_are_called(client: Client, tmp_path: Path) -> None:
    files = save_dicom(tmp_path / "study")
    for file in files:
        file.write_bytes(file.read_bytes()[132:])
    renamed = [file.rename(file.with_name(f"{file.name}.dcm")) for file in save_copies(files, tmp_path / "other")]
    one, other = (client.submit(zipped(tmp_path, several), "dicom.zip") for several in (files, renamed))
    assert one["id"] == other["id"]


def save_copies(files: list[Path], folder: Path) -> list[Path]:
    folder.mkdir()
    return [Path(shutil.copy(file, folder)) for file in files]


@pytest.mark.parametrize("suffix", ["", ".dcm", ".v2"])
@pytest.mark.parametrize(
    "name", ["last.dcm", "last.IMA", "IM0099", "IM0099.dcm", "IM0099.v2", "notes2.txt", "done_2024", "last_seg.dcm"]
)
@pytest.mark.parametrize("content", [b"", bytes(512), b"half a slice"])
def test_a_damaged_slice_in_an_archive_refuses_its_study_as_in_a_folder(
    content: bytes, name: str, suffix: str, tmp_path: Path
) -> None:
    files = [file.rename(file.with_name(f"{file.name}{suffix}")) for file in save_dicom(tmp_path / "study")]
    other = tmp_path / "study" / name
    other.write_bytes(content)
    in_folder, in_archive = tmp_path / "study", tmp_path / "unpacked"
    in_archive.mkdir()
    (tmp_path / "study.zip").write_bytes(zipped(tmp_path, [*files, other]))
    unpack(tmp_path / "study.zip", in_archive)
    (one,), (same,) = (scans_in(folder) for folder in (in_folder, in_archive))
    assert sum(bool(header.damage) for header in one.dicom) == sum(bool(header.damage) for header in same.dicom)


def test_a_study_with_a_damaged_slice_fails(client: Client, watched: Watched, tmp_path: Path) -> None:
    files = save_dicom(tmp_path / "study")
    files[-1].write_bytes(b"")
    identifier = client.submit(zipped(tmp_path, files), "dicom.zip")["id"]
    with watched:
        watched.wait_for(1)
    ((_, outcome),) = watched.reported
    assert isinstance(outcome, InputError)
    assert client.state(identifier)["state"] == "failed"


def test_what_was_partly_removed_is_put_back_where_it_is_submitted_again(
    client: Client, watched: Watched, tmp_path: Path
) -> None:
    archive = zipped(tmp_path, save_dicom(tmp_path / "study"))
    identifier = client.submit(archive, "dicom.zip")["id"]
    place = watched.inbox / ".submitted" / identifier
    with watched:
        assert client.done(identifier)["state"] == "done"
        for file in (*sorted(place.iterdir())[:1], *watched.output.rglob(f"{identifier}*")):
            file.unlink()
        client.submit(archive, "dicom.zip")
        assert client.done(identifier)["state"] == "done"
    assert client.ask(f"/scans/{identifier}/result")[0] == 200


def test_a_scan_that_first_came_as_a_file_is_done_again_where_it_is_submitted(
    client: Client, watched: Watched, scan: bytes
) -> None:
    (watched.inbox / "scan.nii.gz").write_bytes(scan)  # the name that a submission has
    with watched:
        watched.wait_for(1)
        identifier = client.submit(scan)["id"]
        assert client.done(identifier)["folder"] == "."
        for file in watched.output.glob("scan_*"):
            file.unlink()
        client.submit(scan)
        assert client.done(identifier)["folder"] == "submitted"
        (watched.inbox / ".submitted" / identifier / ".again").touch()
        (watched.inbox / ".submitted" / identifier / "scan.nii.gz").unlink()  # nobody will see that mark
        client.submit(scan)
        assert client.done(identifier)["state"] == "done"


@pytest.fixture
def done(client: Client, watched: Watched, scan: bytes) -> tuple[str, Path, Path]:
    """A scan that is done: its id, its mask and its record."""
    identifier = client.submit(scan)["id"]
    with watched:
        state = client.done(identifier)
    mask, record = (watched.output / "submitted" / name for name in state["outputs"])
    return identifier, mask, record


def test_a_result_that_another_run_replaced_or_somebody_changed_is_not_given_out(
    client: Client, done: tuple[str, Path, Path]
) -> None:
    identifier, mask, record = done
    sound = mask.read_bytes()
    mask.write_bytes(sound[:-10])
    assert client.ask(f"/scans/{identifier}/result")[0] == 410
    mask.write_bytes(sound)
    assert client.ask(f"/scans/{identifier}/result")[0] == 200
    record.write_text(record.read_text() + "\n")
    for path in (f"/scans/{identifier}", f"/scans/{identifier}/result"):
        status, answer = client.ask(path)
        assert status == 410
        assert b"changed, or are another scan's" in answer


def test_what_failed_is_tried_again_when_it_is_submitted_again(
    client: Client, watched: Watched, scan: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    identifier = client.submit(scan)["id"]
    with watched:
        with monkeypatch.context() as patch:
            patch.setattr("petseg_runtime.inbox.run_scan", _out_of_memory)
            assert "memory" in client.done(identifier)["error"]
        assert client.state(identifier)["state"] == "failed"
        client.submit(scan)
        assert client.done(identifier)["state"] == "done"


def _out_of_memory(*_: object) -> ScanResult:
    raise MemoryError


def test_a_scan_says_what_it_waits_for_and_a_result_by_what_it_was_found(
    tmp_path: Path, segmenter: Segmenter, scan: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("petseg_runtime.inbox.RETRY_S", 0.2)
    away = [True]

    def deliver(_: ScanResult) -> None:
        if away[0]:
            raise UsageError("The archive is away. The results wait.")

    watched = Watched(tmp_path, segmenter, deliver=deliver)
    app = application(watched.inbox, watched.output, TOKEN, MODEL)
    with http_service(app, "127.0.0.1", 0) as port, watched:
        client = Client(port)
        identifier = client.submit(scan)["id"]
        waiting = {"id": identifier, "state": "waiting", "waiting_for": "The archive is away. The results wait."}
        wait_until(lambda: client.state(identifier) == waiting)
        away[0] = False
        done = client.done(identifier)
    assert done["model"]["sha256"] == segmenter.model_sha256
    assert done["settings"]["threshold"] == segmenter.manifest.threshold


def test_an_upload_without_content_or_with_too_much_announced_is_refused_at_once(client: Client) -> None:
    assert client.ask("/scans?format=nii.gz", b"")[0] == 422
    with socket.create_connection(("127.0.0.1", client.port)) as peer:
        head = f"POST /scans?format=nii HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        peer.sendall(f"{head}Content-Length: {10**15}\r\n\r\n".encode())
        assert b"413" in peer.recv(4096)


def test_a_client_that_takes_no_answers_is_dropped(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_PATIENCE_S", 0.5)
    with socket.create_connection(("127.0.0.1", client.port)) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.settimeout(20)
        with suppress(ConnectionError):  # a reset or a broken pipe, as it comes; a timeout fails
            while True:
                deaf.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 100)


def test_a_client_that_takes_no_last_answer_is_dropped(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service has closed then, and closing by itself would wait for the client without end."""
    monkeypatch.setattr(service, "_PATIENCE_S", 0.5)
    monkeypatch.setattr(service, "_SEND_BUFFER_BYTES", 4096)  # so that the answers wait in the service
    app = application(watched.inbox, watched.output, TOKEN, MODEL)
    with http_service(app, "127.0.0.1", 0) as port, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", port))
        ask = "GET /openapi.json HTTP/1.1\r\nHost: x\r\n"
        deaf.sendall((f"{ask}\r\n" * 8 + f"{ask}Connection: close\r\n\r\n").encode())
        wait_until(lambda: _is_refused(deaf))


def _is_refused(connection: socket.socket) -> bool:
    try:
        connection.send(b"\n")
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize("content", [b"", b"short", b"with a space in it, and long", b"\xff" * 40])
def test_a_token_must_be_hard_to_guess(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(UsageError, match="token"):
        read_token(tmp_path / "token")


def test_a_token_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_token(tmp_path / "token")


def test_a_port_in_use_is_said(watched: Watched) -> None:
    app = application(watched.inbox, watched.output, TOKEN, MODEL)
    taken = http_service(app, "127.0.0.1", 0)
    with taken as port, pytest.raises(UsageError, match="cannot be had"), http_service(app, "127.0.0.1", port):
        pass


def test_the_command_wants_a_token(tmp_path: Path, known_model: Path) -> None:
    (tmp_path / "inbox").mkdir()
    command = [Path(sys.executable).with_name("petseg-run"), tmp_path / "inbox", "-o", tmp_path / "out", "--watch"]
    done = subprocess.run(
        [*map(str, command), "-q", "-m", str(known_model), "--http-port", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "--http-token-file" in done.stderr
