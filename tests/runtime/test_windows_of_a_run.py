"""What reaches the network in a run: which windows, how many, mirrored how, on how many threads, and what is recorded.

The network is a fake that keeps the windows it is given, so nothing here depends on a vendor or on weights.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from conftest import GEOMETRIES, body_array

from petseg_runtime import Segmenter, Volume
from petseg_runtime.backends import onnxruntime as onnxruntime_backend
from petseg_runtime.backends import open_backend
from petseg_runtime.backends.openvino import OpenVinoBackend
from petseg_runtime.cli import main
from petseg_runtime.io.images import read_mask, write_image
from petseg_runtime.io.scans import find_scans
from petseg_runtime.manifest import ModelManifest
from petseg_runtime.preprocessing import preprocess
from petseg_runtime.runner import RunSettings, run_scan
from petseg_runtime.volume import Geometry, Unit

WINDOW = (8, 12, 16)  # three different sides, so that no two axes can be exchanged
SPACING_MM = (2.0, 4.0, 4.0)  # the manifest's: these scans are body all over, so the network's grid is the scan's own

# Axes (z, y, x) of the four mirrorings: none, front to back, left to right, both.
AXIAL_MIRRORINGS = ((), (1,), (2,), (1, 2))


class RecordingBackend:
    """A network that keeps its windows and answers with `answer`."""

    device, name = "cpu", "recording f32"

    def __init__(self, answer: Callable[[np.ndarray], np.ndarray] = np.zeros_like) -> None:
        self.answer = answer
        self.windows: list[np.ndarray] = []

    def predict(self, windows: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for window in windows:
            self.windows.append(window)
            yield self.answer(window)


def answer_by_place(windows: np.ndarray) -> np.ndarray:
    """Probability by the voxel's value and by its place in the window, different along each axis: no symmetry."""
    z, y, x = (np.linspace(0.0, 1.0, side) ** 2 for side in windows.shape[2:])
    place = z[:, None, None] + 2 * y[:, None] + 4 * x
    return (0.1 * place + 0.2 / (1 + np.exp(-windows))).astype(np.float32)


