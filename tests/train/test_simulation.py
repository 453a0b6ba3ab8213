"""The simulated cohort: its plan, its physics, one whole patient, and the files of a cohort."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from petseg_runtime import read_volume
from petseg_runtime.errors import UsageError
from petseg_runtime.io.images import read_mask, write_image
from petseg_runtime.outputs.files import _HOST
from petseg_runtime.volume import Geometry, Unit
from petseg_train.cli import simulate as simulate_command
from petseg_train.cohort import read_cohort
from petseg_train.metrics import dice
from petseg_train.simulation import cohort as cohort_module
from petseg_train.simulation.acquisition import Scan, acquire, first_pixel_mm
from petseg_train.simulation.anatomy import Habitus
from petseg_train.simulation.calibration import calibration
from petseg_train.simulation.canvas import Canvas, Label, ellipsoid
from petseg_train.simulation.centres import (
    BIOGRAPH,
    CENTRES,
    DISCOVERY_710,
    DISCOVERY_ST,
    DISCOVERY_STE,
    GEMINI_TF,
    Scanner,
    cohort_plan,
)
from petseg_train.simulation.cohort import make_patient, simulate_cohort
from petseg_train.simulation.patient import Patient, on_grid, simulate_patient, trunk_positions
from petseg_train.simulation.projection import Projector
from petseg_train.simulation.thorax import paint_above_the_abdomen
from petseg_train.simulation.truth import expert_voi, paper_truth

MONTREAL = CENTRES[2]


def test_the_whole_cohort_is_table_1() -> None:
    plan = cohort_plan(232)
    counts = Counter((centre.name, scanner.model) for centre, scanner in plan)
    assert counts == {
        ("Brest", "Biograph"): 69,
        ("Nantes", "Biograph"): 18,
        ("Nantes", "Discovery STE"): 5,
        ("Montreal", "Discovery 710"): 7,
        ("Montreal", "Discovery ST"): 19,
        ("Barcelona", "Gemini TF"): 24,
        ("Liege", "Gemini TF"): 90,
    }


@given(st.integers(10, 2000))
def test_a_cohort_of_any_size_has_two_of_each_centre(patients: int) -> None:
    counts = Counter(centre.name for centre, _ in cohort_plan(patients))
    assert sum(counts.values()) == patients
    assert len(counts) == 5
    assert min(counts.values()) >= 2


def test_a_cohort_too_small_is_refused() -> None:
    with pytest.raises(UsageError, match="9 patients were asked for, expected 10 or more"):
        cohort_plan(9)


@pytest.mark.parametrize("tof_mm", [None, 80.0])
def test_back_projection_is_the_adjoint_of_projection(tof_mm: float | None) -> None:
    """<A x, y> = <x, A^T y>, for every angle."""
    projector = Projector((30, 40), 5.0, 10.0, 7, tof_mm)
    rng = np.random.default_rng(0)
    image = rng.random((30 * 40, 2), dtype=np.float32)
    for angle in range(7):
        projected = projector.forward(image, angle)
        sinogram = rng.random(projected.shape, dtype=np.float32)
        back = projector.backward(sinogram, angle)
        assert float((projected * sinogram).sum()) == pytest.approx(float((image * back).sum()), rel=1e-4)


@pytest.mark.parametrize("tof_mm", [None, 80.0])
def test_line_integrals_through_a_disc_are_its_chords(tof_mm: float | None) -> None:
    """A disc of radius R: 2 sqrt(R^2 - u^2) at the distance u from its middle, in all time bins together."""
    radius, pixel = 100.0, 2.0
    axis = (np.arange(200) - 99.5) * pixel
    disc = (axis[:, None] ** 2 + axis**2 <= radius**2).astype(np.float32).reshape(-1, 1)
    projector = Projector((200, 200), pixel, 4.0, 5, tof_mm)
    across = (np.arange(projector.bins) - (projector.bins - 1) / 2) * 4.0
    chords = 2 * np.sqrt(np.maximum(radius**2 - across**2, 0))
    for angle in range(5):
        measured = projector.forward(disc, angle).sum(axis=0)[:, 0]
        assert not measured[np.abs(across) > radius + 4].any()  # the rim crosses a bin
        np.testing.assert_allclose(measured[np.abs(across) < 80], chords[np.abs(across) < 80], rtol=0.02)


def test_time_of_flight_tells_where_on_the_line() -> None:
    """A point 100 mm along the line from the middle is seen there, on average."""
    image = np.zeros((1, 100), np.float32)
    image[0, 75] = 1.0  # x = 4 * 25.5 mm
    projector = Projector((1, 100), 4.0, 4.0, 2, 80.0)
    times = projector.forward(image.reshape(-1, 1), 1)[:, :, 0].sum(axis=1)  # lines along x
    width = 2 * 80.0 / np.sqrt(8 * np.log(2))
    places = (np.arange(len(times)) - (len(times) - 1) / 2) * width
    assert abs((places * times).sum() / times.sum()) == pytest.approx(102.0, abs=10.0)


def phantom(z_mm: float = 60.0) -> Canvas:
    """A cylinder of 200 mm of water with uptake 1, and in it a rod of 80 mm with uptake 4."""
    canvas = Canvas((-z_mm / 2, z_mm / 2))
    for radius, suv in ((100.0, 1.0), (40.0, 4.0)):
        canvas.paint(ellipsoid((0, 0, 0), (radius, radius, 1e6)), (0, 0, 0), 120, Label.MUSCLE, suv)
    return canvas


def scanned(bed_s: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The image of the phantom, and each pixel's distance from the axis in mm."""
    z_mm = np.arange(-16, 16.1, 4.0, dtype=np.float32)
    image = acquire(phantom(), Scan(GEMINI_TF, bed_s, 5000.0, z_mm), np.random.default_rng(seed))
    place = first_pixel_mm(GEMINI_TF) + np.arange(GEMINI_TF.matrix) * GEMINI_TF.voxel_mm[0]
    return image, np.hypot(place[:, None], place)


