"""DICOM over the network: what is acknowledged lies in the inbox, and results reach the node they are sent to."""

from __future__ import annotations

import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from shutil import which
from threading import Event as Signal
from threading import Thread

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage
from pynetdicom.ae import ApplicationEntity
from pynetdicom.events import EVT_C_STORE, Event
from pynetdicom.presentation import AllStoragePresentationContexts, build_context
from runtime.dicom_factory import CT_IMAGE_STORAGE, PET_IMAGE_STORAGE, ct_series, pet_series, write
from runtime.watched import PATIENCE_S, Watched, save_dicom, wait_until

import petseg_runtime.serve.dicom as network
from petseg_runtime import Segmenter
from petseg_runtime.cli import main
from petseg_runtime.errors import UsageError
from petseg_runtime.io.scans import find_scans
from petseg_runtime.runner import RunSettings, ScanResult, run_scan
from petseg_runtime.serve.dicom import DicomNode, Outbox, checked_title, dicom_listener

HERE = "127.0.0.1"


def store(
    datasets: list[Dataset], port: int, title: str = "SCANNER", kind: str = PET_IMAGE_STORAGE
) -> list[int | None]:
    """Send as a scanner would; the status of each instance, or none where it was not accepted."""
    entity = ApplicationEntity(title)
    entity.add_requested_context(kind, ExplicitVRLittleEndian)
    association = entity.associate(HERE, port)
    if not association.is_established:
        return []
    try:
        return [association.send_c_store(dataset).get("Status") for dataset in datasets]
    finally:
        association.release()


@contextmanager
def archive(
    statuses: Callable[[], int] = lambda: 0, kinds: Sequence[str] = ()
) -> Iterator[tuple[DicomNode, list[Dataset]]]:
    """A node that takes any DICOM object, or these kinds only, and what it took."""
    taken: list[Dataset] = []

    def take(event: Event) -> int:
        status = statuses()
        if status == 0:
            taken.append(event.dataset)
        return status

    entity = ApplicationEntity("ARCHIVE")
    entity.supported_contexts = [build_context(kind) for kind in kinds] or AllStoragePresentationContexts
    server = entity.start_server((HERE, 0), block=False, evt_handlers=[(EVT_C_STORE, take)])
    assert server is not None
    try:
        yield DicomNode("ARCHIVE", HERE, server.server_address[1]), taken
    finally:
        entity.shutdown()


@pytest.fixture(scope="module")
def segmenter(known_model: Path) -> Segmenter:
    return Segmenter(known_model)


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    (tmp_path / "inbox").mkdir()
    with dicom_listener(tmp_path / "inbox", "PETSEG", HERE, 0) as port:
        yield tmp_path / "inbox", port


@pytest.mark.skipif(which("storescu") is None, reason="DCMTK is not installed")
def test_a_study_sent_by_dcmtk_is_segmented_and_its_results_reach_the_archive(
    tmp_path: Path, segmenter: Segmenter
) -> None:
    files = save_dicom(tmp_path / "study")
    with archive() as (node, taken):
        outbox = Outbox(node, "PETSEG")
        watched = Watched(tmp_path, segmenter, ("dicom-sr",), lambda result: outbox.send(result.files))
        with watched, dicom_listener(watched.inbox, "PETSEG", HERE, 0) as port:
            subprocess.run(["echoscu", "-aec", "PETSEG", HERE, str(port)], check=True)
            subprocess.run(["storescu", "-aec", "PETSEG", HERE, str(port), *map(str, files)], check=True)
            watched.wait_for(1)
    ((_, result),) = watched.reported
    assert isinstance(result, ScanResult)
    assert [dataset.Modality for dataset in taken] == ["SEG", "SR"]
    assert {dataset.StudyInstanceUID for dataset in taken} == {"1.2.3"}


def test_what_is_acknowledged_lies_in_the_inbox_as_it_was_sent(listening: tuple[Path, int]) -> None:
    inbox, port = listening
    series = pet_series()
    assert store(series, port) == [0] * len(series)
    received = {header.SOPInstanceUID: header for header in map(dcmread, inbox.rglob("*.dcm"))}
    assert received == {dataset.SOPInstanceUID: dataset for dataset in series}


def test_uids_choose_no_path(listening: tuple[Path, int]) -> None:
    inbox, port = listening
    hostile, harmless = pet_series()[:2]
    with warnings.catch_warnings(action="ignore"):  # pydicom warns whoever writes such a thing
        hostile.StudyInstanceUID = "../../outside"
        harmless.StudyInstanceUID = ".."
    assert store([hostile, harmless], port) == [0xA900, 0]
    (file,) = [path for path in inbox.parent.rglob("*") if path.is_file()]
    assert file.parent.parent == inbox
    assert file.parent.name.startswith("study-")


def test_an_instance_that_comes_twice_is_there_once(listening: tuple[Path, int]) -> None:
    inbox, port = listening
    series = pet_series()
    store(series, port)
    assert store(series, port) == [0] * len(series)
    assert len(list(inbox.rglob("*.dcm"))) == len(series)


