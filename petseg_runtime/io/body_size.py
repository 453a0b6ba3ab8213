"""Body measures that SUVs other than body-weight SUV refer to. Pure.

The patient's sex is that of PatientSex (0010,0040), "M", "F" or "O"; for O (other) each measure is the mean of the
men's and the women's, as the IBSI SUV manual has it.
"""

from __future__ import annotations

from collections.abc import Callable


def lean_body_mass_morgan(weight_kg: float, height_m: float, sex: str) -> float:
    """Lean body mass in kg: SUVType LBM (Morgan, in Chandler's Textbook of Nuclear Medicine Technology, 1994)."""
    per_height = (weight_kg / (100 * height_m)) ** 2
    return _by_sex(sex, 1.10 * weight_kg - 120 * per_height, 1.07 * weight_kg - 148 * per_height)


def lean_body_mass_james128(weight_kg: float, height_m: float, sex: str) -> float:
    """Lean body mass in kg: SUVType LBMJAMES128 (James, Research on obesity, 1976), with 128 for men."""
    per_height = (weight_kg / (100 * height_m)) ** 2
    return _by_sex(sex, 1.10 * weight_kg - 128 * per_height, 1.07 * weight_kg - 148 * per_height)


def lean_body_mass_janmahasatian(weight_kg: float, height_m: float, sex: str) -> float:
    """Lean body mass in kg: SUVType LBMJANMA (Janmahasatian et al., Clin Pharmacokinet 44:1051, 2005)."""
    body_mass_index = weight_kg / height_m**2
    return _by_sex(
        sex,
        9270 * weight_kg / (6680 + 216 * body_mass_index),
        9270 * weight_kg / (8780 + 244 * body_mass_index),
    )


def ideal_body_weight(height_m: float, sex: str) -> float:
    """Ideal body weight in kg: SUVType IBW (Sugawara et al., Radiology 213:521, 1999)."""
    above_cm = 100 * height_m - 152
    return _by_sex(sex, 48.0 + 1.06 * above_cm, 45.5 + 0.91 * above_cm)


def body_surface_cm2(weight_kg: float, height_m: float) -> float:
    """Body surface in cm²: SUVType BSA (Du Bois and Du Bois, Arch Intern Med 17:863, 1916)."""
    return float(71.84 * weight_kg**0.425 * (100 * height_m) ** 0.725)


# SUVType (0054,1006) of Units GML (PS3.3 C.8.9.1, PS3.16 CID 85) but for BW: the mass it refers to.
MASSES_KG: dict[str, Callable[[float, float, str], float]] = {
    "LBM": lean_body_mass_morgan,
    "LBMJAMES128": lean_body_mass_james128,
    "LBMJANMA": lean_body_mass_janmahasatian,
    "IBW": lambda _, height_m, sex: ideal_body_weight(height_m, sex),
}


def _by_sex(sex: str, of_a_man: float, of_a_woman: float) -> float:
    return {"M": of_a_man, "F": of_a_woman, "O": (of_a_man + of_a_woman) / 2}[sex]
