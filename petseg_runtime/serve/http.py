"""An HTTP service in front of an inbox: submit a scan, ask for its state, fetch its results.

It only puts files into the inbox and reads its journal, so it may end and start again at any time.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import hmac
import json
import os
import re
import socket
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import Annotated, Any, Literal

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from petseg_runtime import __version__
from petseg_runtime.errors import InputError, PetsegError, UsageError
from petseg_runtime.inbox import AGAIN, FAILED, JOURNAL, SUBMITTED, TAKEN, Entry, Journal
from petseg_runtime.io.dicom_header import Header, is_named_as_dicom, is_numbered, kind_by_name, read_headers
from petseg_runtime.io.scans import RESULT_SUFFIXES, is_passed_over, scans_in
from petseg_runtime.outputs.files import prepare_folder, remove_leavings, scratch_folder, sync

Format = Literal["nii", "nii.gz", "mha", "nrrd", "dicom.zip"]

# Of one scan, as it is sent and as it is unpacked; a whole-body study has well below 1 GiB.
MOST_BYTES = 4 * 2**30
_MOST_FILES = 100_000
# A digest without digits.
_IN_LETTERS = str.maketrans("0123456789", "ghijklmnop")

_SHORTEST_TOKEN = 16

# Clients at once, and how long a request may take to come, or its body pause.
_MOST_CLIENTS, _PATIENCE_S = 64, 30.0
_SEND_BUFFER_BYTES = 2**17

# What uvicorn logs holds what is asked for, and anybody could fill it.
_SILENT = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"nowhere": {"class": "logging.NullHandler"}},
    "loggers": {name: {"handlers": ["nowhere"], "propagate": False} for name in ("uvicorn", "asyncio")},
}


def read_token(file: Path) -> str:
    """The token that callers must bring, from a file; a command line could be read by every user of the machine.

    Raises
    ------
    UsageError : if the file cannot be read, or the token is shorter than 16 characters.
    """
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The token file {file.name} cannot be read. Pass a text file with one line.") from error
    if not re.fullmatch(rf"[!-~]{{{_SHORTEST_TOKEN},}}", token):
        raise UsageError(
            f"{file.name} holds no token: expected at least {_SHORTEST_TOKEN} ASCII characters without a space. "
            "Make one with: openssl rand -hex 32"
        )
    return token


@contextmanager
def http_service(application: FastAPI, address: str, port: int) -> Iterator[int]:
    """Answer requests, in threads, while the block runs; yields the port.

    Parameters
    ----------
    port : 0 for any that is free.

    Raises
    ------
    UsageError : if the port cannot be had.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        listening = socket.create_server((address, port), family=family)
    except (OSError, OverflowError) as error:
        raise UsageError(f"Port {port} of {address} cannot be had: {error}. Choose another --http-port.") from error
    # Connections inherit it: one that the system lets grow hides for a minute whether a slow client takes its answer.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    # In a thread it leaves signals alone.
    config = uvicorn.Config(
        application, http=_Connection, ws="none", log_config=_SILENT, access_log=False, timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)
    thread = Thread(target=server.run, args=([listening],), name="http")
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


