"""DICOM over the network: PET instances that are sent here go into the inbox, and results to another node.

Nothing that a peer sends chooses a path: UIDs become digests.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any, Self

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.events import EVT_C_STORE, EVT_CONN_CLOSE, EVT_CONN_OPEN, EVT_DATA_RECV, EVT_DIMSE_SENT, Event

from petseg_runtime.errors import UsageError
from petseg_runtime.io.dicom_elements import Elements
from petseg_runtime.io.dicom_header import ENHANCED_PET_STORAGE, PET_IMAGE_STORAGE
from petseg_runtime.outputs.files import prepare_folder, remove_leavings, sync, whole_file

VERIFICATION = "1.2.840.10008.1.1"

# Those that `io.dicom_pixels` reads, but for the deflated one, which a few bytes can make into gigabytes. A sender with
# others converts, or is told at once.
_TRANSFER_SYNTAXES = [
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    RLELossless,
    JPEGLosslessSV1,
    JPEGLossless,
    JPEGLSLossless,
    JPEG2000Lossless,
]

# StudyInstanceUID, SeriesInstanceUID, SOPInstanceUID.
_UIDS = (0x0020000D, 0x0020000E, 0x00080018)
_UID = re.compile(r"[0-9.]{1,64}")

# Status of a C-STORE (PS3.4 table B.2-1).
_STORED, _OUT_OF_RESOURCES, _NOT_A_PET_IMAGE, _CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xA900, 0xC000

_MOST_ASSOCIATIONS = 64
# Received, and held in the memory twice, until we answer: of one association, and of all. A PET slice has below one
# MiB, but an Enhanced PET has all of a scan, as of 400 x 400 x 1,500 voxels.
_MOST_BYTES, _MOST_BYTES_OF_ALL = 2**29, 2**31
# We ask for PDUs of 16 KiB.
_MOST_PDU_BYTES = 2**20
_TIMEOUT_S = 30.0
# A node that takes an association and then says nothing costs the scans behind it the time out. So what it was silent
# at waits for so long, each time twice as long; others are sent: it may be one that it is slow to store.
_STALLED_S, _LONGEST_WAIT_S = 300.0, 3600.0


@dataclass(frozen=True)
class DicomNode:
    """Another system: application entity title, host and port."""

    title: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """From "TITLE@HOST:PORT".

        Raises
        ------
        UsageError : if it is none.
        """
        match = re.fullmatch(r"([^@]+)@(.+):(\d{1,5})", text)
        if match is None or not 0 < int(match[3]) < 65536:
            raise UsageError(f"{text!r} is not a DICOM node, expected TITLE@HOST:PORT such as PACS@10.0.0.7:104.")
        return cls(checked_title(match[1]), match[2].strip("[]"), int(match[3]))

    def __str__(self) -> str:
        return f"{self.title}@{self.host}:{self.port}"


def checked_title(title: str) -> str:
    """An application entity title (PS3.5 table 6.2-1, VR AE) without the spaces around it.

    Raises
    ------
    UsageError : if it is none.
    """
    stripped = title.strip(" ")
    if not re.fullmatch(r"[ -\[\]-~]{1,16}", stripped):
        raise UsageError(f"{title!r} is not an application entity title: 1 to 16 ASCII characters, no backslash.")
    return stripped


@contextmanager
def dicom_listener(inbox: Path, title: str, address: str, port: int, callers: Sequence[str] = ()) -> Iterator[int]:
    """Take PET instances over DICOM, in threads, while the block runs; yields the port.

    An instance is answered as stored when it lies in the inbox, on disk.

    Parameters
    ----------
    title : our own; peers may call us by any.
    port : 0 for any that is free.
    callers : titles of the peers that may associate; all where empty.

    Raises
    ------
    UsageError : if a title is none, or the port cannot be had.
    """
    entity = _application_entity(title)
    entity.maximum_associations = _MOST_ASSOCIATIONS
    entity.require_calling_aet = [checked_title(caller) for caller in callers]
    entity.add_supported_context(VERIFICATION)
    entity.add_supported_context(PET_IMAGE_STORAGE, _TRANSFER_SYNTAXES)
    for enhanced in sorted(ENHANCED_PET_STORAGE):  # of which the uncompressed are read
        entity.add_supported_context(enhanced, _TRANSFER_SYNTAXES[:2])
    prepare_folder(inbox)
    for study in inbox.glob("study-*/"):
        remove_leavings(study)
    flow = _Flow()
    handlers: list[Any] = [
        (EVT_CONN_OPEN, _bound),
        (EVT_C_STORE, lambda event: _store(event, inbox)),
        (EVT_DATA_RECV, flow.received),
        (EVT_DIMSE_SENT, flow.answered),
        (EVT_CONN_CLOSE, flow.answered),
    ]
    try:
        server = entity.start_server((address, port), block=False, evt_handlers=handlers)
    except (OSError, OverflowError) as error:
        raise UsageError(f"Port {port} of {address} cannot be had: {error}. Choose another --dicom-port.") from error
    try:
        yield server.server_address[1]  # type: ignore[union-attr]  # not None, as it does not block
    finally:
        entity.shutdown()


class Outbox:
    """Sends results to a node. One that does not answer is left alone for a while, so that nobody has to wait for it.

    Parameters
    ----------
    title : our own.
    """

    def __init__(self, node: DicomNode, title: str) -> None:
        self._node, self._title = node, title
        self._again_from = 0.0
        self._silent_at: dict[Path, tuple[float, float]] = {}  # for how long these results wait, and until when

    def send(self, files: Sequence[Path]) -> None:
        """Send the DICOM files among the results of a scan.

        Raises
        ------
        UsageError : if they cannot be read, the node cannot be reached, or it does not take one of them.
        """
        try:
            datasets = [pydicom.dcmread(file) for file in files if file.suffix == ".dcm"]
        except (OSError, InvalidDicomError, AttributeError) as error:
            raise UsageError("A result cannot be read any more, and was not sent.") from error
        if not datasets:
            return
        waited_s, until = self._silent_at.get(files[-1], (_STALLED_S / 2, 0.0))
        if monotonic() < until:
            raise UsageError(f"{self._node} was silent when it was sent these results. They wait.")
        entity = _application_entity(self._title)
        for kind, syntax in {(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID) for dataset in datasets}:
            entity.add_requested_context(kind, syntax)
        association = self._associate(entity)
        try:
            # All or nothing: what it has taken of a scan would be sent again each time the rest is tried.
            accepted = {context.abstract_syntax for context in association.accepted_contexts}
            for dataset in datasets:
                if dataset.SOPClassUID not in accepted:
                    raise UsageError(f"{self._node} does not take a {dataset.SOPClassUID.name}. The results wait.")
            for dataset in datasets:
                _send_one(association, dataset, self._node)
            self._silent_at.pop(files[-1], None)
        except UsageError:
            if not association.is_established:  # it was silent until we gave it up
                wait_s = min(2 * waited_s, _LONGEST_WAIT_S)
                self._silent_at[files[-1]] = wait_s, monotonic() + wait_s
            raise
        finally:
            association.release()

    def _associate(self, entity: ApplicationEntity) -> Association:
        node, association = self._node, None
        if monotonic() >= self._again_from:
            with suppress(OSError, UnicodeError):  # a host that has no address, or no name that could have one
                association = entity.associate(node.host, node.port, ae_title=node.title)
            if association is not None and association.is_established:
                return association
            if association is not None and association.rejected_contexts and not association.is_rejected:
                raise UsageError(f"{node} takes none of the kinds of results that there are. The results wait.")
            self._again_from = monotonic() + _TIMEOUT_S
        raise UsageError(f"{node} cannot be reached, or lets nobody called {self._title} in. The results wait.")


def _send_one(association: Association, dataset: pydicom.Dataset, node: DicomNode) -> None:
    try:
        answer = association.send_c_store(dataset)
    except (RuntimeError, ValueError) as error:  # the association is gone, or the kind was not accepted
        raise UsageError(f"{node} does not take a {dataset.SOPClassUID.name}. The results wait.") from error
    status = answer.get("Status")
    # 0xBxxx are warnings: it is stored.
    if status is None or not (status == _STORED or 0xB000 <= status <= 0xBFFF):
        said = "nothing" if status is None else f"status {status:04X}"
        raise UsageError(f"{node} answered a {dataset.SOPClassUID.name} with {said}. The results wait.")


def _application_entity(title: str) -> ApplicationEntity:
    entity = ApplicationEntity(checked_title(title))
    entity.acse_timeout = entity.dimse_timeout = entity.connection_timeout = _TIMEOUT_S
    entity.network_timeout = 2 * _TIMEOUT_S
    return entity


def _store(event: Event, inbox: Path) -> int:
    """Put one instance into the inbox; the status that its sender is told."""
    content = event.encoded_dataset()
    try:
        header = Elements(pydicom.dcmread(BytesIO(content), specific_tags=list(_UIDS)))
        uids = [header.text(tag) for tag in _UIDS]
    except (InvalidDicomError, AttributeError, ValueError, TypeError, EOFError, OSError, NotImplementedError):
        return _CANNOT_UNDERSTAND
    if not all(_UID.fullmatch(uid) for uid in uids) or uids[2] != str(
        getattr(event.request, "AffectedSOPInstanceUID", "")
    ):
        return _NOT_A_PET_IMAGE
    study, series, instance = (hashlib.sha256(uid.encode()).hexdigest()[:20] for uid in uids)
    path = inbox / f"study-{study}" / f"{series}-{instance}.dcm"
    try:
        path.parent.mkdir(exist_ok=True)
        with whole_file(path) as temporary:
            temporary.write_bytes(content)
            sync(temporary)
        sync(path.parent, inbox)
    except (OSError, UsageError):
        return _OUT_OF_RESOURCES
    return _STORED


def _bound(event: Event) -> None:
    """Bound what a peer may make us hold, and wait for: a PDU has to come whole, within a while.

    pynetdicom waits without end for what the first bytes of a PDU announce, and so would whoever shuts it down.
    """
    transport: Any = event.assoc.dul.socket
    transport.socket.settimeout(_TIMEOUT_S)

    def receive(count: int) -> bytearray:
        if count > _MOST_PDU_BYTES:
            raise OSError(f"A PDU of {count} bytes was announced.")
        end, received = monotonic() + _TIMEOUT_S, bytearray()
        while len(received) < count and (part := transport.socket.recv(count - len(received))):
            received += part
            if monotonic() > end:
                raise TimeoutError
        return received

    transport.recv = receive


class _Flow:
    """Bytes that came over each association since our last answer; too many of it, or with those of all, end it."""

    def __init__(self) -> None:
        self._bytes: dict[Association, int] = {}
        self._lock = Lock()  # each association has a thread

    def received(self, event: Event) -> None:
        with self._lock:
            self._bytes[event.assoc] = self._bytes.get(event.assoc, 0) + len(event.data)
            self._bytes = {peer: held for peer, held in self._bytes.items() if peer.is_alive() or peer is event.assoc}
            too_many = self._bytes[event.assoc] > _MOST_BYTES or sum(self._bytes.values()) > _MOST_BYTES_OF_ALL
        if too_many:
            event.assoc.abort(block=False)

    def answered(self, event: Event) -> None:
        with self._lock:
            self._bytes.pop(event.assoc, None)
