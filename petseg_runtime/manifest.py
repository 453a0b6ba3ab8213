"""ModelManifest: all that the runtime must know of a model, read from the ONNX file itself.

The ONNX file is a protobuf `ModelProto`. Three of its top-level fields matter here, and the wire
format of protobuf is four cases long, so the slim runtime reads them without the onnx package:
field 7 is the graph with its weights, field 14 the `metadata_props`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from petseg_runtime.errors import ModelError
from petseg_runtime.volume import Shape, Triple

MANIFEST_KEY = "petseg.manifest"
# Of the self-test, see `petseg_runtime.commissioning`. Counts up as its windows change: results of others would fail
# every machine.
RESULTS_KEY = "petseg.results-2"
SCHEMA_VERSION = 1
# Beyond these a manifest is damaged: half a metre of 1 mm voxels, and ten windows over each voxel of an axis.
MAX_PATCH_SIDE = 512
MAX_OVERLAP = 0.9
# Nor has any network for PET other voxels.
NETWORK_SPACING_MM = (0.1, 50.0)
# What no probability tells from 0 or 1; a threshold that is 0 in float32 would make a tumour of all of the scan.
THRESHOLD_RANGE = (1e-6, 1 - 1e-6)
# What a mask holds.
LABELS = {"background": 0, "tumour": 1}
# A name that a DICOM result can hold (PS3.5 table 6.2-1, LO).
_LONG_STRING = re.compile(r"[^\\\x00-\x1f\x7f]{1,64}")

# Where the fields of onnx.proto hold tensors.
_FUNCTIONS_FIELD, _DATA_TYPE_FIELD, _DATA_LOCATION_FIELD = 25, 2, 14
_DATA_FIELDS = (4, 9, 10)  # float_data (packed), raw_data, double_data
_REAL = {1: "<f4", 10: "<f2", 11: "<f8"}
_ELSEWHERE = "keeps weights in another file, or parts outside its graph"
_PARTS = {
    **{("graph", 1): "node", ("graph", 5): "tensor", ("graph", 15): "sparse", ("node", 5): "attribute"},
    **{("attribute", 5): "tensor", ("attribute", 6): "graph", ("attribute", 10): "tensor", ("attribute", 11): "graph"},
    **{("attribute", 22): "sparse", ("attribute", 23): "sparse", ("sparse", 1): "tensor", ("sparse", 2): "tensor"},
}
_GRAPH_FIELD = 7
_METADATA_FIELD = 14


@dataclass(frozen=True)
class PreprocessingSpec:
    """How a volume becomes the network's input; the rules are in `petseg_runtime.preprocessing`.

    Attributes
    ----------
    spacing_mm : voxel spacing `(z, y, x)` of the network's input; interpolation is linear.
    body_threshold : a voxel is body above this share of the body's own median intensity.
    body_margin_mm : kept around the body on each side, as far as the scan reaches.
    normalisation : "zscore_body", mean and standard deviation over the body's voxels before padding.
    padding : "air", zero activity; never the zero of the normalised scale.
    ceiling : where not 0, activity above this many medians of the body counts as that many. Instance norms take
        their statistics over all of a window: what is brighter there by far dims the tumour beside it.
    """

    spacing_mm: Triple
    body_threshold: float
    body_margin_mm: float
    normalisation: str = "zscore_body"
    padding: str = "air"
    ceiling: float = 0.0

    def __post_init__(self) -> None:
        low, high = NETWORK_SPACING_MM
        usable = len(self.spacing_mm) == 3 and all(low <= spacing <= high for spacing in self.spacing_mm)
        _require(usable, "spacing_mm", self.spacing_mm)
        _require(0 < self.body_threshold < 1, "body_threshold", self.body_threshold)
        _require(0 <= self.body_margin_mm < math.inf, "body_margin_mm", self.body_margin_mm)
        _require(self.normalisation == "zscore_body", "normalisation", self.normalisation)
        _require(self.padding == "air", "padding", self.padding)
        _require(self.ceiling == 0 or 1 < self.ceiling < math.inf, "ceiling", self.ceiling)


@dataclass(frozen=True)
class Channel:
    """One input channel: its DICOM modality, and its unit ("any" where normalisation removes it)."""

    modality: str
    unit: str


@dataclass(frozen=True)
class ModelManifest:
    """What a model needs and where it comes from. There are no defaults: no manifest, no run.

    Attributes
    ----------
    patch_size : voxels `(z, y, x)` of one window, or of the largest.
    fit_multiple : a window is no wider than the body's box, rounded up to this multiple; 0 where all windows have the
        size of the patch (`sliding_window.fitted_window`). Trained with the same rule.
    overlap : share of a window that overlaps the next one, in `[0, 1)`.
    threshold : a voxel is tumour where its probability is at least this.
    labels : name of each value in the mask.
    training : provenance (commit, data, metrics, licence), as JSON values.
    longest_body_mm : length, from feet to head, of the longest body box that the model is for, as a rule the longest in
        training; 0 where it is not known. A scan of much more holds organs that the network does not know.
    weights_sha256 : SHA-256 of the serialised graph, which holds the weights; checked at load.
    """

    name: str
    version: str
    channels: tuple[Channel, ...]
    preprocessing: PreprocessingSpec
    patch_size: Shape
    overlap: float
    threshold: float
    labels: dict[str, int]
    training: dict[str, Any] = field(hash=False)
    weights_sha256: str = ""
    fit_multiple: int = 0
    longest_body_mm: float = 0.0
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        _require(self.schema_version == SCHEMA_VERSION, "schema_version", self.schema_version)
        names = (self.name, self.version)
        sound = all(isinstance(name, str) and _LONG_STRING.fullmatch(name) for name in names)
        _require(sound, "name and version", names)
        _require(self.labels == LABELS, "labels", self.labels)
        _require(isinstance(self.training, dict), "training", self.training)
        _require(self.channels == (Channel("PT", "any"),), "channels", self.channels)
        sides = all(type(side) is int and 0 < side <= MAX_PATCH_SIDE for side in self.patch_size)
        _require(len(self.patch_size) == 3 and sides, "patch_size", self.patch_size)
        fits = self.fit_multiple == 0 or (
            type(self.fit_multiple) is int
            and self.fit_multiple > 0
            and all(side % self.fit_multiple == 0 for side in self.patch_size)
        )
        _require(fits, "fit_multiple", self.fit_multiple)
        _require(0 <= self.longest_body_mm < math.inf, "longest_body_mm", self.longest_body_mm)
        _require(0 <= self.overlap <= MAX_OVERLAP, "overlap", self.overlap)
        _require(is_threshold(self.threshold), "threshold", self.threshold)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def from_json(text: str) -> ModelManifest:
        """Parse and check a manifest.

        Raises
        ------
        ModelError : if a field is absent, unknown, or holds what this version cannot honour.
        """
        try:
            fields = json.loads(text, object_pairs_hook=_once)
            _require("schema_version" in fields, "schema_version", None)
            fields["channels"] = tuple(Channel(**channel) for channel in fields["channels"])
            preprocessing = fields["preprocessing"]
            preprocessing["spacing_mm"] = tuple(preprocessing["spacing_mm"])
            fields["preprocessing"] = PreprocessingSpec(**preprocessing)
            fields["patch_size"] = tuple(fields["patch_size"])
            return ModelManifest(**fields)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ModelError(
                f"The model's manifest cannot be used: {error}. Export the model again with petseg-export onnx."
            ) from error


@dataclass(frozen=True)
class ModelFile:
    """A model file in memory: what was checked is what the backend loads.

    `results` are the network's on the windows of the self-test, as `commissioning.pack` writes them; empty in a model
    without them.
    """

    content: bytes
    manifest: ModelManifest
    results: str = ""

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


def read_model(path: Path) -> ModelFile:
    """Read an ONNX model with its manifest, and check the weights against the digest in it.

    Raises
    ------
    ModelError : if the file is absent, is not ONNX, has no manifest, or its weights were changed or lie elsewhere.
    """
    try:
        if path.exists() and not path.is_file():
            raise ModelError(f"Model {path.name} is not a file. Pass an .onnx file made by petseg-export onnx.")
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"Model {path.name} cannot be read: {error.strerror}. Pass an .onnx file made by petseg-export onnx."
        ) from error
    try:
        metadata, trouble = _looked_through(memoryview(content))
    except (ValueError, IndexError, KeyError, RecursionError) as error:
        raise ModelError(
            f"Model {path.name} is not a readable ONNX file (truncated or of another kind). "
            "Pass an .onnx file made by petseg-export onnx."
        ) from error
    if trouble:
        raise ModelError(f"Model {path.name} {trouble}. Export it again with petseg-export onnx.")
    if MANIFEST_KEY not in metadata:
        raise ModelError(
            f'Model {path.name} has no "{MANIFEST_KEY}" in its metadata, so its preprocessing is unknown. '
            "Export it with petseg-export onnx."
        )
    manifest = ModelManifest.from_json(metadata[MANIFEST_KEY])
    if graph_sha256(content) != manifest.weights_sha256:
        raise ModelError(
            f"Model {path.name} is damaged: its weights do not match the digest in its manifest. "
            "Get the file again, or export it again with petseg-export onnx."
        )
    return ModelFile(content, manifest, metadata.get(RESULTS_KEY, ""))


def graph_sha256(model: bytes) -> str:
    """SHA-256 of the serialised graph (weights included) of the ONNX model in `model`."""
    digest = hashlib.sha256()
    for number, value in _protobuf_fields(memoryview(model)):
        if number == _GRAPH_FIELD:
            digest.update(value)
    return digest.hexdigest()


def is_threshold(threshold: float) -> bool:
    """Whether a probability can be held against it; see `THRESHOLD_RANGE`."""
    low, high = THRESHOLD_RANGE
    return low <= threshold <= high


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object that says nothing twice: of two values json takes the last, and others the first."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a field stands there twice")
    return fields


def _require(condition: bool, name: str, value: object) -> None:
    if not condition:
        raise ValueError(f"{name} is {value!r}, which this version of PETSeg does not accept")


def _protobuf_fields(buffer: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Field number and payload of each top-level field (protobuf wire format: varint, fixed 64, bytes, fixed 32)."""
    position = 0
    while position < len(buffer):
        key, position = _varint(buffer, position)
        number, wire_type = key >> 3, key & 7
        if number == 0:
            raise ValueError("there is no field 0")
        if wire_type == 0:
            start = position
            _, position = _varint(buffer, position)
            yield number, buffer[start:position]
            continue
        if wire_type == 2:
            length, position = _varint(buffer, position)
        else:
            length = {1: 8, 5: 4}[wire_type]
        if position + length > len(buffer):
            raise ValueError("field runs past the end of the file")
        yield number, buffer[position : position + length]
        position += length