def test_the_image_is_in_suv_where_it_is_uniform() -> None:
    image, distance = scanned(bed_s=1000.0)
    assert image[2:-2, distance < 25].mean() == pytest.approx(4.0, rel=0.05)
    assert image[2:-2, (distance > 55) & (distance < 85)].mean() == pytest.approx(1.0, rel=0.1)
    assert image[:, distance > 130].mean() < 0.02


def test_noise_falls_with_the_square_root_of_the_time() -> None:
    noise = []
    for bed_s in (100.0, 400.0):
        image, distance = scanned(bed_s)
        noise.append(image[2:-2, distance < 25].std())
    assert noise[0] / noise[1] == pytest.approx(2.0, rel=0.25)


@pytest.fixture(scope="module")
def patient() -> Patient:
    return simulate_patient(MONTREAL, DISCOVERY_ST, np.random.default_rng([5, 1]))


def test_a_patient_is_a_pelvic_scan_of_its_scanner(patient: Patient) -> None:
    geometry = patient.volume.geometry
    assert geometry.spacing_mm == (3.27, 5.469, 5.469)
    assert geometry.shape[1:] == (128, 128)
    assert 77 <= geometry.shape[0] <= 192
    assert patient.volume.unit is Unit.SUVBW
    assert np.isfinite(patient.volume.array).all()
    assert patient.volume.array.min() >= 0


def test_the_masks_hold_what_was_drawn(patient: Patient) -> None:
    voxel_ml = patient.volume.geometry.voxel_volume_ml
    vital_ml = patient.lesion.volume_ml - patient.lesion.necrosis_ml
    assert 2 <= patient.lesion.volume_ml <= 301
    assert patient.tumour.sum() * voxel_ml == pytest.approx(vital_ml, rel=0.15, abs=1.0)
    assert patient.bladder.sum() * voxel_ml == pytest.approx(patient.lesion.bladder_ml, rel=0.1, abs=2.0)
    assert not (patient.tumour & patient.bladder).any()
    inside = patient.volume.array[patient.bladder > 0]
    assert np.median(inside) == pytest.approx(patient.lesion.bladder_suv, rel=0.3)