def answer_always(probability: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda windows: np.full_like(windows, probability)


def all_body(shape: tuple[int, int, int], seed: int = 0) -> Volume:
    """A scan with no air in it, on the network's own grid."""
    values = np.random.default_rng(seed).uniform(0.8, 1.2, shape).astype(np.float32)
    return Volume(values, Geometry(shape, SPACING_MM))


def z_score(volume: Volume) -> np.ndarray:
    """The network's input of a scan that is body all over."""
    return (volume.array - volume.array.mean()) / volume.array.std()


def mirrored(volume: Volume, axes: tuple[int, ...]) -> Volume:
    return Volume(np.ascontiguousarray(np.flip(volume.array, axes)), volume.geometry)


@pytest.fixture
def windowed(manifest: ModelManifest) -> ModelManifest:
    return replace(manifest, patch_size=WINDOW)


# --- Windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tta", [False, True], ids=["as it is", "mirrored"])
def test_a_window_is_one_contiguous_float32_patch_of_the_manifests_size(
    tta: bool, volume: Volume, windowed: ModelManifest
) -> None:
    backend = RecordingBackend()
    Segmenter.from_backend(windowed, backend).segment(volume, tta=tta)
    assert len(backend.windows) > 1
    for window in backend.windows:
        assert window.shape == (1, 1, *WINDOW)
        assert window.dtype == np.float32
        assert window.flags.c_contiguous


def test_the_windows_are_the_normalised_scan_piece_by_piece(windowed: ModelManifest) -> None:
    backend = RecordingBackend()
    scan = all_body((16, 12, 32))
    Segmenter.from_backend(windowed, backend).segment(scan, overlap=0.0)
    normalised = z_score(scan)
    expected = [normalised[z : z + 8, :, x : x + 16] for z, x in product((0, 8), (0, 16))]
    np.testing.assert_allclose([window[0, 0] for window in backend.windows], expected, atol=1e-4)


def test_the_network_sees_the_patient_along_s_p_l_however_the_file_is_stored(windowed: ModelManifest) -> None:
    scan = all_body(WINDOW)
    turned = np.ascontiguousarray(scan.array[::-1, :, ::-1].transpose(2, 0, 1))  # axes along R, I, P
    geometry = Geometry((16, 8, 12), (4.0, 2.0, 4.0), direction_lps=((-1, 0, 0), (0, 0, 1), (0, -1, 0)))
    for stored in (scan, Volume(turned, geometry)):
        backend = RecordingBackend()
        Segmenter.from_backend(windowed, backend).segment(stored)
        (window,) = backend.windows
        np.testing.assert_allclose(window[0, 0], z_score(scan), atol=1e-4)


def test_a_scan_smaller_than_a_window_is_padded_with_air_and_not_with_the_zero_of_the_scale(
    manifest: ModelManifest,
) -> None:
    geometry = GEOMETRIES["axial"]
    array = body_array(geometry.shape)
    array[array < 0.2] = 0.0  # air without noise: no activity at all
    volume = Volume(array, geometry)
    network_input = preprocess(volume, manifest.preprocessing)
    z, y, x = network_input.array.shape
    backend = RecordingBackend()
    Segmenter.from_backend(replace(manifest, patch_size=(z + 6, y + 4, x + 2)), backend).segment(volume)
    (window,) = backend.windows
    np.testing.assert_array_equal(window[0, 0, 3:-3, 2:-2, 1:-1], network_input.array)
    around = np.ones(window.shape[2:], bool)
    around[3:-3, 2:-2, 1:-1] = False
    np.testing.assert_array_equal(window[0, 0][around], np.float32(network_input.air))
    # Air is where the scan's own voxels of no activity came to lie, well below the mean of the body, which is 0.
    assert network_input.air == pytest.approx(network_input.array.min(), abs=1e-5)
    assert network_input.air < -0.3


# A window of 8 in an axis of 16 starts at 0, 8 without overlap, at 0, 4, 8 at a half, at 0, 2, 4, 6, 8 at three
# quarters; 16 in 32 likewise. A window of 12 in an axis of 20 has 8 to go, in steps of at most 12, 6 and 3 voxels: 1, 2
# and 3 steps, so 2, 3 and 4 windows.
@pytest.mark.parametrize(
    ("shape", "overlap", "count"),
    [
        (WINDOW, 0.75, 1),
        ((16, 12, 16), 0.0, 2),
        ((16, 12, 16), 0.5, 3),
        ((16, 12, 16), 0.75, 5),
        ((16, 20, 32), 0.0, 2 * 2 * 2),
        ((16, 20, 32), 0.5, 3 * 3 * 3),
        ((16, 20, 32), 0.75, 5 * 4 * 5),
    ],
)
def test_overlap_sets_the_number_of_windows(
    shape: tuple[int, int, int], overlap: float, count: int, windowed: ModelManifest
) -> None:
    asked, of_the_model = RecordingBackend(), RecordingBackend()
    Segmenter.from_backend(windowed, asked).segment(all_body(shape), overlap=overlap)
    Segmenter.from_backend(replace(windowed, overlap=overlap), of_the_model).segment(all_body(shape))
    assert len(asked.windows) == count
    assert len(of_the_model.windows) == count


@pytest.mark.parametrize(("threshold", "is_tumour"), [(0.39, True), (0.41, False)])
def test_the_threshold_is_the_models_unless_one_is_asked_for(
    threshold: float, is_tumour: bool, windowed: ModelManifest
) -> None:
    backend = RecordingBackend(answer_always(0.4))
    scan = all_body(WINDOW)
    of_the_model = Segmenter.from_backend(replace(windowed, threshold=threshold), backend).segment(scan)
    asked = Segmenter.from_backend(windowed, backend).segment(scan, threshold=threshold)
    for segmentation in (of_the_model, asked):
        assert (segmentation.mask == int(is_tumour)).all()


# --- Mirroring -------------------------------------------------------------------------------------------------------


def test_mirroring_asks_the_network_for_the_four_axial_mirrorings(windowed: ModelManifest) -> None:
    scan = all_body(WINDOW)
    backend = RecordingBackend(answer_by_place)
    segmentation = Segmenter.from_backend(windowed, backend).segment(scan, tta=True)
    expected = [np.flip(z_score(scan), axes) for axes in AXIAL_MIRRORINGS]
    assert len(backend.windows) == 4
    for mirroring in expected:
        assert sum(np.allclose(window[0, 0], mirroring, atol=1e-4) for window in backend.windows) == 1
    answers = [
        np.flip(answer_by_place(mirroring[None, None])[0, 0], axes)
        for mirroring, axes in zip(expected, AXIAL_MIRRORINGS)
    ]
    np.testing.assert_allclose(segmentation.probabilities, np.mean(answers, axis=0), atol=1e-5)


def test_mirroring_is_the_mean_over_the_four_mirrored_scans_also_with_many_windows(windowed: ModelManifest) -> None:
    scan = all_body((13, 17, 27))
    segmenter = Segmenter.from_backend(windowed, RecordingBackend(answer_by_place))
    each = [np.flip(segmenter.segment(mirrored(scan, axes)).probabilities, axes) for axes in AXIAL_MIRRORINGS]
    mean = segmenter.segment(scan, tta=True).probabilities
    np.testing.assert_allclose(mean, np.mean(each, axis=0), atol=1e-5)
    assert np.abs(mean - each[0]).max() > 0.05  # or this test could not tell


def test_without_mirroring_the_network_is_asked_once(windowed: ModelManifest) -> None:
    scan = all_body(WINDOW)
    backend = RecordingBackend(answer_by_place)
    segmentation = Segmenter.from_backend(windowed, backend).segment(scan)
    (window,) = backend.windows
    np.testing.assert_allclose(segmentation.probabilities, answer_by_place(window)[0, 0], atol=1e-5)


@pytest.mark.parametrize("tta", [False, True], ids=["as it is", "mirrored"])
def test_progress_counts_the_windows_the_network_saw(tta: bool, windowed: ModelManifest) -> None:
    backend, seen = RecordingBackend(), []
    segmenter = Segmenter.from_backend(windowed, backend)
    segmenter.segment(all_body((16, 20, 32)), lambda done, total: seen.append((done, total)), tta=tta)
    count = len(backend.windows)
    assert seen == [(done, count) for done in range(1, count + 1)]


# --- The command -----------------------------------------------------------------------------------------------------


class Command:
    """petseg-run with the fake network in place of the vendor's; keeps what the backend was opened with."""

    def __init__(self, model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.backend = RecordingBackend(answer_always(0.4))
        self.opened: list[dict[str, object]] = []
        self._model, self._folder = model, folder
        self._scan = folder / "scan.nii.gz"
        scan = all_body((16, 16, 32))  # the manifest's windows are cubes of 16: two side by side without overlap
        write_image(scan.array, scan.geometry, self._scan)
        monkeypatch.setattr("petseg_runtime.segmenter.open_backend", self._open)

    def _open(
        self, model: bytes, backend: str, device: str, threads: int | None, *_: object, **options: object
    ) -> tuple[RecordingBackend, str]:
        precision = options["precision"]
        self.opened.append({"backend": backend, "device": device, "threads": threads, "precision": precision})
        return self.backend, "Runs on a fake."

    def __call__(self, *arguments: str) -> None:
        code = main([str(self._scan), "-q", "--model", str(self._model), "-o", str(self._folder / "out"), *arguments])
        assert code == 0

    @property
    def record(self) -> dict[str, object]:
        return json.loads((self._folder / "out" / "scan_run.json").read_text(encoding="utf-8"))

    @property
    def mask(self) -> np.ndarray:
        return read_mask(self._folder / "out" / "scan_petseg.nii.gz")[0]


@pytest.fixture
def command(known_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(known_model, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("arguments", "opened"),
    [
        ((), {"backend": "auto", "device": "auto", "threads": None, "precision": "f32"}),
        (("--threads", "3"), {"backend": "auto", "device": "auto", "threads": 3, "precision": "f32"}),
        (
            ("--threads", "1", "--backend", "onnxruntime", "-d", "cpu"),
            {"backend": "onnxruntime", "device": "cpu", "threads": 1, "precision": "f32"},
        ),
    ],
    ids=lambda value: " ".join(value) or "by default" if isinstance(value, tuple) else "",
)
def test_threads_backend_and_device_reach_the_backend(
    arguments: Sequence[str], opened: dict[str, object], command: Command
) -> None:
    command(*arguments)
    assert command.opened == [opened]


def test_openvino_runs_on_as_many_threads_as_asked(known_model: Path) -> None:
    backend, _ = open_backend(known_model.read_bytes(), "openvino", "cpu", threads=1)
    assert isinstance(backend, OpenVinoBackend)
    # One, since OpenVINO takes no more than the machine has; without the option it takes all.
    assert backend.compiled((1, 1, 16, 16, 16)).get_property("INFERENCE_NUM_THREADS") == 1


@pytest.mark.parametrize(("threads", "expected"), [(3, 3), (None, 0)], ids=["three", "its own choice"])
def test_onnx_runtime_runs_on_as_many_threads_as_asked(
    threads: int | None, expected: int, known_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vendor = onnxruntime_backend.onnxruntime
    sessions, open_session = [], vendor.InferenceSession

    def keep(*arguments: object, **options: object) -> object:
        sessions.append(open_session(*arguments, **options))
        return sessions[-1]

    monkeypatch.setattr(vendor, "InferenceSession", keep)
    open_backend(known_model.read_bytes(), "onnxruntime", "cpu", threads)
    assert [session.get_session_options().intra_op_num_threads for session in sessions] == [expected]


@pytest.mark.parametrize(
    ("arguments", "settings", "windows", "tumour"),
    [
        # Two windows of 16 in an axis of 32 at no overlap; at a quarter (steps of 12 at most) and at a half three, at
        # 0, 8, 16. The network answers 0.4. The known model's own settings are 0.5 and 0.5.
        ((), {"threshold": 0.5, "overlap": 0.5, "tta": False, "unit": "unknown"}, 3, 0),
        (
            ("--threshold", "0.3", "--overlap", "0.25", "--tta", "--unit", "suvbw"),
            {"threshold": 0.3, "overlap": 0.25, "tta": True, "unit": "suvbw"},
            3 * 4,
            1,
        ),
        (
            ("--threshold", "0.45", "--overlap", "0", "--unit", "bqml"),
            {"threshold": 0.45, "overlap": 0.0, "tta": False, "unit": "bqml"},
            2,
            0,
        ),
    ],
    ids=["the model's own", "asked for", "zero asked for"],
)
def test_the_record_holds_the_settings_that_the_run_kept_to(
    arguments: Sequence[str], settings: dict[str, object], windows: int, tumour: int, command: Command
) -> None:
    command(*arguments)
    recorded = command.record["settings"]
    assert {key: recorded[key] for key in settings} == settings
    assert len(command.backend.windows) == windows
    assert (command.mask == tumour).all()


@pytest.mark.parametrize(("longest_mm", "warned"), [(0.0, False), (128.0, False), (117.0, False), (116.0, True)])
def test_a_body_longer_than_what_the_model_is_for_is_warned_of(
    longest_mm: float, warned: bool, windowed: ModelManifest
) -> None:
    # 64 slices of 2 mm are 128 mm; up to a tenth more is let pass.
    manifest = replace(windowed, longest_body_mm=longest_mm)
    segmentation = Segmenter.from_backend(manifest, RecordingBackend()).segment(all_body((64, 12, 16)))
    said = [w for w in segmentation.warnings if "mm long" in w]
    assert [f"128 mm long, and the model is for {longest_mm:.0f} mm" in w for w in said] == ([True] if warned else [])


def test_a_scan_in_which_something_very_hot_hides_the_body_is_warned_of(windowed: ModelManifest) -> None:
    segmenter = Segmenter.from_backend(windowed, RecordingBackend())
    array = np.random.default_rng(0).lognormal(np.log(0.7), 0.1, (64, 12, 16)).astype(np.float32)
    array[:, :, 7:] *= 200  # more than half: no search tells it from the body
    in_suv, elsewhere = "What passes for the body has an SUV of 140.3 in the median", "The body in the scan is small"
    for unit, expected, to_do in (
        (Unit.SUVBW, in_suv, "or pass the whole scan"),
        (Unit.UNKNOWN, elsewhere, "Pass --unit where you know it"),
        (Unit.BQML, elsewhere, "Pass --patient-weight-kg and --injected-dose-mbq"),
    ):
        said = segmenter.segment(Volume(array, Geometry(array.shape, (2.0, 4.0, 4.0)), unit)).warnings
        assert [expected in w and to_do in w for w in said if "the mask may be wrong" in w] == [True]


def test_a_scan_that_cuts_the_body_off_at_its_side_is_warned_of(windowed: ModelManifest) -> None:
    """The model is for whole bodies: of cropped ones it marked half, and nothing said so."""
    segmenter = Segmenter.from_backend(windowed, RecordingBackend())
    (said,) = segmenter.segment(all_body((64, 12, 16))).warnings
    assert "cuts the body off at its side, of which 100 % are body" in said
    array = np.zeros((64, 40, 44), np.float32)
    array[:, 14:26, 14:30] = all_body((64, 12, 16)).array
    assert segmenter.segment(Volume(array, Geometry(array.shape, (2.0, 4.0, 4.0)), Unit.SUVBW)).warnings == ()


@pytest.mark.parametrize(
    ("side", "uptake", "warned"),
    [
        (5, 1.6, []),  # of the 1000 voxels of the body 12.5 % would be too many, were they marked
        (4, 1.6, []),
        (4, 1.4, ["1.4 times the uptake of the body"]),
        (5, 1.6, ["12 % of the body"]),
        (5, 1.4, ["1.4 times the uptake of the body", "12 % of the body"]),
    ],
    ids=["nothing is marked", "a tumour", "pale", "large", "both"],
)
def test_a_mask_as_no_tumour_is_warned_of(
    side: int, uptake: float, warned: list[str], windowed: ModelManifest, request: pytest.FixtureRequest
) -> None:
    """A brain of a litre and 0.3 l of an even phantom were called a tumour without a word."""
    array = np.zeros((30, 30, 34), np.float32)
    array[10:20, 10:20, 12:22] = np.linspace(0.98, 1.02, 1000).reshape(10, 10, 10)
    array[12 : 12 + side, 12 : 12 + side, 14 : 14 + side] *= uptake
    volume = Volume(array, Geometry(array.shape, (2.0, 4.0, 4.0)), Unit.SUVBW)
    marks = "nothing" not in request.node.name

    def answer(window: np.ndarray) -> np.ndarray:
        return ((window > 1) & marks).astype(np.float32)  # more than a standard deviation above the body's mean

    segmentation = Segmenter.from_backend(replace(windowed, patch_size=(32, 32, 48)), RecordingBackend(answer)).segment(
        volume
    )
    assert segmentation.mask.sum() == marks * side**3
    said = segmentation.warnings
    assert len(said) == len(warned)
    assert all(expected in warning for expected, warning in zip(warned, said, strict=True))


def test_what_to_mind_of_scan_and_model_stands_in_the_record(windowed: ModelManifest, tmp_path: Path) -> None:
    scan = all_body((64, 12, 16))
    write_image(scan.array, scan.geometry, tmp_path / "scan.nii.gz")
    segmenter = Segmenter.from_backend(replace(windowed, longest_body_mm=50.0), RecordingBackend())
    run_scan(find_scans(tmp_path / "scan.nii.gz")[0], segmenter, RunSettings())
    warnings = json.loads((tmp_path / "scan_run.json").read_text(encoding="utf-8"))["warnings"]
    assert sum("the model is for 50 mm" in warning for warning in warnings) == 1


def test_the_record_names_the_model_and_the_backend_that_ran(command: Command, manifest: ModelManifest) -> None:
    command()
    assert command.record["model"]["name"] == manifest.name
    assert command.record["backend"] == "recording f32"
    assert "Runs on a fake." in command.record["decisions"]