def _varint(buffer: memoryview, position: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = buffer[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("varint is longer than ten bytes")


def _looked_through(model: memoryview) -> tuple[dict[str, str], str]:
    """The metadata of a model, and what is wrong with its graph (empty if nothing).

    Raises
    ------
    ValueError, IndexError, KeyError, RecursionError : if it is no ONNX model, or says something twice.
    """
    metadata: dict[str, str] = {}
    has_graph, trouble = False, ""
    for number, value in _protobuf_fields(model):
        if number == _METADATA_FIELD:
            key, text = _metadata_entry(value)
            if key in metadata:
                raise ValueError(f"{key} stands twice in the metadata")
            metadata[key] = text
        elif number == _FUNCTIONS_FIELD:
            trouble = _ELSEWHERE
        elif number == _GRAPH_FIELD:
            has_graph = True
            trouble = trouble or _trouble_in(value, "graph")
    if not has_graph:
        raise ValueError("there is no graph")
    return metadata, trouble


def _trouble_in(message: memoryview, kind: str) -> str:
    """What is wrong with a graph or a part of one (onnx.proto), empty if nothing."""
    if kind == "tensor":
        return _trouble_in_tensor(message)
    for number, value in _protobuf_fields(message):
        part = _PARTS.get((kind, number))
        if part and (trouble := _trouble_in(value, part)):
            return trouble
    return ""


def _trouble_in_tensor(tensor: memoryview) -> str:
    """Where data_location (field 14) is EXTERNAL, no digest and no signature holds the data.

    And a weight that is no number makes a mask all the same on a backend whose activations swallow it. Looked at is
    what exporters write: float32, float16 and float64 as raw data, float32 and float64 as a list.
    """
    data_type, chunks = 0, []
    for number, value in _protobuf_fields(tensor):
        if number == _DATA_LOCATION_FIELD and any(value):
            return _ELSEWHERE
        if number == _DATA_TYPE_FIELD:
            data_type, _ = _varint(value, 0)
        elif number in _DATA_FIELDS:
            chunks.append(value)
    if data_type in _REAL and not np.isfinite(np.frombuffer(b"".join(chunks), _REAL[data_type])).all():
        return "has weights that are no finite numbers"
    return ""


def _metadata_entry(entry: memoryview) -> tuple[str, str]:
    """Key (field 1) and value (field 2) of a `StringStringEntryProto`."""
    fields = {number: bytes(value).decode() for number, value in _protobuf_fields(entry)}
    return fields.get(1, ""), fields.get(2, "")