@pytest.mark.parametrize("scanner", [BIOGRAPH, DISCOVERY_STE, DISCOVERY_710, DISCOVERY_ST, GEMINI_TF])
def test_a_mask_lies_where_the_tumour_is(scanner: Scanner) -> None:
    """A ball in the middle of the canvas has its middle there on every scanner's grid."""
    canvas = Canvas((-30.0, 30.0))
    canvas.ball((0, 0, 0), 12.0, Label.TUMOUR, 1.0)
    z_mm = (np.arange(15, dtype=np.float32) - 7) * np.float32(scanner.voxel_mm[1])
    mask = on_grid(canvas, canvas.labels == Label.TUMOUR, scanner, z_mm)
    z, y, x = np.argwhere(mask).mean(axis=0)
    plane = first_pixel_mm(scanner) + np.array([y, x]) * scanner.voxel_mm[0]
    np.testing.assert_allclose([*plane, z_mm[0] + z * scanner.voxel_mm[1]], 0, atol=0.5)


def test_the_same_seed_makes_the_same_patient(patient: Patient) -> None:
    again = simulate_patient(MONTREAL, DISCOVERY_ST, np.random.default_rng([5, 1]))
    np.testing.assert_array_equal(again.volume.array, patient.volume.array)
    np.testing.assert_array_equal(again.tumour, patient.tumour)


def test_the_experts_volume_leaves_out_the_bladder(patient: Patient) -> None:
    voi = expert_voi(patient, np.random.default_rng(0))
    assert not (voi & (patient.bladder > 0)).any()
    assert voi.sum() > patient.tumour.sum()


def test_the_papers_truth_is_near_the_exact_mask(patient: Patient) -> None:
    truth = paper_truth(patient, np.random.default_rng(0))
    assert truth.method in ("flab", "flab, 3 classes")
    assert dice(truth.mask > 0, patient.tumour > 0) >= max(0.5, truth.flab_dsc)
    assert not (truth.mask & patient.bladder).any()


@pytest.fixture(scope="module")
def trunk() -> Canvas:
    """From the diaphragm to the skull's base, without warp, of an average patient."""
    canvas = Canvas((330.0, 780.0))
    paint_above_the_abdomen(canvas, Habitus(size=1.0, fat_mm=20.0, belly_mm=15.0), np.random.default_rng(1))
    return canvas


def test_the_organs_of_the_thorax_have_a_womans_size(trunk: Canvas) -> None:
    """Lungs 2-5 l at quiet breathing, heart with its blood 0.3-0.8 l; the body stays within the canvas."""
    litres = np.bincount(trunk.labels.ravel(), minlength=len(Label)) * 2.0**3 / 1e6
    assert 2 < litres[Label.LUNG] < 5
    assert 0.3 < litres[Label.HEART] < 0.8
    for face in (trunk.labels[:, 0], trunk.labels[:, -1], trunk.labels[:, :, 0], trunk.labels[:, :, -1]):
        assert not face.any()


def test_the_heart_lies_left_and_in_front_between_the_lungs(trunk: Canvas) -> None:
    z, y, x = (axis[places].mean() for axis, places in zip(trunk.axes, np.nonzero(trunk.labels == Label.HEART)))
    assert 390 < z < 460
    assert y < 0
    assert 15 < x < 60
    lungs = trunk.axes[2][np.nonzero(trunk.labels == Label.LUNG)[2]]
    assert (lungs < 0).mean() == pytest.approx(0.5, abs=0.1)
    assert trunk.uptake[trunk.labels == Label.LUNG].mean() < 0.65


def test_the_brain_is_the_hottest_and_only_there_where_the_scan_holds_it(trunk: Canvas) -> None:
    assert trunk.uptake[trunk.labels == Label.BRAIN].mean() > 4
    thorax = Canvas((330.0, 640.0))
    paint_above_the_abdomen(thorax, Habitus(1.0, 20.0, 15.0), np.random.default_rng(1))
    assert not (thorax.labels == Label.BRAIN).any()
    assert (thorax.labels == Label.HEART).sum() == (trunk.labels == Label.HEART).sum()


