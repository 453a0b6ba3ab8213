"""How numbers are written for people, on pages and in the terminal."""

from __future__ import annotations


def number(value: float | None, decimals: int) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else f"{value:.{decimals}f}"


def amount(value: float | None) -> str:
    """A volume in ml or a TLG in g: one decimal, but two significant digits below 1; a small lesion is not 0.0."""
    return number(value, 1) if value is None or not 0 < abs(value) < 1 else f"{value:#.2g}"
