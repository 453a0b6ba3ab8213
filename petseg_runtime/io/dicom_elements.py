"""Values of DICOM elements, parsed from their raw bytes (PS3.5, value representations).

pydicom's own conversion warns through Python's `warnings`, and how it behaves hangs on `pydicom.config`.
Both belong to the whole process: silencing them here would reach into the threads of the caller.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import datetime, time, timedelta
from functools import cached_property
from typing import TypeVar
from unicodedata import category

from pydicom.charset import decode_bytes
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

T = TypeVar("T")

_DATE = re.compile(r"(\d{4})\.?(\d\d)\.?(\d\d)")  # the dots are of ACR-NEMA, as are the colons of a time
_TIME = re.compile(r"(\d\d):?(\d\d)(?::?(\d\d)(?:\.(\d{0,6})\d*)?)?")
_MOMENT = re.compile(r"(\d{8})(\d{4,6}(?:\.\d+)?)(?:([+-]\d\d)(\d\d))?")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")  # Python's own would take 1_000 too
# Others are placeholders, such as 9999-12-31, to which not even a day can be added.
_YEARS = range(1000, 9000)
_ZONE = re.compile(r"([+-]\d\d)(\d\d)")


class MalformedValueError(ValueError):
    """A value that is not what its attribute must hold. The message names the attribute, never the value."""

    def __init__(self, tag: int, expected: str) -> None:
        super().__init__(f"{tag_name(tag)} is not {expected}")


def tag_name(tag: int) -> str:
    """An attribute as messages name it: `PatientWeight (0010,1030)`."""
    return f"{keyword_for_tag(tag) or 'private'} ({tag >> 16:04X},{tag & 0xFFFF:04X})"


class Elements:
    """Reads the elements of a data set. An absent or empty element is `""`, `()` or None, as the type has it.

    Every method raises `MalformedValueError` for a value that does not parse.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def texts(self, tag: int) -> tuple[str, ...]:
        """The values of a multi-valued string, without padding."""
        raw = self._bytes(tag).decode("latin-1").strip(" \0")
        raw = "".join(letter if letter.isprintable() else "?" for letter in raw)  # messages stay on one line
        return tuple(part.strip(" \0") for part in raw.split("\\")) if raw else ()

    def text(self, tag: int) -> str:
        """The first value of a string."""
        return next(iter(self.texts(tag)), "")

    def numbers(self, tag: int) -> tuple[float, ...] | None:
        """Decimal strings (DS) or integer strings (IS); NaN and infinity do not pass."""
        texts = self.texts(tag)
        if not all(map(_NUMBER.fullmatch, texts)):
            raise MalformedValueError(tag, "a number")
        values = tuple(map(float, texts))
        if not all(map(math.isfinite, values)):
            raise MalformedValueError(tag, "a finite number")
        return values or None

    def number(self, tag: int) -> float | None:
        """A decimal or integer string; several may stand there if they are equal."""
        values = self.numbers(tag)
        if values and len(set(values)) > 1:
            raise MalformedValueError(tag, "one number")
        return values[0] if values else None

    def whole(self, tag: int) -> int | None:
        """An integer string (IS), as `number`."""
        value = self.number(tag)
        if value is not None and value != int(value):
            raise MalformedValueError(tag, "a whole number")
        return None if value is None else int(value)

    def binary(self, tag: int) -> int | None:
        """An unsigned binary integer (US or UL), or a signed one that is not negative."""
        raw, element = self._bytes(tag), self._dataset.get_item(tag)
        if not raw:
            return None
        if not isinstance(element, RawDataElement):  # pydicom has converted what it needs itself
            return self.whole(tag)
        if len(raw) not in (2, 4):
            raise MalformedValueError(tag, "a binary number")
        return int.from_bytes(raw, "little" if element.is_little_endian else "big")

    def date(self, tag: int) -> datetime | None:
        """A date (DA), as its midnight."""
        text = self.text(tag)
        return _midnight(text, tag) if text else None

    def clock(self, tag: int) -> time | None:
        """A time of day (TM) of at least hours and minutes."""
        text = self.text(tag)
        return _clock(text, tag) if text else None

    def date_and_time(self, date_tag: int, time_tag: int) -> datetime | None:
        """A date (DA) with its time (TM); None if either is absent."""
        date, clock = self.text(date_tag), self.clock(time_tag)
        return None if not date or clock is None else datetime.combine(_midnight(date, date_tag), clock)

    def offset(self, tag: int) -> str:
        """The offset from UTC that a date-time carries, as `+0100`; empty if it carries none."""
        match = _MOMENT.fullmatch(self.text(tag))
        return f"{match[3]}{match[4]}" if match and match[3] else ""

    def moment(self, tag: int, zone: str, utc_is_local: bool = True, local_is_sure: bool = True) -> datetime | None:
        """A date-time (DT) of at least minutes, without time zone, as the clocks of the site showed it.

        A DT may carry its offset from UTC; dates and times never do, theirs is `zone`, the value of
        TimezoneOffsetFromUTC (0008,0201). Where both are given, the DT is brought to `zone`; otherwise it
        is taken as it is written: one in UTC only where `utc_is_local`, as one that was brought to UTC says the same,
        and one without offset only where `local_is_sure`.
        """
        text = self.text(tag)
        if not text:
            return None
        match = _MOMENT.fullmatch(text)
        if match is None:
            raise MalformedValueError(tag, "a date and time")
        moment = datetime.combine(_midnight(match[1], tag), _clock(match[2], tag))
        local = _ZONE.fullmatch(zone)
        if match[3] and not local and not utc_is_local and not _offset(match[3], match[4]):
            raise MalformedValueError(tag, "a date and time of the site's own clock")
        if not match[3] and not local_is_sure:
            raise MalformedValueError(tag, "a date and time with its offset from UTC")
        if match[3] and local:
            moment += _offset(local[1], local[2]) - _offset(match[3], match[4])
        return moment

    def undecoded(self, tag: int) -> tuple[bytes, tuple[str, ...]]:
        """A text as it is written, and Python's names of the character sets that it is in, for `decoded_text`."""
        element = self._dataset.get_item(tag)
        if isinstance(element, RawDataElement):
            sets = self._dataset.original_character_set  # of an item, that of the data set around it
            return element.value or b"", (sets,) if isinstance(sets, str) else tuple(sets)
        value = "" if element is None or element.value is None else element.value  # pydicom has converted it
        text = "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value)
        return text.encode(errors="replace"), ("utf8",)

    def decoded(self, tag: int) -> str:
        """A text of one value in Unicode.

        In some character sets a backslash is a part of a letter, so it is decoded before it is looked at.
        """
        values = self.all_decoded(tag)
        if len(values) > 1:
            raise MalformedValueError(tag, "one line of text")
        return values[0] if values else ""

    def all_decoded(self, tag: int) -> tuple[str, ...]:
        """The same of a text that may have several values."""
        try:
            text = decoded_text(*self.undecoded(tag), PN_DELIMS if dictionary_VR(tag) == "PN" else TEXT_VR_DELIMS)
        except (LookupError, UnicodeError, ValueError) as error:
            raise MalformedValueError(tag, "a text of its character set") from error
        if "\ufffd" in text:  # what pydicom puts where it cannot decode
            raise MalformedValueError(tag, "a text of its character set")
        if any(map(_is_control, text)):
            raise MalformedValueError(tag, "one line of text")
        return tuple(part.strip(" \0") for part in text.split("\\")) if text else ()

    def items(self, tag: int) -> list[Elements]:
        """The items of a sequence (SQ)."""
        items = self._dataset[tag].value if tag in self._dataset else None
        if items is not None and not isinstance(items, Sequence):
            raise MalformedValueError(tag, "a sequence")
        return [Elements(item) for item in items or ()]

    @cached_property
    def private_blocks(self) -> dict[tuple[int, str], int]:
        """The first block that each creator, in upper case, reserved in a private group (PS3.5 7.8.1)."""
        blocks: dict[tuple[int, str], int] = {}
        for tag in self._dataset.keys():  # noqa: SIM118  # iterating over the data set itself would sort them anew
            group, element = tag >> 16, tag & 0xFFFF
            if group % 2 and 0x10 <= element <= 0xFF and self.text(tag):
                blocks.setdefault((group, self.text(tag).upper()), element)
        return blocks

    def _bytes(self, tag: int) -> bytes:
        element = self._dataset.get_item(tag)
        if isinstance(element, RawDataElement):
            return element.value or b""
        # pydicom converts an empty element on the way, and what it has to know itself.
        return b"" if element is None or element.value is None else str(element.value).encode("latin-1", "replace")


