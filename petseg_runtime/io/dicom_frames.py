"""Enhanced PET: all slices in one file, their attributes in functional groups (PS3.3 C.7.6.16 and C.8.22).

Each frame becomes a data set of its own with the attributes that a slice of PET Image Storage has, so that all the rest
reads one kind of slice. Of a Legacy Converted file these are the very attributes of the slices that it was made from.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import suppress

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from petseg_runtime.io.dicom_elements import Elements, if_sound

SHARED_GROUPS, FRAME_GROUPS = 0x52009229, 0x52009230
# Of the whole file, to be read beside those of a slice: DecayCorrected, AttenuationCorrected, DecayCorrectionDateTime.
ENHANCED_TAGS = (SHARED_GROUPS, FRAME_GROUPS, 0x00189758, 0x00189759, 0x00189701)

LEGACY_CONVERTED = "1.2.840.10008.5.1.4.1.1.128.1"

_SOP_CLASS = 0x00080016
_UNITS, _SUV_TYPE, _SLOPE, _INTERCEPT, _RESCALE_TYPE = 0x00541001, 0x00541006, 0x00281053, 0x00281052, 0x00281054
_DECAY_CORRECTION, _CORRECTED_IMAGE, _ATTENUATION_METHOD = 0x00541102, 0x00280051, 0x00541101
_DECAY_CORRECTED, _ATTENUATION_CORRECTED, _CORRECTED_TO = 0x00189758, 0x00189759, 0x00189701
_FRAME_ACQUISITION, _ACQUISITION_DATE, _ACQUISITION_TIME, _ACQUISITION = 0x00189074, 0x00080022, 0x00080032, 0x0008002A
_FRAME_DURATION, _DURATION, _NUMBER_OF_FRAMES = 0x00189220, 0x00181242, 0x00280008
_REAL_WORLD, _REAL_WORLD_UNITS, _REAL_WORLD_SLOPE, _REAL_WORLD_INTERCEPT = (
    *(0x00409096, 0x004008EA),
    *(0x00409225, 0x00409224),
)
# QuantityDefinitionSequence, and the ConceptCodeSequence of its items.
_QUANTITY, _CONCEPT = 0x00409220, 0x0040A168
# CodeValue, and what stands in for one of more than 16 characters.
_CODE, _LONG_CODE = 0x00080100, 0x00080119
# Units and SUVType of a slice by the unit of a real-world value and what it is annotated with (UCUM; PS3.16 CID 84 and
# 85), the most direct first.
_CODES = {
    ("BQ/ML", ""): ("BQML", ""),
    ("BQML", ""): ("BQML", ""),
    ("G/ML", "SUVBW"): ("GML", "BW"),
    ("G/ML", "SUVLBM"): ("GML", "LBM"),
    ("G/ML", "SUVLBM(JAMES128)"): ("GML", "LBMJAMES128"),
    ("G/ML", "SUVLBM(JANMA)"): ("GML", "LBMJANMA"),
    ("G/ML", "SUVLBM(JANMAHASATIAN)"): ("GML", "LBMJANMA"),
    ("G/ML", "SUVIBW"): ("GML", "IBW"),
    ("CM2/ML", "SUVBSA"): ("CM2ML", "BSA"),
}
# A unit alone, which does not say of what it is.
_PLAIN_CODES = {("G/ML", ""): ("GML", "")}
# What the quantity of a real-world value (PS3.16 CID 85) says where its unit does not.
_QUANTITIES = {
    "126401": "SUVBW",
    "126402": "SUVLBM",
    "126403": "SUVBSA",
    "126404": "SUVIBW",
    "126405": "SUVLBM(JANMA)",
    "126406": "SUVLBM(JAMES128)",
}
_ANNOTATION = re.compile(r"\{(.*)\}")


def slices_of(dataset: Dataset) -> list[Dataset]:
    """A data set for each frame of an Enhanced PET, with the attributes of a slice; none without functional groups."""
    shared = next(iter(_items(dataset, SHARED_GROUPS)), Dataset())
    return [_slice(dataset, shared, own) for own in _items(dataset, FRAME_GROUPS)]


def _slice(file: Dataset, shared: Dataset, own: Dataset) -> Dataset:
    flat = Dataset()
    is_implicit, is_little_endian = file.original_encoding
    flat.set_original_encoding(is_implicit, is_little_endian, file.original_character_set)
    groups = [
        item
        for source in (shared, own)
        for tag in sorted(source.keys())
        if not tag.is_private  # whose copies of the standard's attributes are none of ours
        for item in _items(source, tag)
    ]
    own_tags = (SHARED_GROUPS, FRAME_GROUPS, _NUMBER_OF_FRAMES)
    for source in (file, *groups):  # what a frame says of itself goes before what is said of all
        for tag in sorted(source.keys()):
            if tag not in own_tags:
                flat[tag] = source.get_item(tag)
    elements = Elements(flat)
    # There may be several in a frame, one a unit.
    worlds = next((worlds for source in (own, shared) if (worlds := list(_items(source, _REAL_WORLD)))), [])
    _put_unit(flat, elements, worlds)
    _put_corrections(flat, elements)
    if elements.text(_FRAME_ACQUISITION):
        flat.pop(_ACQUISITION_DATE, None)
        flat.pop(_ACQUISITION_TIME, None)
        _put(flat, _ACQUISITION, elements.text(_FRAME_ACQUISITION))
    duration = _double(flat, _FRAME_DURATION)
    if duration is not None:
        _put(flat, _DURATION, repr(duration))
    return flat


def _put_unit(flat: Dataset, elements: Elements, worlds: list[Dataset]) -> None:
    """Units, and the scale that goes with them, by what tells them first.

    By a real-world value, which is where Enhanced PET has them (PS3.3 C.7.6.16.2.11), or by what files have that leave
    the standard: the attribute of a slice, or the type of the rescaling. In a Legacy Converted file the attribute is
    that of the slices that it was made from, and goes before all.
    """
    if elements.text(_SOP_CLASS) == LEGACY_CONVERTED and elements.text(_UNITS):
        return
    if _put_real_world(flat, worlds, _CODES) or elements.text(_UNITS):
        return
    if elements.text(_RESCALE_TYPE).upper() in ("BQML", "GML", "CM2ML", "CNTS"):
        _put(flat, _UNITS, elements.text(_RESCALE_TYPE))
        return
    _put_real_world(flat, worlds, _PLAIN_CODES)


def _put_real_world(flat: Dataset, worlds: list[Dataset], codes: dict[tuple[str, str], tuple[str, str]]) -> bool:
    """Whether there was a real-world value of a unit that is among these."""
    scales: dict[tuple[str, str], set[tuple[float | None, float | None]]] = {}
    for world in worlds:
        scale = _double(world, _REAL_WORLD_SLOPE), _double(world, _REAL_WORLD_INTERCEPT)
        scales.setdefault(_unit_of(world), set()).add(scale)
    for code, (units, suv_type) in codes.items():
        if len(scales.get(code, ())) == 1:  # several are for ranges of numbers, which nobody scales PET by
            ((slope, intercept),) = scales[code]
            if slope is not None and intercept is not None:
                for tag, text in ((_UNITS, units), (_SLOPE, repr(slope)), (_INTERCEPT, repr(intercept))):
                    _put(flat, tag, text)
                if suv_type:
                    _put(flat, _SUV_TYPE, suv_type)
                return True
    return False


def _unit_of(world: Dataset) -> tuple[str, str]:
    """The unit of a real-world value and its annotation, in upper case and without spaces."""
    item = next(_items(world, _REAL_WORLD_UNITS), Dataset())
    code = Elements(item).text(_CODE) or Elements(item).text(_LONG_CODE)
    code = code.upper().replace(" ", "")
    annotation = _ANNOTATION.search(code)
    if annotation:
        return _ANNOTATION.sub("", code), annotation[1]
    quantities = {
        Elements(concept).text(_CODE) for said in _items(world, _QUANTITY) for concept in _items(said, _CONCEPT)
    }
    suv = next((_QUANTITIES[quantity] for quantity in sorted(quantities) if quantity in _QUANTITIES), "")
    return code, suv if code in ("G/ML", "CM2/ML") else ""


def _put_corrections(flat: Dataset, elements: Elements) -> None:
    decay, attenuation = (elements.text(tag).upper() for tag in (_DECAY_CORRECTED, _ATTENUATION_CORRECTED))
    moment = if_sound(lambda: elements.moment(_CORRECTED_TO, ""))
    known = decay == "NO" or (decay == "YES" and moment is not None)
    if not elements.text(_DECAY_CORRECTION) and known:
        _put(flat, _DECAY_CORRECTION, "START" if decay == "YES" else "NONE")
    if not elements.texts(_CORRECTED_IMAGE) and attenuation in ("YES", "NO"):
        if attenuation == "NO":
            _put(flat, _ATTENUATION_METHOD, "NONE")
        listed = [name for name, said in (("ATTN", attenuation), ("DECY", decay)) if said == "YES"]
        _put(flat, _CORRECTED_IMAGE, "\\".join(listed))


def _items(dataset: Dataset, tag: int | BaseTag) -> Iterator[Dataset]:
    element = dataset.get_item(tag)
    with suppress(KeyError):  # of a private attribute
        if element is not None and (element.VR or dictionary_VR(tag)) == "SQ":
            yield from dataset[tag].value or ()


def _put(dataset: Dataset, tag: int, text: str) -> None:
    value = text.encode("latin-1", "replace")
    dataset[tag] = RawDataElement(BaseTag(tag), "LO", len(value), value, 0, False, True)


def _double(dataset: Dataset, tag: int) -> float | None:
    """The first value of an FD element."""
    element = dataset.get_item(tag)
    if isinstance(element, RawDataElement):
        raw = element.value or b""
        return struct.unpack(f"{'<' if element.is_little_endian else '>'}d", raw[:8])[0] if len(raw) >= 8 else None
    return None if element is None or element.value is None else float(element.value)
