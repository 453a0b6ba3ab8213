"""Fixtures that all tests share: real data where it is, synthetic scans, and a model whose answer is known."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from petseg_runtime.io.images import write_image
from petseg_runtime.manifest import MANIFEST_KEY, Channel, ModelManifest, PreprocessingSpec, graph_sha256
from petseg_runtime.volume import Geometry, Unit, Volume

REPOSITORY = Path(__file__).parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

# The z-score above which the known model calls a voxel tumour.
TUMOUR_Z_SCORE = 2.0


def benchmark(name: str) -> ModuleType:
    """The script of that name in benchmarks/, which is no package."""
    specification = importlib.util.spec_from_file_location(name, REPOSITORY / f"benchmarks/{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="session", autouse=True)
def nothing_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The tests leave the user's cache alone, and what this machine passed in a self-test does not change them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real PET data beside the repository; it is not part of it."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real PET data (../shared/data) is not on this machine")
    return SHARED_DATA


@pytest.fixture(scope="session")
def manifest() -> ModelManifest:
    """Manifest of the known model: the paper's spacing, small windows."""
    return ModelManifest(
        name="known",
        version="1",
        channels=(Channel("PT", "any"),),
        preprocessing=PreprocessingSpec(spacing_mm=(2.0, 4.0, 4.0), body_threshold=0.2, body_margin_mm=20.0),
        patch_size=(16, 16, 16),
        overlap=0.5,
        threshold=0.5,
        labels={"background": 0, "tumour": 1},
        training={"data": "none: written by hand", "licence": "Apache-2.0"},
    )


def onnx_model(manifest: ModelManifest | None) -> bytes:
    """A network of one line, sigmoid(10 (z - 2)), with the manifest in it: voxels of z-score 2 and above are tumour."""
    shape = ["n", 1, "z", "y", "x"]
    graph = helper.make_graph(
        [
            helper.make_node("Sub", ["image", "threshold"], ["above"]),
            helper.make_node("Mul", ["above", "steepness"], ["logit"]),
            helper.make_node("Sigmoid", ["logit"], ["probability"]),
        ],
        "known",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(np.float32(TUMOUR_Z_SCORE), "threshold"),
            numpy_helper.from_array(np.float32(10.0), "steepness"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if manifest is not None:
        complete = replace(manifest, weights_sha256=graph_sha256(model.SerializeToString()))
        onnx.helper.set_model_props(model, {MANIFEST_KEY: complete.to_json()})
    return model.SerializeToString()


@pytest.fixture(scope="session")
def known_model(manifest: ModelManifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "known.onnx"
    path.write_bytes(onnx_model(manifest))
    return path


def body_array(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """A body of SUV near 1 in air, with a hot ball (SUV 12) off its centre. Not symmetric in any axis."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    body = (y / 0.75) ** 2 + (x / 0.8) ** 2 < 1
    array = np.where(body, rng.normal(1.0, 0.1, shape), rng.uniform(0, 0.02, shape)).clip(0)
    array[(z - 0.3) ** 2 + (y + 0.2) ** 2 + (x - 0.25) ** 2 < 0.15**2 * 4] = 12.0
    return array.astype(np.float32)


# Rotation by 20, -10 and 35 degrees about L, P and S: oblique, and no axis of the array lies along one of the patient.
OBLIQUE = ((-0.08, -0.5677, 0.8193), (-0.3898, 0.7736, 0.4998), (0.9174, 0.2813, 0.2836))


def oblique_direction() -> tuple[tuple[float, float, float], ...]:
    """`OBLIQUE` made orthonormal to the last bit."""
    u, _, v = np.linalg.svd(np.array(OBLIQUE))
    return tuple(tuple(float(value) for value in row) for row in u @ v)


GEOMETRIES = {
    "axial": Geometry((24, 30, 32), (4.0, 5.0, 5.0), (-80.0, -70.0, 10.0)),
    "anisotropic": Geometry((20, 40, 36), (7.5, 3.3, 4.1), (12.5, -33.0, -410.25)),
    "flipped": Geometry((24, 30, 32), (4.0, 5.0, 5.0), (80.0, 70.0, 10.0), ((0, 0, -1), (0, -1, 0), (-1, 0, 0))),
    "sagittal": Geometry((24, 30, 32), (5.0, 4.0, 5.0), (0.0, 0.0, 0.0), ((1, 0, 0), (0, 0, 1), (0, -1, 0))),
    "oblique": Geometry((24, 30, 32), (4.0, 5.0, 4.5), (-80.0, -70.0, 10.0), oblique_direction()),  # type: ignore[arg-type]
}


@pytest.fixture(params=sorted(GEOMETRIES))
def volume(request: pytest.FixtureRequest) -> Volume:
    """The same kind of body in every kind of geometry."""
    geometry = GEOMETRIES[request.param]
    return Volume(body_array(geometry.shape), geometry, Unit.SUVBW)


@pytest.fixture
def axial_volume() -> Volume:
    return Volume(body_array(GEOMETRIES["axial"].shape), GEOMETRIES["axial"], Unit.SUVBW)


@pytest.fixture(scope="session")
def cohort_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    rows = ["case,centre,image,mask,stage"]
    for number, (centre, spacing) in enumerate([("north", 4.0), ("north", 4.0), ("south", 5.0), ("south", 5.0)]):
        geometry = Geometry((20, 24, 26), (spacing, spacing, spacing))
        array = body_array(geometry.shape, number)
        name = f"case{number}"
        write_image(array, geometry, folder / f"{name}.nii.gz")
        write_image((array > 6).astype(np.uint8), geometry, folder / f"{name}_mask.nii.gz")
        rows.append(f"{name},{centre},{name}.nii.gz,{name}_mask.nii.gz,II")
    (folder / "cohort.csv").write_text("\n".join(rows) + "\n")
    return folder / "cohort.csv"


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cpu preset, smaller still, so that an epoch takes a second."""
    path = tmp_path_factory.mktemp("config") / "tiny.json"
    path.write_text(
        '{"preset": "cpu", "network_settings": {"base_filters": 4, "levels": 3}, "patch_size": [16, 16, 16],'
        ' "epochs": 8, "patches_per_epoch": null, "restart_epochs": 3, "precision": "32-true", "tuning_share": 0.25,'
        ' "tuning_every_epochs": 2, "weight_averaging": 0.5}'
    )
    return path


@pytest.fixture(scope="session")
def trained(cohort_csv: Path, tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of an uninterrupted run of the tiny config."""
    from petseg_train.cohort import read_cohort
    from petseg_train.config import load_config
    from petseg_train.training import fit

    return fit(read_cohort(cohort_csv), load_config(str(tiny_config)), tmp_path_factory.mktemp("run") / "whole")