def decoded_text(raw: bytes, encodings: tuple[str, ...], delimiters: set[int] = TEXT_VR_DELIMS) -> str:
    """What `Elements.undecoded` gives, in Unicode and without padding.

    pydicom warns through Python's `warnings` of what it cannot decode, so this is for what is asked for only.
    """
    return decode_bytes(raw, encodings, delimiters).strip(" \0")


def if_sound(read: Callable[[], T | None], otherwise: T | None = None) -> T | None:
    """A value that may not be needed; `otherwise` if it does not parse, which is refused where it is."""
    try:
        return read()
    except MalformedValueError:
        return otherwise


def _is_control(letter: str) -> bool:
    return category(letter) == "Cc"


def _midnight(text: str, tag: int) -> datetime:
    match = _DATE.fullmatch(text)
    try:
        if match is None or int(match[1]) not in _YEARS:
            raise ValueError("not a date")
        return datetime(int(match[1]), int(match[2]), int(match[3]))
    except ValueError as error:
        raise MalformedValueError(tag, "a date") from error


def _clock(text: str, tag: int) -> time:
    match = _TIME.fullmatch(text)
    try:
        if match is None:
            raise ValueError("not a time")
        return time(int(match[1]), int(match[2]), int(match[3] or 0), int((match[4] or "0").ljust(6, "0")))
    except ValueError as error:
        raise MalformedValueError(tag, "a time of day") from error


def _offset(hours: str, minutes: str) -> timedelta:
    return timedelta(hours=int(hours), minutes=int(hours[0] + minutes))
