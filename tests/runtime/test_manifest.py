"""The manifest inside the model file, and refusing files that cannot be trusted."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import onnx_model
from hypothesis import given, settings
from hypothesis import strategies as st

from petseg_runtime.errors import ModelError
from petseg_runtime.manifest import ModelManifest, graph_sha256, read_model


def test_what_was_written_is_read(known_model: Path, manifest: ModelManifest) -> None:
    read = read_model(known_model).manifest
    assert (read.name, read.patch_size, read.preprocessing) == ("known", (16, 16, 16), manifest.preprocessing)
    assert read.training == manifest.training


def test_json_round_trip(manifest: ModelManifest) -> None:
    assert ModelManifest.from_json(manifest.to_json()) == manifest


def test_the_digest_is_of_the_graph_with_its_weights(known_model: Path) -> None:
    # The onnx package parses the same bytes independently.
    model = onnx.load(known_model)
    recorded = json.loads(next(p.value for p in model.metadata_props if p.key == "petseg.manifest"))["weights_sha256"]
    assert graph_sha256(known_model.read_bytes()) == recorded
    model.graph.initializer[0].raw_data = b"\0\0\0\0"
    assert graph_sha256(model.SerializeToString()) != recorded


def test_changed_weights_are_refused(known_model: Path, tmp_path: Path) -> None:
    content = bytearray(known_model.read_bytes())
    position = content.find(b"\x00\x00\x20\x41")  # the float 10.0 in the graph
    content[position + 2] ^= 0x01
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(content)
    with pytest.raises(ModelError, match="damaged"):
        read_model(damaged)


def written(model: onnx.ModelProto, manifest: ModelManifest, path: Path) -> Path:
    """The model with a manifest that has its graph's digest."""
    complete = replace(manifest, weights_sha256=graph_sha256(model.SerializeToString()))
    onnx.helper.set_model_props(model, {"petseg.manifest": complete.to_json()})
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("where", ["graph", "constant", "branch"])
def test_weights_in_another_file_are_refused(where: str, manifest: ModelManifest, tmp_path: Path) -> None:
    """No digest and no signature of the model holds them."""
    model = onnx.load_from_string(onnx_model(manifest))
    tensor = onnx.TensorProto(name="away", data_type=onnx.TensorProto.FLOAT, dims=[1])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    if where == "graph":
        model.graph.initializer.append(tensor)
    elif where == "constant":
        model.graph.node.append(onnx.helper.make_node("Constant", [], ["away"], value=tensor))
    else:
        branch = onnx.helper.make_graph([], "branch", [], [], [tensor])
        node = onnx.helper.make_node("If", ["image"], ["away"], then_branch=branch, else_branch=branch)
        model.graph.node.append(node)
    with pytest.raises(ModelError, match="keeps weights in another file"):
        read_model(written(model, manifest, tmp_path / "model.onnx"))


def test_functions_outside_the_graph_are_refused(manifest: ModelManifest, tmp_path: Path) -> None:
    model = onnx.load_from_string(onnx_model(manifest))
    model.functions.append(onnx.helper.make_function("local", "Twice", ["x"], ["y"], [], []))
    with pytest.raises(ModelError, match="parts outside its graph"):
        read_model(written(model, manifest, tmp_path / "model.onnx"))


@pytest.mark.parametrize("content", [b"", bytes(3_000_000)], ids=["empty", "zeros"])
def test_what_a_power_cut_leaves_is_refused_at_its_first_byte(content: bytes, tmp_path: Path) -> None:
    """Each zero was taken for a field, which took 140 bytes of memory."""
    (tmp_path / "model.onnx").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match="not a readable ONNX file"):
            read_model(tmp_path / "model.onnx")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


# Halves are listed as bit patterns, which no exporter writes.
@pytest.mark.parametrize(
    ("where", "kind"),
    [
        *(("raw", kind) for kind in (np.float32, np.float16, np.float64)),
        *(("listed", kind) for kind in (np.float32, np.float64)),
        *(("constant", kind) for kind in (np.float32, np.float16, np.float64)),
    ],
)
def test_weights_that_are_no_numbers_are_refused(
    where: str, kind: type, manifest: ModelManifest, tmp_path: Path
) -> None:
    """OpenVINO's activations swallow them, and a mask came out that looked like one."""
    model = onnx.load_from_string(onnx_model(manifest))
    values = np.array([1.0, np.nan, 2.0], kind)
    tensor = onnx.numpy_helper.from_array(values, "odd")
    if where == "listed":
        listed = {np.float32: onnx.TensorProto.FLOAT, np.float64: onnx.TensorProto.DOUBLE}
        tensor = onnx.helper.make_tensor("odd", listed[kind], [3], values.tolist())
    if where == "constant":
        model.graph.node.append(onnx.helper.make_node("Constant", [], ["odd"], value=tensor))
    else:
        model.graph.initializer.append(tensor)
    with pytest.raises(ModelError, match="has weights that are no finite numbers"):
        read_model(written(model, manifest, tmp_path / "model.onnx"))