def test_what_is_no_pet_is_not_accepted(listening: tuple[Path, int]) -> None:
    inbox, port = listening
    assert store(ct_series(1), port, kind=CT_IMAGE_STORAGE) == []
    assert list(inbox.iterdir()) == []


@pytest.mark.parametrize("lacking", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_an_instance_that_does_not_say_what_it_belongs_to_is_refused(lacking: str, listening: tuple[Path, int]) -> None:
    inbox, port = listening
    (instance,) = pet_series()[:1]
    delattr(instance, lacking)
    assert store([instance], port) == [0xA900]
    assert list(inbox.iterdir()) == []


def test_a_full_disk_is_told_to_the_sender(listening: tuple[Path, int], monkeypatch: pytest.MonkeyPatch) -> None:
    inbox, port = listening

    def full(*_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(network, "sync", full)
    assert store(pet_series()[:1], port) == [0xA700]
    assert not [path for path in inbox.rglob("*") if path.is_file()]


@pytest.mark.parametrize("bound", ["_MOST_BYTES", "_MOST_BYTES_OF_ALL"])
def test_an_endless_instance_ends_the_association(
    bound: str, listening: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox, port = listening
    monkeypatch.setattr(network, bound, 100_000)
    (instance, second) = pet_series()[:2]
    instance.add_new(0x7FE10010, "OB", bytes(2_000_000))
    entity = ApplicationEntity("SCANNER")
    entity.add_requested_context(PET_IMAGE_STORAGE, ExplicitVRLittleEndian)
    association = entity.associate(HERE, port)
    assert association.send_c_store(instance).get("Status") is None
    wait_until(lambda: association.is_aborted)
    assert not list(inbox.rglob("*.dcm"))
    assert store([second], port) == [0]


def test_a_whole_scan_in_one_instance_is_stored(listening: tuple[Path, int]) -> None:
    inbox, port = listening
    (instance,) = pet_series()[:1]
    instance.add_new(0x7FE10010, "OW", bytes(2 * 400 * 400 * 300))  # as an Enhanced PET of 300 slices has
    assert store([instance], port) == [0]
    (file,) = inbox.rglob("*.dcm")
    assert file.stat().st_size > 96_000_000


def test_a_peer_that_stalls_holds_up_neither_others_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "_TIMEOUT_S", 1.0)
    (tmp_path / "inbox").mkdir()
    with ExitStack() as peers, dicom_listener(tmp_path / "inbox", "PETSEG", HERE, 0) as port:
        for _ in range(network._MOST_ASSOCIATIONS + 1):
            stalled = peers.enter_context(socket.create_connection((HERE, port)))
            stalled.sendall(bytes([1, 0, 0, 0, 1, 0]))  # the header of an A-ASSOCIATE-RQ, and no more
        wait_until(lambda: store(pet_series()[:1], port) == [0])
        # Leaving the block is what hung.


def test_a_pdu_that_claims_gigabytes_ends_the_connection(listening: tuple[Path, int]) -> None:
    _, port = listening
    with socket.create_connection((HERE, port)) as peer:
        peer.sendall(bytes([1, 0, 0xFF, 0xFF, 0xFF, 0xFF]))
        peer.settimeout(30)
        assert peer.recv(1) == b""  # closed, though not a byte of it came


def test_only_named_callers_are_let_in(tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    with dicom_listener(tmp_path / "inbox", "PETSEG", HERE, 0, ["SCANNER", "PACS"]) as port:
        assert store(pet_series()[:1], port, "STRANGER") == []
        assert store(pet_series()[:1], port, "PACS") == [0]


def test_eight_senders_at_once_lose_nothing(listening: tuple[Path, int]) -> None:
    inbox, port = listening
    studies = [pet_series(study=f"1.2.{number}") for number in range(8)]
    statuses: list[int | None] = []
    threads = [Thread(target=lambda study=study: statuses.extend(store(study, port))) for study in studies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [0] * sum(map(len, studies))
    assert len(list(inbox.iterdir())) == 8
    assert len(list(inbox.rglob("*.dcm"))) == len(statuses)


def test_results_wait_for_an_archive_that_is_away(
    tmp_path: Path, segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("petseg_runtime.inbox.RETRY_S", 0.1)
    answers = iter([0xA700, 0xA700])
    with archive(lambda: next(answers, 0)) as (node, taken):
        outbox = Outbox(node, "PETSEG")
        watched = Watched(tmp_path, segmenter, ("dicom-seg",), lambda result: outbox.send(result.files))
        save_dicom(watched.inbox / "study")
        with watched:
            watched.wait_for(3)
    first, second, third = (outcome for _, outcome in watched.reported)
    assert isinstance(first, UsageError)
    assert "status A700" in str(first)
    assert isinstance(second, UsageError)
    assert isinstance(third, ScanResult)
    assert [dataset.Modality for dataset in taken] == ["SEG"]
    assert not (watched.output / "failed").exists()


def test_an_archive_that_takes_one_kind_only_is_sent_nothing(tmp_path: Path, segmenter: Segmenter) -> None:
    """Else it would get that kind again each time the rest is tried."""
    with archive(kinds=[SegmentationStorage]) as (node, taken):
        save_dicom(tmp_path / "study")
        settings = RunSettings(output=tmp_path / "out", output_types=("dicom-sr",))
        result = run_scan(find_scans(tmp_path / "study")[0], segmenter, settings)
        with pytest.raises(UsageError, match="does not take a Comprehensive 3D SR"):
            Outbox(node, "PETSEG").send(result.files)
    assert taken == []


def test_a_node_that_takes_none_of_the_kinds_is_not_called_unreachable(tmp_path: Path) -> None:
    with archive(kinds=[SegmentationStorage]) as (node, _):
        (file, *_) = [path.rename(path.with_suffix(".dcm")) for path in save_dicom(tmp_path)]  # PET images
        with pytest.raises(UsageError, match="takes none of the kinds of results"):
            Outbox(node, "PETSEG").send([file])


@pytest.mark.parametrize("host", [HERE, "no-such-host.invalid"])
def test_a_node_that_does_not_answer_is_said_and_asked_once_a_while(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with archive() as (node, _):
        pass
    (file, *_) = [path.rename(path.with_suffix(".dcm")) for path in save_dicom(tmp_path)]
    outbox = Outbox(replace(node, host=host), "PETSEG")
    with pytest.raises(UsageError, match="cannot be reached"):
        outbox.send([file])
    monkeypatch.setattr(network.ApplicationEntity, "associate", lambda *_, **__: pytest.fail("asked again at once"))
    with pytest.raises(UsageError, match="cannot be reached"):
        outbox.send([file])


def test_what_a_node_was_silent_at_waits_and_others_are_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_TIMEOUT_S", 0.5)
    (file, other, *_) = [path.rename(path.with_suffix(".dcm")) for path in save_dicom(tmp_path)]
    released = Signal()

    slow = [True]

    def silent() -> int:
        if slow.pop() if slow else False:
            released.wait(PATIENCE_S)
        return 0

    with archive(silent, kinds=[PET_IMAGE_STORAGE]) as (node, taken):
        outbox = Outbox(node, "PETSEG")
        with pytest.raises(UsageError, match="with nothing"):
            outbox.send([file])
        outbox.send([other])
        released.set()
        assert dcmread(other).SOPInstanceUID in [dataset.SOPInstanceUID for dataset in taken]
        monkeypatch.setattr(network.ApplicationEntity, "associate", lambda *_, **__: pytest.fail("asked again at once"))
        with pytest.raises(UsageError, match="was silent when it was sent these results"):
            outbox.send([file])


def test_a_host_that_no_name_can_be_is_said(tmp_path: Path) -> None:
    """Its encoding for the name service fails with a UnicodeError."""
    (file,) = write(pet_series()[:1], tmp_path)
    file = file.rename(file.with_suffix(".dcm"))
    with pytest.raises(UsageError, match="cannot be reached"):
        Outbox(DicomNode("PACS", "a..b", 104), "PETSEG").send([file])


def test_a_result_that_went_away_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        Outbox(DicomNode("PACS", HERE, 104), "PETSEG").send([tmp_path / "gone.dcm"])


@pytest.mark.parametrize("text", ["PACS", "PACS@host", "PACS@host:0", "PACS@host:99999", "@host:104", "A\\B@host:104"])
def test_what_is_no_node_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        DicomNode.parse(text)


def test_a_node_is_read() -> None:
    assert DicomNode.parse("PACS@[::1]:104") == DicomNode("PACS", "::1", 104)


@pytest.mark.parametrize("title", ["", "   ", "SEVENTEEN LETTERS", "A\\B", "Ä", "A\n"])
def test_what_is_no_title_is_refused(title: str) -> None:
    with pytest.raises(UsageError):
        checked_title(title)


def test_a_port_in_use_is_said(listening: tuple[Path, int]) -> None:
    inbox, port = listening
    with pytest.raises(UsageError, match="cannot be had"), dicom_listener(inbox, "PETSEG", HERE, port):
        pass


@pytest.mark.parametrize(
    "arguments",
    [
        ["--dicom-port", "99999"],
        ["--dicom-port", "0", "--dicom-title", "A\\B"],
        ["--dicom-port", "0", "--dicom-caller", ""],
        ["--send-to", "PACS", "--output-type", "dicom-seg"],
        ["--send-to", "PACS@127.0.0.1:104"],
        ["--http-port", "0", "--http-token-file", "absent"],
    ],
)
def test_options_of_the_network_are_checked(arguments: list[str], tmp_path: Path, known_model: Path) -> None:
    (tmp_path / "inbox").mkdir()
    command = [Path(sys.executable).with_name("petseg-run"), tmp_path / "inbox", "-o", tmp_path / "out", "--watch"]
    done = subprocess.run(
        [*map(str, command), "-q", "-m", str(known_model), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "option", [["--dicom-port", "0"], ["--http-port", "0"], ["--send-to", "A@127.0.0.1:104"], ["--settle", "3"]]
)
def test_services_are_for_an_inbox(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["scan.nii.gz", *option])
    assert "add --watch" in capsys.readouterr().err