def test_scans_of_the_trunk_end_above_the_abdomen() -> None:
    ends = [
        trunk_positions(DISCOVERY_ST, Habitus(1.0, 20.0, 15.0), np.random.default_rng(seed))[[0, -1]]
        for seed in range(60)
    ]
    assert max(low for low, _ in ends) <= -85
    assert min(high for _, high in ends) > 390
    assert 920 < max(high for _, high in ends) < 960


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patient's folder, with DICOM."""
    folder = tmp_path_factory.mktemp("simulated") / "montreal-001"
    make_patient(folder, 3, MONTREAL, DISCOVERY_ST, seed=5, dicom=True)
    return folder


def test_a_patients_files_lie_on_one_grid(folder: Path) -> None:
    volume = read_volume(folder / "PET.nii.gz")
    for name in ("mask", "exact", "bladder"):
        mask, geometry = read_mask(folder / f"{name}.nii.gz")
        assert geometry == volume.geometry
        assert mask.any()


def test_the_dicom_series_holds_the_same_scan_in_suv(folder: Path) -> None:
    """Through Bq/ml, weight, dose and decay, as a scanner's own series; rounded to 15 bits a slice and once more."""
    image, series = read_volume(folder / "PET.nii.gz"), read_volume(folder / "dicom")
    assert series.unit is Unit.SUVBW
    np.testing.assert_allclose(series.geometry.origin_lps_mm, image.geometry.origin_lps_mm, atol=1e-3)
    np.testing.assert_allclose(series.geometry.spacing_mm, image.geometry.spacing_mm, atol=1e-4)
    np.testing.assert_allclose(series.array, image.array, rtol=2e-3, atol=2e-3)


@pytest.fixture
def no_simulation(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is simulated is the same patient, at once."""
    truth = SimpleNamespace(mask=patient.tumour, method="flab", flab_dsc=1.0)
    monkeypatch.setattr(cohort_module, "simulate_patient", lambda *_: patient)
    monkeypatch.setattr(cohort_module, "paper_truth", lambda *_: truth)


@pytest.mark.usefixtures("no_simulation")
def test_scans_of_other_pixels_have_other_uids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command names the same scan; another case, size of cohort, kind of scan, seed or version does not."""

    def names(folder: str, case: str = "a-001", seed: int = 5, **settings: Any) -> set[str]:
        make_patient(tmp_path / folder / case, 3, MONTREAL, DISCOVERY_ST, seed, dicom=True, **settings)
        series = pydicom.dcmread(tmp_path / folder / case / "dicom" / "PT0001.dcm")
        keywords = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID")
        assert len(series.PatientID) <= 64
        return {str(series[keyword].value) for keyword in keywords}

    made = [names("first"), names("case", "a-002"), names("size", patients=232), names("trunk", trunk=True)]
    made.append(names("seed", seed=6))
    assert names("again") == made[0]
    monkeypatch.setattr(cohort_module, "VERSION", 99)
    made.append(names("version"))
    monkeypatch.setattr(cohort_module, "TRUNK_VERSION", 99)
    made.append(names("trunk version", trunk=True))
    assert len(set.union(*made)) == 5 * len(made)


def test_the_calibration_of_a_centre_by_hand(tmp_path: Path) -> None:
    """Run again is what FLAB's first run did not satisfy in, whichever mask was kept. Tumours of 2 ml, SUV 8 in 1."""
    rows = []
    geometry = Geometry((20, 20, 20), (5.0, 5.0, 5.0))
    reviewed = [(0.9, "flab"), (0.7, "flab"), (0.6, "flab, 3 classes"), ("", "edited")]
    for number, (flab_dsc, truth) in enumerate(reviewed):
        array = np.random.default_rng(number).normal(1, 0.01, geometry.shape).astype(np.float32)
        mask = np.zeros(geometry.shape, np.uint8)
        array[4:8, 4:8, 4], mask[4:8, 4:8, 4] = 8.0, 1
        for name, voxels in (("image", array), ("mask", mask)):
            write_image(voxels, geometry, tmp_path / f"{number}{name}.nii.gz")
        row = {"case": str(number), "centre": "A", "image": f"{number}image.nii.gz", "mask": f"{number}mask.nii.gz"}
        noise = {"noise_muscle": 0.1, "noise_liver": 0.2}
        rows.append(row | noise | {"flab_dsc": flab_dsc, "truth": truth, "touches_bladder": number == 0})
    pd.DataFrame(rows).to_csv(tmp_path / "cohort.csv", index=False)
    (calibrated,) = calibration(tmp_path / "cohort.csv").to_dict("records")
    assert (calibrated["again"], calibrated["edited"], calibrated["touch"]) == ("75 %", "25 %", "25 %")
    assert (calibrated["ml"], calibrated["contrast"], calibrated["T40"]) == ("2 ± 0", "7.9 ± 0.0", "1.00 ± 0.00")
    assert (calibrated["flab"], calibrated["muscle"], calibrated["liver"]) == ("0.73 ± 0.15", "0.10", "0.20")


def test_a_cohort_of_patients_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text("case,centre,image,mask\n")
    with pytest.raises(UsageError, match=r"holds a cohort.csv that was not simulated. Choose another folder"):
        simulate_cohort(tmp_path, 10, seed=5)
    assert [path.name for path in tmp_path.iterdir()] == ["cohort.csv"]


def test_a_killed_process_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(Future):
        def result(self, timeout: float | None = None) -> None:
            raise BrokenProcessPool

    class Pool:
        def __init__(self, *_: object) -> None: ...
        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: object) -> None: ...
        def submit(self, *_: object) -> Killed:
            killed = Killed()
            killed.set_result(None)
            return killed

    monkeypatch.setattr(cohort_module, "ProcessPoolExecutor", Pool)
    with pytest.raises(UsageError, match="A simulating process was killed"):
        simulate_cohort(tmp_path, 10, seed=5)
    assert not (tmp_path / "cohort.csv").exists()


