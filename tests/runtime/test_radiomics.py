"""Radiomic features: IBSI's published values of its digital phantom, and what users get."""

from __future__ import annotations

import csv
import importlib.util
import json
import logging
from pathlib import Path

import numpy as np
import pytest
from conftest import body_array
from runtime.test_cli import SMALL, save

import petseg_runtime.outputs.radiomics
from petseg_runtime.cli import main
from petseg_runtime.errors import UsageError
from petseg_runtime.outputs.radiomics import RadiomicsSettings, radiomic_features, unmeasured
from petseg_runtime.volume import Geometry, Unit, Volume

pytest.importorskip("mirp", reason="the extra `radiomics` is not installed")

# The digital phantom of the IBSI reference manual (figure 5.1): four slices z of four rows y and five columns x,
# voxels of 2 mm; 0 stands for the six voxels outside the region, whose intensities do not matter.
PHANTOM = """
1 4 4 1 1  1 4 4 1 1  1 4 4 0 0  1 4 4 0 0
1 4 6 1 1  1 1 6 1 1  1 1 1 1 1  1 1 1 1 1
4 1 6 4 1  0 1 3 1 1  1 1 0 1 1  1 1 1 1 1
4 4 6 4 1  4 4 6 1 1  1 1 6 1 1  1 1 6 1 1
"""

# Reference manual, chapter 5: value and tolerance; textures are three-dimensional and merged.
PUBLISHED = {
    "morph_volume": (556, 4),
    "morph_vol_approx": (592, 4),
    "morph_area_mesh": (388, 3),
    "morph_sphericity": (0.843, 0.005),
    "morph_diam": (13.1, 0.1),
    "morph_pca_maj_axis": (11.4, 0.1),
    "morph_pca_flatness": (0.749, 0.005),
    "morph_com": (0.672, 0.004),
    "morph_moran_i": (0.0397, 0.0003),
    "morph_geary_c": (0.974, 0.006),
    "stat_mean": (2.15, 0.005),
    "stat_var": (3.05, 0.005),
    "stat_skew": (1.08, 0.005),
    "stat_kurt": (-0.355, 0.0005),
    "stat_energy": (567, 0.5),
    "stat_rms": (2.77, 0.005),
    "ih_entropy": (1.27, 0.005),
    "ih_uniformity": (0.512, 0.0005),
    "cm_joint_max": (0.509, 0.0005),
    "cm_joint_entr": (2.57, 0.005),
    "cm_contrast": (5.12, 0.005),
    "cm_corr": (0.183, 0.0005),
    "rlm_sre": (0.729, 0.0005),
    "rlm_glnu": (281, 0.5),
    "szm_sze": (0.255, 0.0005),
    "dzm_lgze": (0.253, 0.0005),
    "ngt_coarseness": (0.0296, 0.00005),
    "ngl_lde": (0.045, 0.0005),
}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    rows = np.array([line.split() for line in PHANTOM.strip().splitlines()], float)
    array = rows.reshape(4, 4, 5).transpose(1, 0, 2).astype(np.float32)  # (y, z, x) to (z, y, x)
    volume = Volume(array, Geometry(array.shape, (2.0, 2.0, 2.0)), Unit.SUVBW)
    settings = RadiomicsSettings(spacing_mm=None, bin_width=1.0, intensities=(1.0, 6.0))
    (features,) = radiomic_features(volume, (array > 0).astype(np.uint32), tmp_path_factory.mktemp("lent"), settings)
    return features


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_digital_phantom_has_the_published_values(name: str, phantom: dict[str, float]) -> None:
    value, tolerance = PUBLISHED[name]
    found = [
        feature
        for key, feature in phantom.items()
        if key == name or key.removeprefix(f"{name}_").startswith(("d1_", "3d_", "fbs_"))
    ]
    assert len(found) == 1
    assert found[0] == pytest.approx(value, abs=tolerance)


def test_a_row_a_lesion_and_the_settings_in_the_record(known_model: Path, tmp_path: Path, capfd) -> None:
    scan = save(body_array(SMALL), tmp_path / "in/scan.nii.gz")
    out = tmp_path / "out"
    arguments = [str(scan), "-m", str(known_model), "-o", str(out), "--radiomics", "-s", "-q", "--unit", "suvbw"]
    assert main(arguments) == 0
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().level == logging.WARNING
    statistics = json.loads((out / "scan_stats.json").read_text())
    with (out / "scan_radiomics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["lesion"] for row in rows] == [str(lesion["label"]) for lesion in statistics["lesions"]]
    # Resampled to 4 mm, so near the scan's own mean, not equal.
    assert float(rows[0]["stat_mean"]) == pytest.approx(statistics["lesions"][0]["suv_mean"], rel=0.2)
    assert json.loads((out / "scan_run.json").read_text())["settings"]["radiomics"]["spacing_mm"] == 4.0


def test_a_lesion_too_small_to_resample_has_no_features(tmp_path: Path) -> None:
    array = np.ones((12, 12, 12), np.float32)
    labels = np.zeros(array.shape, np.uint32)
    labels[2:8, 2:8, 2:8] = 1
    labels[10, 10, 10] = 2
    volume = Volume(array, Geometry(array.shape, (1.0, 1.0, 1.0)), Unit.SUVBW)
    large, small = radiomic_features(volume, labels, tmp_path)
    assert len(large) > 100
    assert not any(tmp_path.iterdir())
    assert small == {"lesion": 2}
    assert unmeasured([large, small]).startswith("mirp could not measure lesion 2: too small")
    assert not unmeasured([large])


def test_where_nothing_is_resampled_the_maximum_is_that_of_the_scan(tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((12, 12, 12), np.float32) + 1
    labels = np.zeros(array.shape, np.uint32)
    labels[2:10, 2:10, 2:10] = 1
    volume = Volume(array, Geometry(array.shape, (4.0, 4.0, 4.0)), Unit.SUVBW)
    (features,) = radiomic_features(volume, labels, tmp_path)
    inside = array[labels > 0]
    assert features["stat_max"] == pytest.approx(inside.max(), rel=1e-6)
    assert features["stat_mean"] == pytest.approx(inside.mean(), rel=1e-6)


def test_a_full_disk_of_temporary_files_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("is not whole")

    monkeypatch.setattr(petseg_runtime.outputs.radiomics, "write_image", full)
    array = np.ones((4, 4, 4), np.float32)
    with pytest.raises(UsageError, match="Choose another --output"):
        radiomic_features(Volume(array, Geometry(array.shape, (4.0, 4.0, 4.0))), array.astype(np.uint32), tmp_path)


def test_without_the_extra_it_says_what_to_install(known_model, tmp_path, monkeypatch, capsys) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mirp" else find_spec(name))
    scan = save(body_array(SMALL), tmp_path / "in/scan.nii.gz")
    assert main([str(scan), "-m", str(known_model), "-o", str(tmp_path / "out"), "--radiomics"]) == 2
    assert "pip install 'petseg[radiomics]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
