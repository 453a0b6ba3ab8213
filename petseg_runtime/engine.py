"""The engine file: a TensorRT engine with the manifest of its model, in one file that says what it fits.

Layout: a magic line, the length of a JSON header as eight bytes (big-endian), the header, the engine. The header holds
the model's manifest and `EngineInfo`. An engine is machine code: it is only ever handed to TensorRT after its digest,
which covers the header too, was checked.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from petseg_runtime.errors import ModelError
from petseg_runtime.manifest import ModelFile, ModelManifest

ENGINE_SUFFIX = ".engine"
FLAVOURS = ("tensorrt_rtx", "tensorrt")
PRECISIONS = ("f32", "fp16")

# GPUs that one engine of TensorRT for RTX serves: Ampere, Ada and Blackwell.
PORTABLE = ("8.0", "8.6", "8.9", "12.0")
# Turing takes an engine of its own, and has no f32 convolution in three dimensions.
TURING = "7.5"

_RTX = (*PORTABLE, "12.1")
_MAGIC = b"PETSEG ENGINE 2\n"
_LENGTH_BYTES = 8
_LARGEST_HEADER = 10_000_000


@dataclass(frozen=True)
class EngineInfo:
    """What an engine fits and where it comes from.

    Attributes
    ----------
    flavour : the module that built it and runs it, "tensorrt_rtx" or "tensorrt".
    version : of that module; engines do not move between versions.
    precision : "f32", or "fp16" with norms, global means and the head in f32.
    compute_capabilities : of the GPUs that it runs on, such as "8.6".
    gpu : the only model of GPU that it runs on, as classic TensorRT has it; empty for TensorRT for RTX.
    max_batch : windows at once, at most.
    onnx_sha256 : of the ONNX file that it was built from.
    content_sha256 : of the file behind its magic line and length, where this field is empty.
    """

    flavour: str
    version: str
    precision: str
    compute_capabilities: tuple[str, ...]
    max_batch: int
    onnx_sha256: str
    gpu: str = ""
    content_sha256: str = ""

    def rebuild(self, capability: str | None = None) -> str:
        """What to do where the engine does not fit a GPU of this compute capability; None stands for those it is for.

        TensorRT for RTX has no engine for data-centre GPUs.
        """
        wanted = self.compute_capabilities if capability is None else (capability,)
        if self.flavour == "tensorrt" or not {*wanted} <= {*_RTX, TURING}:
            options = f"--precision {self.precision} --flavour tensorrt"
        elif TURING in wanted:
            options = f"--precision fp16 --compute-capability {TURING}"
        else:
            served = () if wanted == PORTABLE else wanted
            options = " ".join([f"--precision {self.precision}", *(f"--compute-capability {one}" for one in served)])
        return f"Rebuild it on this machine: petseg-export engine MODEL.onnx {options}"


@dataclass(frozen=True)
class EngineFile:
    """An engine file in memory, checked: what was checked is what TensorRT loads."""

    engine: bytes
    info: EngineInfo
    manifest: ModelManifest
    sha256: str


def engine_content(engine: bytes, info: EngineInfo, manifest: ModelManifest) -> bytes:
    """Content of the file of an engine."""
    fields = {"manifest": json.loads(manifest.to_json()), "engine": asdict(info)}
    fields["engine"]["content_sha256"] = _digest(fields, engine)
    header = json.dumps(fields).encode()
    return _MAGIC + len(header).to_bytes(_LENGTH_BYTES, "big") + header + engine


def _digest(header: dict[str, Any], engine: bytes) -> str:
    unsigned = {**header, "engine": {**header["engine"], "content_sha256": ""}}
    return hashlib.sha256(json.dumps(unsigned).encode() + engine).hexdigest()


def read_engine(path: Path) -> EngineFile:
    """Read an engine file and check its digest.

    Raises
    ------
    ModelError : if the file is absent, is no engine file of this version, or was changed.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"Engine {path.name} cannot be read: {error.strerror}. Pass an .engine file.") from error
    build = "Build it with petseg-export engine."
    if not content.startswith(_MAGIC):
        raise ModelError(f"{path.name} is not an engine file of this version of PETSeg. {build}")
    start = len(_MAGIC) + _LENGTH_BYTES
    length = int.from_bytes(content[len(_MAGIC) : start], "big")
    if length > min(_LARGEST_HEADER, len(content) - start):
        raise ModelError(f"Engine {path.name} is truncated. Get the file again, or rebuild it. {build}")
    try:
        header = json.loads(content[start : start + length])
        fields = header["engine"]
        info = EngineInfo(**{**fields, "compute_capabilities": tuple(map(str, fields["compute_capabilities"]))})
        if info.flavour not in FLAVOURS or info.precision not in PRECISIONS or info.max_batch < 1:
            raise ValueError("a field holds what this version does not know")
        manifest = ModelManifest.from_json(json.dumps(header["manifest"]))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelError(f"Engine {path.name} has a header that cannot be read. {build}") from error
    engine = content[start + length :]
    if _digest(header, engine) != info.content_sha256:
        raise ModelError(f"Engine {path.name} is damaged: it does not match the digest in its header. {build}")
    return EngineFile(engine, info, manifest, hashlib.sha256(content).hexdigest())


def check_origin(engine: EngineFile, model: ModelFile) -> None:
    """Refuse an engine that was built from another model file than the one it lies beside.

    Raises
    ------
    ModelError : if the digests differ.
    """
    if engine.info.onnx_sha256 != model.sha256:
        raise ModelError(f"The engine was built from another model than this one. {engine.info.rebuild()}")
