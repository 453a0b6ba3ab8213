"""The JSON file beside a NIfTI file: BIDS (Positron Emission Tomography) and dcm2niix write it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from petseg_runtime import InputError, read_volume
from petseg_runtime.io.images import write_image
from petseg_runtime.volume import Geometry, Unit


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    array = np.random.default_rng(0).uniform(0.5, 5, (8, 9, 10)).astype(np.float32)
    write_image(array, Geometry(array.shape, (4.0, 4.0, 4.0)), tmp_path / "sub-01_pet.nii.gz")
    return tmp_path / "sub-01_pet.nii.gz"


def beside(scan: Path, **said: object) -> None:
    (scan.parent / "sub-01_pet.json").write_text(json.dumps(said))


BIDS = {"Modality": "PT", "TracerName": "FDG", "TracerRadionuclide": "F18", "AttenuationCorrection": "CT-based"}


@pytest.mark.parametrize(
    ("said", "unit", "reason"),
    [
        ({"Modality": "MR"}, "unknown", "says a Modality other than PT. Pass the PET"),
        ({"AttenuationCorrection": "none"}, "unknown", "not corrected for attenuation"),
        ({"AttenuationCorrection": "NONE, 0.000000 cm-1,"}, "unknown", "not corrected for attenuation"),
        ({"Units": "Bq/mL"}, "suvbw", "says Units Bq/mL, which is not --unit suvbw"),
        ({"Units": "SUV"}, "bqml", "says Units SUV, which is not --unit bqml"),
        ({"Units": "kBq/mL"}, "bqml", "says Units kBq/mL, which is not --unit bqml"),
        ({"Units": "SUVlbm"}, "suvbw", "says Units SUVlbm, which is not --unit suvbw"),
        ({"Units": "nCi/cc"}, "bqml", "says Units nCi/cc, which is not --unit bqml"),
        ({"AttenuationCorrection": "without"}, "suvbw", "not corrected for attenuation"),
    ],
)
def test_what_contradicts_the_sidecar_is_refused(said: dict[str, str], unit: str, reason: str, scan: Path) -> None:
    beside(scan, **{**BIDS, **said})
    with pytest.raises(InputError, match=reason):
        read_volume(scan, unit)


@pytest.mark.parametrize(
    ("said", "unit", "warning"),
    [
        ({}, "unknown", ""),
        ({"Units": "Bq/mL"}, "bqml", ""),
        ({"Units": "g/ml"}, "suvbw", ""),
        ({"Units": "arbitrary"}, "suvbw", "says Units that are not known here. Check that they are suvbw."),
        ({"Units": "arbitrary"}, "unknown", ""),
        ({"Units": "n/a"}, "suvbw", ""),
        ({"Modality": "n/a", "AttenuationCorrection": "n/a", "RadionuclideHalfLife": 10**400}, "suvbw", ""),
        ({"RadionuclideHalfLife": True}, "suvbw", ""),
        ({"Units": 3, "TracerName": ["FDG"], "Modality": None, "AttenuationCorrection": True}, "suvbw", ""),
        ({"Units": "BQML"}, "unknown", "says Units BQML. Pass --unit bqml if it is so."),
        ({"TracerName": "[18F]PSMA-1007"}, "suvbw", "names a tracer that is not FDG"),
        ({"TracerName": "DOTATATE", "TracerRadionuclide": "Ga68"}, "suvbw", "The series names Ga-68"),
        ({"TracerName": "", "RadionuclideHalfLife": 4062.6}, "suvbw", "The half-life is 4062.6 s"),
    ],
)
def test_what_the_sidecar_says_is_warned_of(said: dict[str, object], unit: str, warning: str, scan: Path) -> None:
    beside(scan, **{**BIDS, **said})
    volume = read_volume(scan, unit)
    assert volume.unit is Unit(unit)
    assert [warning in found for found in volume.warnings] == [True] * bool(warning)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_another_file_of_that_name_says_nothing(content: bytes, scan: Path) -> None:
    (scan.parent / "sub-01_pet.json").write_bytes(content)
    assert read_volume(scan, "suvbw").warnings == ()
