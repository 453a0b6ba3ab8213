"""A series of another tracer than FDG is warned of: a model for FDG knows nothing of its uptake."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydicom.sr.codedict import codes
from runtime.dicom_factory import injection, pet_series, write

from petseg_runtime.io.dicom import read_pet_series
from petseg_runtime.io.suv_attributes import SuvOverrides
from petseg_runtime.io.tracer import HALF_LIVES_S, foreign_tracer

F18_S = HALF_LIVES_S["F-18"]
NUCLIDES = [getattr(codes.cid4020, name) for name in codes.cid4020.dir()]
TRACERS = [getattr(codes.cid4021, name) for name in codes.cid4021.dir()]


@pytest.mark.parametrize("code", TRACERS, ids=lambda code: code.meaning)
def test_every_tracer_of_the_standard_but_fdg_is_foreign(code) -> None:
    """PS3.16 CID 4021, as pydicom lists it."""
    warnings = foreign_tracer((code.value, code.meaning), F18_S)
    assert len(warnings) == (code.meaning != "Fluorodeoxyglucose F^18^")


@pytest.mark.parametrize("code", NUCLIDES, ids=lambda code: code.meaning)
def test_every_nuclide_of_the_standard_but_that_of_fdg_is_foreign(code) -> None:
    """PS3.16 CID 4020. The half-life may be absent, where SUV needs none."""
    assert len(foreign_tracer(("FDG", code.value, code.meaning), None)) == (code.meaning != "^18^Fluorine")


@pytest.mark.parametrize(
    "names",
    [
        (),
        ("FDG",),
        ("Solution",),
        ("C-111A1", "^18^Fluorine"),
        ("77004003", "Fluorine F^18^"),
        ("F-18",),
        ("18F",),
        ("C-111A1", "^18^Fluorine", "C-B1031", "Fluorodeoxyglucose F^18^"),
        ("FDG -- fluorodeoxyglucose",),
        ("[18F]FDG",),
        ("F-18 Desoxyglukose",),
        ("35321007", "2-deoxy-2-[18F]fluoro-D-glucose"),
        ("F-18 Injection",),
        ("F18 (Fluorine-18)",),
        ("Gluscan F-18",),
        ("Fluordesoxiglicose F-18",),
        ("FDG", "C-B1031", "Fluorodeoxyglucose F^18^"),
        ("2-[F-18]フルオロ-2-デオキシ-D-グルコース",),
    ],
    ids=str,
)
def test_fdg_and_what_says_no_tracer_are_not(names: tuple[str, ...]) -> None:
    assert foreign_tracer(names, F18_S) == ()
    assert foreign_tracer(names, 6600.0) == ()
    assert foreign_tracer(names, None) == ()
    assert foreign_tracer(names, float("nan")) == ()


@pytest.mark.parametrize(
    ("names", "half_life_s", "says"),
    [
        (("C-131A3", "^68^Gallium"), 4062.6, "names Ga-68:"),
        (("Ga68",), None, "names Ga-68:"),
        (("[68Ga]Ga-PSMA-11",), None, "names Ga-68:"),
        (("F-18 PSMA-1007",), F18_S, "a tracer that is not FDG:"),
        (("PSMA",), F18_S, "a tracer that is not FDG:"),
        (("Sodium Fluoride",), F18_S, "a tracer that is not FDG:"),
        (
            ("Fluorodeoxyglucose", "C-111A1", "^18^Fluorine", "126752", "PSMA-1007 F^18^"),
            F18_S,
            "a tracer that is not FDG:",
        ),
        (("Fluorodeoxyglucose", "Sodium fluoride F^18^"), F18_S, "a tracer that is not FDG:"),
        (("[18F]FDGal",), F18_S, "a tracer that is not FDG:"),
        (("Vizamyl",), F18_S, "a tracer that is not FDG:"),
        (("NaF",), F18_S, "a tracer that is not FDG:"),
        (("F-18 FET",), F18_S, "a tracer that is not FDG:"),
        (("18F-FES",), F18_S, "a tracer that is not FDG:"),
        # A console's default beside what was given.
        (("Fluorodeoxyglucose", "C-131A3", "^68^Gallium"), 4062.6, "names Ga-68:"),
        (("F-DG",), 4062.6, "half-life is 4062.6 s, which is not that of F-18:"),
        ((), 4062.6, "half-life is 4062.6 s, which is not that of F-18:"),
        (("Solution",), 1221.8, "half-life is 1221.8 s"),
    ],
    ids=str,
)
def test_other_tracers_are_foreign(names: tuple[str, ...], half_life_s: float | None, says: str) -> None:
    (warning,) = foreign_tracer(names, half_life_s)
    assert says in warning
    assert not any(name in warning for name in names)


def test_a_series_of_another_tracer_is_read_and_warned_of(tmp_path: Path) -> None:
    slices = pet_series()
    for dataset in slices:
        injection(dataset).Radiopharmaceutical = "PSMA-1007 for Doe"
    warnings = read_pet_series(write(slices, tmp_path)).warnings
    assert [warning for warning in warnings if "not FDG" in warning]
    assert not any("Doe" in warning for warning in warnings)


@pytest.mark.parametrize(("in_header", "given", "expected"), [(4062.6, F18_S, False), (None, 4062.6, True)])
def test_the_half_life_that_the_user_gives_tells_the_tracer(
    in_header: float | None, given: float, expected: bool, tmp_path: Path
) -> None:
    slices = pet_series()
    for dataset in slices:
        injection(dataset).Radiopharmaceutical = "Solution"
        injection(dataset).RadionuclideHalfLife = in_header
        del injection(dataset).RadionuclideCodeSequence
    warnings = read_pet_series(write(slices, tmp_path), SuvOverrides(half_life_s=given)).warnings
    assert any("not that of F-18" in warning for warning in warnings) == expected
