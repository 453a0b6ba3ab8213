"""Settings from JSON: whether each has the type that its field is declared with."""

from __future__ import annotations

import sys
from dataclasses import fields
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from petseg_runtime.errors import UsageError


def check_types(settings: Any) -> None:
    """Check the fields of a dataclass: `true` is no number, 1.5 no count, and infinity no setting.

    Raises
    ------
    UsageError : if one has another type; the message names it.
    """
    hints = get_type_hints(type(settings))
    for field in fields(settings):
        value = getattr(settings, field.name)
        if not _fits(value, hints[field.name]):
            raise UsageError(f"{field.name} is {value!r}, expected {field.type}.")


def _fits(value: Any, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if hint is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max  # a whole number may be larger
    if hint in (int, bool, str):
        return type(value) is hint
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, parts[0]) and _fits(v, parts[1]) for k, v in value.items())
    if origin is UnionType:
        return any(_fits(value, part) for part in parts)
    return isinstance(value, hint)
