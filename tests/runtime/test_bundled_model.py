"""The bundled model, on the example and on real patients."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import REPOSITORY

from petseg_runtime import Segmenter, read_volume
from petseg_runtime.io.images import read_mask
from petseg_runtime.manifest import read_model
from petseg_runtime.segmenter import BUNDLED_MODEL

MODEL = REPOSITORY / "petseg_runtime" / "models" / BUNDLED_MODEL


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter()


def petseg_run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("petseg-run"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    return 2 * int((found & truth).sum()) / int(found.sum() + truth.sum())


def test_it_is_small_licensed_and_has_a_card() -> None:
    assert MODEL.stat().st_size <= 16e6
    manifest = read_model(MODEL).manifest
    training = manifest.training
    assert training["field_of_view"] == "abdomen and pelvis"  # the card forbids all else, and the report prints it
    assert "CC BY 3.0" in training["licence"]
    assert training["intended_use"] == "research"
    card = MODEL.with_suffix(".md").read_text()
    assert card.startswith(f"# {manifest.name}, version {manifest.version}\n")
    for part in (
        "10.7937/K9/TCIA.2015.7GO2GSKS",
        "ellipsoid",
        "T40",
        "Window invariance",
        "petseg-train fit",
        "research",
    ):
        assert part in card


def test_backends_give_the_same_mask(shared_data: Path, segmenter: Segmenter) -> None:
    volume = read_volume(shared_data / "sts" / "STS_007" / "PET_image.nii.gz")
    other = Segmenter(backend="onnxruntime", device="cpu").segment(volume)
    mine = segmenter.segment(volume)
    np.testing.assert_allclose(mine.probabilities, other.probabilities, atol=1e-3)
    assert (mine.mask != other.mask).sum() <= 0.001 * mine.mask.sum()


def test_a_mixed_and_unordered_study_gives_the_corrected_pet_and_its_suv(shared_data: Path, tmp_path: Path) -> None:
    done = petseg_run(shared_data / "acrin-study", "-o", tmp_path, "-s", "-p")
    assert "135 slices, attenuation corrected, BQML" in done.stderr
    assert "left out" in done.stderr
    statistics = json.loads((tmp_path / "acrin-study_stats.json").read_text())
    assert statistics["unit"] == "suvbw"
    assert statistics["scan_max"] == pytest.approx(51.1, rel=0.01)
    mask = sitk.ReadImage(str(tmp_path / "acrin-study_petseg.nii.gz"))
    assert mask.GetSize() == (128, 128, 135)
    np.testing.assert_allclose(mask.GetSpacing(), (4.6875, 4.6875, 3.27), atol=1e-3)
    assert (tmp_path / "acrin-study_preview.png").stat().st_size > 5000


def test_dicom_and_nifti_of_one_patient_give_the_same_tumour(shared_data: Path, segmenter: Segmenter) -> None:
    dicom = read_volume(shared_data / "sts-dicom" / "STS_007" / "PET")
    assert dicom.unit == "suvbw"
    segmentation = segmenter.segment(dicom)
    assert segmentation.mask.shape == dicom.array.shape
    assert segmentation.statistics.tumour.mtv_ml > 0


def test_it_outlines_the_tumour_of_the_example_and_nothing_of_the_bladder_beside_it(segmenter: Segmenter) -> None:
    """No training saw this patient, but one patient is no measure of accuracy."""
    examples = REPOSITORY / "examples"
    truth, bladder = (read_mask(examples / f"pelvis_{name}.nii.gz")[0] for name in ("mask", "bladder"))
    mask = segmenter.segment(read_volume(examples / "pelvis.nii.gz")).mask
    assert dice(mask, truth) > 0.7
    assert (mask & bladder).sum() < 0.01 * mask.sum()


def test_it_finds_the_tumours_it_was_trained_on(shared_data: Path, segmenter: Segmenter) -> None:
    """Not a measure of accuracy, which is in the card; a model that was swapped or broken fails here."""
    scores = []
    for name in ("STS_003", "STS_010", "STS_032"):
        folder = shared_data / "sts" / name
        mask = segmenter.segment(read_volume(folder / "PET_image.nii.gz")).mask
        truth, _ = read_mask(folder / "PET_mask.nii.gz")
        scores.append(dice(mask, truth))
    assert np.mean(scores) > 0.75
