"""The JSON file beside a NIfTI file, as dcm2niix and BIDS write it: what the NIfTI itself cannot say of a scan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from petseg_runtime.errors import InputError
from petseg_runtime.io.suv_attributes import UNCORRECTED
from petseg_runtime.io.tracer import foreign_tracer
from petseg_runtime.volume import Unit

_UNITS = {
    **dict.fromkeys(("bq/ml", "bqml"), Unit.BQML),
    **dict.fromkeys(("suvbw", "suv", "g/ml", "gml"), Unit.SUVBW),
    **dict.fromkeys(("kbq/ml", "mbq/ml", "counts", "cnts", "cps", "propcps", "propcnts"), Unit.UNKNOWN),
    **dict.fromkeys(("uci/ml", "µci/ml", "nci/ml", "%id/g", "sul", "suvlbm", "suvbsa", "suvibw"), Unit.UNKNOWN),
}
_SAYS_NOTHING = ("", "N/A")
_LONGEST_S = 1e9  # of a half-life in which a number is one
_MOST_BYTES = 1_000_000  # of a sidecar; one of BIDS with the times of all slices has some thousands


def check_sidecar(image: Path, stem: str, unit: Unit) -> tuple[str, ...]:
    """Hold a file, and what the user said of its unit, against the sidecar `<stem>.json`, if there is one.

    Of it these are read (BIDS, Positron Emission Tomography; dcm2niix): Modality, Units, AttenuationCorrection,
    TracerName, TracerRadionuclide, Radiopharmaceutical and RadionuclideHalfLife. A file that is no such sidecar says
    nothing. No text of it is repeated but a unit that is known.

    Returns
    -------
    Warnings.

    Raises
    ------
    InputError : if it is of another modality, not corrected for attenuation, or in another unit than `unit`.
    """
    said = _read(image.with_name(f"{stem}.json"))
    modality = _text(said, "Modality").upper()
    if modality not in (*_SAYS_NOTHING, "PT", "PET"):
        raise InputError(f"The JSON file beside {image.name} says a Modality other than PT. Pass the PET.")
    if UNCORRECTED.search(_text(said, "AttenuationCorrection").upper()):
        raise InputError(
            f"The JSON file beside {image.name} says that it is not corrected for attenuation. Pass the corrected scan."
        )
    names = [_text(said, name) for name in ("TracerName", "TracerRadionuclide", "Radiopharmaceutical")]
    half_life_s: Any = said.get("RadionuclideHalfLife")
    is_number = isinstance(half_life_s, int | float) and not isinstance(half_life_s, bool)
    known_s = float(half_life_s) if is_number and 0 < half_life_s < _LONGEST_S else None
    return foreign_tracer([name for name in names if name], known_s) + _unlike(image, _text(said, "Units"), unit)


def _unlike(image: Path, units: str, unit: Unit) -> tuple[str, ...]:
    told = _UNITS.get(units.casefold().replace("cc", "ml"))
    if told is unit or units.upper() in _SAYS_NOTHING:
        return ()
    if told is None:
        if unit is Unit.UNKNOWN:
            return ()
        return (f"The JSON file beside {image.name} says Units that are not known here. Check that they are {unit}.",)
    beside = f"The JSON file beside {image.name} says Units {units}"
    if unit is Unit.UNKNOWN:
        return (f"{beside}. Pass --unit {told} if it is so.",)
    raise InputError(f"{beside}, which is not --unit {unit}. Pass the one that is right, or mend the other.")


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():  # a pipe would be waited for
        return {}
    try:
        with path.open("rb") as stream:
            said = json.loads(stream.read(_MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _text(said: dict[str, Any], name: str) -> str:
    value = said.get(name)
    return value.strip() if isinstance(value, str) else ""