class _Connection(H11Protocol):
    """A client's connection, closed where there are too many, or where a request does not come in a while.

    uvicorn waits without end for requests and their bodies, and each connection is a file less for the scans.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's own words
        super().connection_made(transport)
        self._free_since = self._heard = self._taken = self.loop.time()
        self._unsent = 0
        self._lost = False
        if len(self.connections) > _MOST_CLIENTS:
            transport.close()
        else:
            self._look_after()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._heard = self.loop.time()
        super().data_received(data)

    def _look_after(self) -> None:
        if self._lost:
            return
        now = self.loop.time()
        if self.cycle is None or self.cycle.response_complete:  # a request has to come whole, however slowly it begins
            waited = now - self._free_since
        else:  # the answer may take its time, the body of an upload not
            self._free_since, waited = now, now - self._heard if self.cycle.more_body else 0.0
        unsent = self.transport.get_write_buffer_size()
        if not unsent or unsent < self._unsent:  # the client takes its answers
            self._taken = now
        self._unsent = unsent
        if now - self._taken > _PATIENCE_S:
            self.transport.abort()
        elif waited > _PATIENCE_S:
            self.transport.close()
        self.loop.call_later(_PATIENCE_S / 4, self._look_after)  # closing waits for the client to take its answers


def application(inbox: Path, output: Path, token: str, model: dict[str, str]) -> FastAPI:
    """The service as an ASGI application.

    Parameters
    ----------
    inbox, output : as for `inbox.watch`, which does the work.
    model : name, version and digest of the model, for whoever asks whether the service is well.

    Raises
    ------
    UsageError : if the inbox cannot be written.
    """
    prepare_folder(inbox / SUBMITTED)
    remove_leavings(inbox)

    def check(bearer: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> None:
        if not hmac.compare_digest(bearer.credentials.encode(), token.encode()):
            raise HTTPException(401, "The token is wrong.", {"WWW-Authenticate": "Bearer"})

    # The pages that show the OpenAPI document would fetch their scripts from elsewhere.
    app = FastAPI(title="PETSeg", version=__version__, docs_url=None, redoc_url=None)
    protected = [Depends(check)]
    binary = {"schema": {"type": "string", "format": "binary"}}
    upload = {"requestBody": {"required": True, "content": {"application/octet-stream": binary}}}

    @app.get("/health")
    def health() -> dict[str, Any]:
        """Whether the service answers and its journal can be read, and with which model it works."""
        _look_up("0" * 64, output)
        return {"status": "ok", "version": __version__, "model": model}

    @app.post("/scans", status_code=202, dependencies=protected, openapi_extra=upload)
    async def submit(request: Request, format: Format) -> dict[str, Any]:  # noqa: A002 - as the query says it
        """Submit one scan: its file, or a ZIP archive of one DICOM study. The same scan always has the same id.

        It is done again if it failed before, its results are gone, or the model or the settings are others now.
        """
        announced = request.headers.get("content-length", "")
        if announced.isdigit() and int(announced) > MOST_BYTES:
            raise HTTPException(413, f"The scan has more than {MOST_BYTES} bytes.")
        try:
            with scratch_folder(inbox) as scratch:
                await _receive(request, scratch / "upload")
                identifier = await run_in_threadpool(_take_in, scratch, format, inbox)
            return await run_in_threadpool(_say_again, identifier, inbox, output)
        except ClientDisconnect as error:
            raise HTTPException(400, "The upload ended before it was whole.") from error
        except InputError as error:
            raise HTTPException(422, str(error)) from error
        except (UsageError, OSError) as error:
            raise HTTPException(507, "The scan cannot be stored: the inbox is full or cannot be written.") from error

    @app.get("/scans/{identifier}", dependencies=protected)
    def state(identifier: str) -> dict[str, Any]:
        """State of a scan (waiting, done, failed): with its quantities when it is done, and the model that found them.

        Of one that was refused with the reason, and of one that waits for something, such as an archive, for what.
        """
        return _state(identifier, inbox, output)

    @app.get(
        "/scans/{identifier}/result",
        dependencies=protected,
        response_class=Response,
        responses={200: {"content": {"application/zip": binary}}},
    )
    def result(identifier: str) -> Response:
        """Every file of a scan's result, as a ZIP archive."""
        return Response(_archive(identifier, inbox, output), media_type="application/zip")

    return app


async def _receive(request: Request, file: Path) -> None:
    received = 0
    with file.open("wb") as stream:
        async for chunk in request.stream():
            received += len(chunk)
            if received > MOST_BYTES:
                raise HTTPException(413, f"The scan has more than {MOST_BYTES} bytes.")
            stream.write(chunk)