def test_a_list_of_weights_in_two_pieces_is_looked_at_whole(manifest: ModelManifest, tmp_path: Path) -> None:
    """As protobuf may write it: the pieces of a repeated field are one list."""
    model = onnx.load_from_string(onnx_model(manifest))
    pieces = [onnx.TensorProto(float_data=[value]).SerializeToString() for value in (float("nan"), 1.0)]
    head = onnx.TensorProto(name="odd", data_type=onnx.TensorProto.FLOAT, dims=[2]).SerializeToString()
    tensor = b"".join([head, *pieces])
    assert np.isnan(onnx.TensorProto.FromString(tensor).float_data[0])
    graph = model.graph.SerializeToString() + b"\x2a" + bytes([len(tensor)]) + tensor  # field 5, initializer
    outer = onnx.ModelProto()
    outer.CopyFrom(model)
    outer.ClearField("graph")
    del outer.metadata_props[:]
    length = bytes([len(graph) & 0x7F | 0x80, len(graph) >> 7])
    content = outer.SerializeToString() + b"\x3a" + length + graph  # field 7, graph
    props = onnx.ModelProto()
    complete = replace(manifest, weights_sha256=graph_sha256(content))
    props.metadata_props.add(key="petseg.manifest", value=complete.to_json())
    (tmp_path / "model.onnx").write_bytes(content + props.SerializeToString())
    with pytest.raises(ModelError, match="has weights that are no finite numbers"):
        read_model(tmp_path / "model.onnx")


def test_a_model_with_two_manifests_is_refused(manifest: ModelManifest, tmp_path: Path) -> None:
    model = onnx.load_from_string(onnx_model(manifest))
    model.metadata_props.add(key="petseg.manifest", value=replace(manifest, threshold=0.05).to_json())
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="not a readable ONNX file"):
        read_model(tmp_path / "model.onnx")


def test_a_manifest_that_says_a_thing_twice_is_refused(manifest: ModelManifest) -> None:
    text = manifest.to_json()
    with pytest.raises(ModelError, match="twice"):
        ModelManifest.from_json(text.replace('"threshold": 0.5', '"threshold": 0.5, "threshold": 0.05'))


def test_a_manifest_without_its_schema_is_refused(manifest: ModelManifest) -> None:
    fields = json.loads(manifest.to_json())
    del fields["schema_version"]
    with pytest.raises(ModelError, match="schema_version"):
        ModelManifest.from_json(json.dumps(fields))


def test_a_manifest_of_nothing_but_brackets_is_refused() -> None:
    with pytest.raises(ModelError, match="cannot be used"):
        ModelManifest.from_json("[" * 100_000)


def test_a_model_without_a_manifest_is_refused(tmp_path: Path) -> None:
    bare = tmp_path / "bare.onnx"
    bare.write_bytes(onnx_model(None))
    with pytest.raises(ModelError, match=r'no "petseg.manifest"'):
        read_model(bare)


def test_an_absent_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        read_model(tmp_path / "absent.onnx")


@settings(max_examples=100, deadline=None)
@given(cut=st.floats(0.01, 0.99))
def test_a_truncated_model_is_refused(cut: float, known_model: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    content = known_model.read_bytes()
    truncated = tmp_path_factory.getbasetemp() / "truncated.onnx"
    truncated.write_bytes(content[: int(len(content) * cut)])
    with pytest.raises(ModelError):
        read_model(truncated)


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=200))
def test_garbage_is_refused(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    garbage = tmp_path_factory.getbasetemp() / "garbage.onnx"
    garbage.write_bytes(content)
    with pytest.raises(ModelError):
        read_model(garbage)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema_version", 2),
        ("patch_size", [16, 16, 0]),
        ("overlap", 1.0),
        ("threshold", 0.0),
        ("threshold", 1e-50),  # 0 in float32: all of the scan would be tumour
        ("labels", {"background": 1, "tumour": 0}),
        ("labels", {}),
        ("fit_multiple", True),
        ("patch_size", [True, 16, 16]),
        ("preprocessing", {"spacing_mm": [2, 4, 1e-9], "body_threshold": 0.2, "body_margin_mm": 20}),
        ("preprocessing", {"spacing_mm": [2, 4, 10**400], "body_threshold": 0.2, "body_margin_mm": 20}),
        ("preprocessing", {"spacing_mm": [2, 4, 4], "body_threshold": 0.2, "body_margin_mm": 20, "ceiling": 0.5}),
        ("longest_body_mm", -1.0),
        ("longest_body_mm", float("nan")),
        ("channels", [{"modality": "CT", "unit": "hu"}]),
        ("preprocessing", {"spacing_mm": [2, 4, 4], "body_threshold": 2.0, "body_margin_mm": 20}),
        ("preprocessing", {"spacing_mm": [2, 4, 0], "body_threshold": 0.2, "body_margin_mm": 20}),
        ("patch_size", [16.5, 16, 16]),
        ("overlap", 0.95),
        ("name", None),
        ("name", ""),
        ("name", "n" * 65),  # PS3.5 table 6.2-1, LO
        ("name", "one\\two"),
        ("version", "1\n2"),
        ("labels", ["tumour"]),
        ("channels", [{"modality": "PT", "unit": "suvbw"}]),
        ("preprocessing", {"spacing_mm": [2, 4, float("nan")], "body_threshold": 0.2, "body_margin_mm": 20}),
        ("preprocessing", {"spacing_mm": [2, 4, 4], "body_threshold": 0.2, "body_margin_mm": float("inf")}),
        ("a_field_of_a_later_version", 1),
    ],
)
def test_a_manifest_that_cannot_be_honoured_is_refused(field: str, value: object, manifest: ModelManifest) -> None:
    fields = json.loads(manifest.to_json()) | {field: value}
    with pytest.raises(ModelError, match="manifest"):
        ModelManifest.from_json(json.dumps(fields))


def test_there_are_no_defaults_for_preprocessing(manifest: ModelManifest) -> None:
    fields = json.loads(manifest.to_json())
    del fields["preprocessing"]["body_margin_mm"]
    with pytest.raises(ModelError, match="body_margin_mm"):
        ModelManifest.from_json(json.dumps(fields))
