"""Which nuclide and which tracer a PET series names, by free names and by codes of PS3.16 CID 4020 and 4021. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

F18 = "F-18"
# Half-lives in s (ENSDF), by which one is caught that is of another nuclide, as where a console left that of F-18.
HALF_LIVES_S = {
    F18: 6586.2,
    "C-11": 1221.8,
    "N-13": 597.9,
    "O-15": 122.2,
    "Cu-64": 45_724.0,
    "Ga-68": 4062.6,
    "Rb-82": 75.5,
    "Zr-89": 282_276.0,
    "I-124": 360_806.0,
}
# Vendors write 6586 to 6600 s for F-18; 1 % changes SUV by less than 0.5 % after an hour. Of the others the literature
# itself differs by one or two.
HALF_LIFE_TOLERANCE = {F18: 0.01}
OTHER_HALF_LIFE_TOLERANCE = 0.03
# No tracer for patients has a shorter one than Rb-82; a phantom may have a longer one than I-124.
HALF_LIFE_RANGE_S = (60.0, 600_000.0)
# PS3.16 CID 4020, in SRT and in SNOMED CT, and the element's name.
_NUCLIDES = {
    F18: ("C-111A1", "77004003", "fluorine"),
    "C-11": ("C-105A1", "40565003", "carbon"),
    "N-13": ("C-107A1", "21576001", "nitrogen"),
    "O-15": ("C-B1038", "129504001", "oxygen"),
    "Cu-64": ("C-127A2", "3932008", "copper"),
    "Ga-68": ("C-131A3", "35337001", "gallium"),
    "Rb-82": ("C-159A2", "79197006", "rubidium"),
    "Zr-89": ("C-168A4", "63360001", "zirconium"),
    "I-124": ("C-114A5", "40937006", "iodine"),
}
# In the names of tracers of F-18, where nothing says the nuclide by itself.
_F18_TRACERS = ("18f", "f18", "18fluor", "fluorine18", "fdg", "fluorodeoxyglucose", "fludeoxyglucose")
_ELEMENTS = "C|N|O|F|Na|K|Sc|Ti|Mn|Fe|Cu|Zn|Ga|Ge|As|Se|Br|Rb|Y|Zr|Nb|Tc|I|Tb"
# As PS3.16 CID 4020 writes a nuclide.
_SPELLED = re.compile(r"\^(\d{2,3})m?\^([A-Z][a-z]+)")
# A nuclide in a longer name: PSMA-11 Ga^68^, Rituximab ^89^Zr, [68Ga]Ga-PSMA, C-11 choline.
_NUCLIDE_IN_NAME = re.compile(
    rf"(?<![A-Za-z0-9])(?:(\d{{2,3}})m?\^?-?({_ELEMENTS})|({_ELEMENTS})[-^]?(\d{{2,3}})m?\^?)(?![A-Za-z0-9])"
)
_FDG = ("fdg", "gluco", "gluko", "glicos", "oxyglc", "gluscan", "flucis", "steripet", "efdege")
_NO_FDG = "fdgal"  # fluorodeoxygalactose
_FDG_CODES = ("C-B1031", "35321007")  # in SRT and in SNOMED CT
# What stands beside the nuclide and says no tracer.
_NO_TRACER = re.compile(r"fluorine|fluor(?!i)|18|injection|solution|standard")
# The abbreviations of other tracers of F-18, which are parts of other words too.
_ABBREVIATED = ("naf", "flt", "fet", "fes", "fch", "fec", "fmiso", "faza", "facbc", "axumin", "pylarify", "pyl")
# Of tracers that are not FDG, as they stand in names without the nuclide.
_OTHER_TRACERS = (
    *("psma", "dcfpyl", "piflufolastat", "choline", "fluciclovine", "dotat", "dotano", "edotreotide", "fapi"),
    *("dopa", "tyrosin", "thymidine", "misonidazole", "estradiol", "fluoride", "florbeta", "flutemetamol", "flortau"),
    *("flurpiridaz", "flotufolastat", "vizamyl", "amyvid", "neuraceq", "tauvid", "cerianna", "av1451", "av45"),
    *("mk6240", "pi2620", _NO_FDG),
)
# Half-lives are written with errors of up to a hundredth; the next nuclide's is far off.
_F18_WITHIN = 0.05


def nuclide_of(names: Sequence[str]) -> str | None:
    """Which nuclide of `HALF_LIVES_S` the names say; None where they say none.

    One that is a nuclide's code or name and nothing more goes before one within a tracer's, as in 68Ga-PSMA-11.
    """
    plain = [_plain(name) for name in names]
    for nuclide, (srt, snomed, element) in _NUCLIDES.items():
        symbol, mass = nuclide.lower().split("-")
        known = (srt, snomed, mass + symbol, symbol + mass, mass + element, element + mass)
        if any(name in known for name in (*names, *plain)):
            return nuclide
    for nuclide in filter(None, map(_nuclide_in, names)):
        if nuclide in HALF_LIVES_S:
            return nuclide
    return F18 if any(known in name for known in _F18_TRACERS for name in plain) else None


def foreign_tracer(names: Sequence[str], half_life_s: float | None) -> tuple[str, ...]:
    """A warning where a series says that its tracer is not FDG, by its names or its half-life; else nothing.

    One name of another goes before one of FDG, which a console keeps where nobody changes it. No name is repeated:
    somebody may have written anything there.
    """
    nuclide = nuclide_of(names)
    if nuclide not in (None, F18):
        said = f"The series names {nuclide}"
    elif any(_is_other_tracer(name) and not _is_fdg(name) for name in names):
        said = "The series names a tracer that is not FDG"
    elif half_life_s and abs(half_life_s / HALF_LIVES_S[F18] - 1) > _F18_WITHIN:
        said = f"The half-life is {half_life_s:g} s, which is not that of F-18"
    else:
        return ()
    return (f"{said}: a model for FDG, as the bundled one is, may mark anything in it.",)


def _is_fdg(name: str) -> bool:
    plain = _plain(name)
    return name in _FDG_CODES or (_NO_FDG not in plain and any(known in plain for known in _FDG))


def _is_other_tracer(name: str) -> bool:
    plain = _plain(name)
    if any(known in plain for known in _OTHER_TRACERS) or re.sub("18f|f18", "", plain) in _ABBREVIATED:
        return True
    if spelled := _SPELLED.fullmatch(name):
        return spelled.groups() != ("18", "Fluorine")
    nuclide = _nuclide_in(name)
    if nuclide is None:
        return False
    rest = _NO_TRACER.sub("", _plain(_NUCLIDE_IN_NAME.sub("", name, count=1)))
    return nuclide != F18 or (bool(rest) and name.isascii())


def _nuclide_in(name: str) -> str | None:
    found = _NUCLIDE_IN_NAME.search(name)
    if found is None:
        return None
    mass, element, element_first, mass_last = found.groups()
    return f"{element or element_first}-{mass or mass_last}"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