def _take_in(scratch: Path, form: Format, inbox: Path) -> str:
    """Move an upload into the inbox, whole and on disk; returns its id, the digest that the journal knows it by."""
    upload, whole = scratch / "upload", scratch / "whole"
    if not upload.stat().st_size:
        raise InputError("The upload is empty. Send a scan, or a ZIP archive of one study.")
    whole.mkdir()
    known: dict[Path, list[Header]] = {}
    if form == "dicom.zip":
        known = unpack(upload, whole)
    else:
        upload.rename(whole / f"scan.{form}")
    scans = scans_in(whole, lambda files: [one for file in files for one in known.get(file) or read_headers([file])])
    if len(scans) != 1:
        raise InputError(f"The archive holds {len(scans)} studies, expected one.")
    identifier = scans[0].digests().scan
    place = inbox / SUBMITTED / identifier
    sync(*whole.iterdir(), whole)
    try:
        os.replace(whole, place)  # also where only an empty folder is left of an earlier one
    except OSError:
        if not place.is_dir():
            raise
        if not _holds(place, identifier):  # some of it was removed after it was done
            place.rename(scratch / "rest")
            os.replace(whole, place)
    sync(place.parent)
    return identifier


def _holds(place: Path, identifier: str) -> bool:
    """Whether the scan with this id lies there, whole."""
    try:
        return [scan.digests().scan for scan in scans_in(place)] == [identifier]
    except InputError:
        return False


def _say_again(identifier: str, inbox: Path, output: Path) -> dict[str, Any]:
    """Tell the inbox of a scan that it has dealt with before that it came again; its state."""
    entry = _look_up(identifier, output)
    if entry is not None and entry.state != TAKEN:
        (inbox / SUBMITTED / identifier / AGAIN).touch()
    return _state(identifier, inbox, output)


def unpack(archive: Path, folder: Path) -> dict[Path, list[Header]]:
    """Put the files of an archive into an empty folder, each named by its digest; returns the headers of the DICOM.

    Raises
    ------
    InputError : if it is no ZIP archive, is damaged, or needs another method than stored and deflated.
    HTTPException : 413, if it holds or unpacks to more than a scan has.
    """
    unpacked, files = 0, defaultdict[Path, list[PurePosixPath]](list)  # the same content may lie there twice
    try:
        with zipfile.ZipFile(archive) as source:
            if (count := len(source.infolist())) > _MOST_FILES:
                raise HTTPException(413, f"The archive has {count} files, expected at most {_MOST_FILES}.")
            for path, member in _members(source):
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise NotImplementedError  # the others unpack into the memory without a limit
                unpacked += member.file_size
                if unpacked > MOST_BYTES:
                    raise HTTPException(413, f"The archive unpacks to more than {MOST_BYTES} bytes.")
                digest, fresh = hashlib.sha256(), folder / "fresh"
                with source.open(member) as packed, fresh.open("wb") as stream:
                    while chunk := packed.read(2**20):  # at most file_size bytes, or zipfile refuses
                        digest.update(chunk)
                        stream.write(chunk)
                files[fresh.replace(folder / digest.hexdigest())].append(path)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # such as a full disk: no fault of the archive
            raise
        raise InputError(
            "The upload is not a ZIP archive that can be unpacked. Send the files of one study."
        ) from error
    return _as_their_names_said(files)


def _members(source: zipfile.ZipFile) -> list[tuple[PurePosixPath, zipfile.ZipInfo]]:
    """The files of an archive with their paths, but for those that are passed over in a folder.

    What all of it lies in may be called anything, as the folder of a scan may.
    """
    named = [(member.filename.replace("\\", "/"), member) for member in source.infolist()]  # as old ones of Windows
    files = [(PurePosixPath(name.lstrip("/")), member) for name, member in named if name and not name.endswith("/")]
    depth = len(PurePosixPath(os.path.commonpath([path.parent for path, _ in files])).parts) if files else 0

    def is_left_out(path: PurePosixPath) -> bool:
        within = path.parts[depth:]
        return path.name.endswith(RESULT_SUFFIXES) or any(is_passed_over(part) for part in within if part != "..")

    return [(path, member) for path, member in files if not is_left_out(path)]