def test_workers_end_with_the_process_that_started_them() -> None:
    program = """if True:
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context
        import os, time
        from petseg_train.simulation.cohort import _end_with_parent
        with ProcessPoolExecutor(1, get_context("spawn"), _end_with_parent) as pool:
            print(pool.submit(os.getpid).result(), flush=True)
            pool.submit(time.sleep, 600).result()
    """
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
    end = time.monotonic() + 60
    while _runs(worker):
        assert time.monotonic() < end
        time.sleep(0.05)


def _runs(process: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.usefixtures("no_simulation")
def test_a_patient_that_another_process_made_meanwhile_is_taken(tmp_path: Path) -> None:
    for _ in range(2):
        make_patient(tmp_path / "a-001", 3, MONTREAL, DISCOVERY_ST, seed=5)
    assert [path.name for path in tmp_path.iterdir()] == ["a-001"]
    (tmp_path / "a-001" / "patient.json").unlink()  # no patient, then
    with pytest.raises(OSError, match="not empty"):
        make_patient(tmp_path / "a-001", 3, MONTREAL, DISCOVERY_ST, seed=5)


def test_a_finished_cohort_is_not_made_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = json.loads((folder / "patient.json").read_text())
    monkeypatch.setattr(cohort_module, "_named", lambda plan, prefix: [(f"{prefix}montreal-001", *plan[0])])
    (tmp_path / "montreal-001").mkdir()
    for file in folder.glob("*.*"):
        (tmp_path / "montreal-001" / file.name).write_bytes(file.read_bytes())
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = tmp_path / f".petseg-{_HOST}.{ended.pid}.1-killed"
    left.mkdir()
    csv = simulate_cohort(tmp_path, 10, seed=5)
    assert not left.exists()  # what a killed process left of a patient
    assert pd.read_csv(csv)["volume_ml"].tolist() == [row["volume_ml"]]
    assert [case.centre for case in read_cohort(csv)] == ["Montreal"]
    simulate_command(tmp_path, patients=10, seed=5)
    assert "Montreal" in capsys.readouterr().out
    assert (tmp_path / "cohort.png").stat().st_size > 5000
    with pytest.raises(UsageError, match="simulated with other settings"):
        simulate_cohort(tmp_path, 10, seed=6)
    with pytest.raises(UsageError, match="simulated with other settings"):
        simulate_cohort(tmp_path, 10, seed=5, trunk=True)
    (tmp_path / "simulation.json").write_text("{")
    with pytest.raises(UsageError, match="simulated with other settings"):
        simulate_cohort(tmp_path, 10, seed=5)