def _as_their_names_said(files: dict[Path, list[PurePosixPath]]) -> dict[Path, list[Header]]:
    """Rename what is no DICOM, so that its name says of it what its own did; returns the headers of the rest.

    It is a damaged slice if its path would make it one in a folder: by a suffix of DICOM or, if it is blank, as one of
    the files there that have digits and the suffix of slices. Otherwise it is a note beside them.
    """
    headers = {file: read_headers([file]) for file in files}
    dicom = {file: found for file, found in headers.items() if any(not header.blank for header in found)}
    kinds = {(path.parent, kind_by_name(path)) for file in dicom for path in files[file]}
    for file in files.keys() - dicom.keys():
        if any(is_named_as_dicom(path.name) for path in files[file]):
            file.replace(file.with_name(f"{file.name}.dcm"))
        elif not any(is_numbered(path.name) and (path.parent, kind_by_name(path)) in kinds for path in files[file]):
            file.replace(file.with_name(file.name.translate(_IN_LETTERS)))
    return dicom


def _state(identifier: str, inbox: Path, output: Path) -> dict[str, Any]:
    answer, done = _standing(identifier, inbox, output)
    if done is None:
        return answer
    record, _ = _record(done, output)
    kept = ("model", "settings", "statistics", "decisions", "warnings", "outputs")
    return answer | {"folder": str(done.folder)} | {key: record[key] for key in kept if key in record}


def _standing(identifier: str, inbox: Path, output: Path) -> tuple[dict[str, Any], Entry | None]:
    """What there is to say of a scan without its results; and its entry in the journal where it is done."""
    unknown = HTTPException(404, "No scan with this id was submitted.")
    if not re.fullmatch("[0-9a-f]{64}", identifier):
        raise unknown
    entry, place = _look_up(identifier, output), inbox / SUBMITTED / identifier
    answer: dict[str, Any] = {"id": identifier, "state": "waiting"}
    if entry is None:
        if not place.is_dir():
            raise unknown
        return answer, None
    if entry.state == TAKEN:
        return answer | ({"waiting_for": entry.reason} if entry.reason else {}), None
    if (place / AGAIN).exists():  # the inbox has yet to see it
        return answer, None
    if entry.state == FAILED:
        return answer | {"state": "failed", "error": entry.reason}, None
    return answer | {"state": "done"}, entry


def _look_up(identifier: str, output: Path) -> Entry | None:
    try:
        return Journal.look_up(output / JOURNAL, identifier)
    except PetsegError as error:
        raise HTTPException(503, "The journal cannot be read just now.") from error


def _record(entry: Entry, output: Path) -> tuple[dict[str, Any], bytes]:
    """The record of a scan's results, also as its file holds it, if it is that which the inbox wrote.

    Another run may have taken its place.
    """
    try:
        content = (output / entry.folder / f"{entry.name}_run.json").read_bytes()
    except OSError as error:
        raise _gone(_REMOVED) from error
    if hashlib.sha256(content).hexdigest() != entry.record:
        raise _gone(_REPLACED)
    return json.loads(content), content


_REMOVED = "The results of this scan were removed. Submit it again to have it done again."
_REPLACED = "The results of this scan were changed, or are another scan's by now. Move them away, and submit it again."


def _gone(why: str) -> HTTPException:
    return HTTPException(410, why)


def _archive(identifier: str, inbox: Path, output: Path) -> bytes:
    answer, done = _standing(identifier, inbox, output)
    if done is None:
        raise HTTPException(409, f"The scan is {answer['state']}; there is no result.")
    record, written = _record(done, output)
    digests = record["sha256"]
    content = BytesIO()
    try:
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in record["outputs"][:-1]:  # the last is the record itself
                file = (output / done.folder / name).read_bytes()
                if name in digests and hashlib.sha256(file).hexdigest() != digests[name]:
                    raise _gone(_REPLACED)
                archive.writestr(name, file)
            archive.writestr(record["outputs"][-1], written)
    except OSError as error:
        raise _gone(_REMOVED) from error
    return content.getvalue()
