"""The numbers of one DICOM slice, rescaled."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK as sitk
from pydicom.dataelem import RawDataElement
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import RLELossless

from petseg_runtime.errors import InputError
from petseg_runtime.io.dicom_header import DEFLATED, EXPLICIT, IMPLICIT, Header
from petseg_runtime.io.identity import check_utf8

# Uncompressed transfer syntaxes, and the byte order of the pixels in them (PS3.5 section 10 and annex A).
_NATIVE = {IMPLICIT: "<", EXPLICIT: "<", DEFLATED: "<", "1.2.840.10008.1.2.2": ">"}
# JPEG in the two syntaxes that always lose something, and JPEG-LS and JPEG 2000 in those that may (PS3.5 section 10).
_LOSSY = frozenset({"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"})
_MAYBE_LOSSY = frozenset({"1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91"})
_PIXEL_DATA = 0x7FE00010


def check_pixel_format(header: Header) -> None:
    """Refuse a slice whose numbers cannot be quantitative, before anything is read or allocated.

    Raises
    ------
    InputError : if the slice is in colour, in bits that PET does not use, lossy, or its rescaling is absent
        or not positive; or if an uncompressed file is shorter than its own pixels.
    """
    name, pixels = header.path.name, header.pixels
    if pixels.samples != 1 or pixels.photometric != "MONOCHROME2":
        raise InputError(
            f"{name} has PhotometricInterpretation (0028,0004) {pixels.photometric or 'absent'} and SamplesPerPixel "
            f"(0028,0002) {pixels.samples}, expected MONOCHROME2 and 1. Pass a series of PET values, not of pictures."
        )
    allocated, stored = pixels.bits_allocated, pixels.bits_stored
    if allocated not in (8, 16, 32) or stored is None or not 1 <= stored <= allocated or pixels.high_bit != stored - 1:
        raise InputError(
            f"{name} has BitsAllocated (0028,0100) {allocated}, BitsStored (0028,0101) {stored} and HighBit "
            f"(0028,0102) {pixels.high_bit}, expected 8, 16 or 32 bits, the value in the lowest. Pass another series."
        )
    if pixels.representation not in (0, 1):
        raise InputError(
            f"{name} has PixelRepresentation (0028,0103) {_said(pixels.representation)}, expected 0 or 1: whether its "
            "numbers are signed is unknown. Pass another series."
        )
    syntax = header.transfer_syntax
    if pixels.lossy == "01" or syntax in _LOSSY or (syntax in _MAYBE_LOSSY and pixels.lossy != "00"):
        raise InputError(
            f"{name} is compressed with loss (LossyImageCompression (0028,2110) {pixels.lossy or 'absent'}, transfer "
            f"syntax {syntax}), so its values are not what was measured. Pass the original series."
        )
    if header.slope is None or header.intercept is None or header.slope < 0:
        raise InputError(
            f"{name} has RescaleSlope (0028,1053) {_said(header.slope)} and RescaleIntercept (0028,1052) "
            f"{_said(header.intercept)}, expected a positive slope and an intercept. Pass a series that carries them."
        )
    if header.frame is not None:
        _check_frame(header)
    elif header.transfer_syntax in _NATIVE and header.transfer_syntax != DEFLATED:
        _check_length(header, header.file_bytes)


def read_slice(header: Header) -> npt.NDArray[np.float64]:
    """Values of a slice `(y, x)`: stored number times RescaleSlope plus RescaleIntercept, of this slice; padding is 0.

    Uncompressed and RLE pixels are read here and with pydicom, which needs no plug-in for these; for JPEG,
    JPEG-LS and JPEG 2000 SimpleITK (GDCM) reads the file and rescales.

    Parameters
    ----------
    header : that has passed `check_pixel_format`.

    Raises
    ------
    InputError : if the pixels are absent, truncated or in an unknown compression; or if the slope is 0 while the
        slice is not empty.
    """
    try:
        if header.transfer_syntax in _NATIVE or header.transfer_syntax == RLELossless:
            stored = _stored(header)
            if header.slope or not stored.any():
                values = stored * np.float64(header.slope or 0.0) + np.float64(header.intercept or 0.0)
                return _without_padding(values, header)
        elif header.slope:
            return _without_padding(_values_by_itk(header), header)
    except InputError:
        raise
    except Exception as error:  # pydicom and GDCM let any exception out of damaged pixels
        raise InputError(
            f"The pixels of {header.path.name} cannot be read ({type(error).__name__}; transfer syntax "
            f"{header.transfer_syntax or 'absent'}). Get the file again, or export it uncompressed."
        ) from error
    # A blank slice may have slope 0; anything else would be wiped out by it.
    raise InputError(f"{header.path.name} has RescaleSlope (0028,1053) 0 but is not blank. Pass another series.")


def _stored(header: Header) -> npt.NDArray[np.integer[Any]]:
    value = _pixel_data(header)
    stored = _decode_rle(header, value) if header.transfer_syntax == RLELossless else _decode_native(header, value)
    # Bits above HighBit may hold anything (overlays, once); shifting up and down clears them and keeps the sign.
    unused = (header.pixels.bits_allocated or 0) - (header.pixels.bits_stored or 0)
    return stored << unused >> unused if unused else stored


def _without_padding(values: npt.NDArray[np.float64], header: Header) -> npt.NDArray[np.float64]:
    """No uptake where the stored number was padding (PS3.3 C.7.5.1.1.2)."""
    if header.pixels.padding is not None and header.slope:
        first, last = (number * header.slope + (header.intercept or 0.0) for number in header.pixels.padding)
        half = header.slope / 2  # stored numbers are whole, and GDCM has rescaled already
        values[(values > first - half) & (values < last + half)] = 0.0
    return values


def _pixel_data(header: Header) -> bytes:
    """The bytes of a slice's pixels."""
    if header.frame is not None:
        with header.path.open("rb") as stream:
            stream.seek(header.pixels_at + header.frame * header.slice_bytes)
            return stream.read(header.slice_bytes)
    dataset = pydicom.dcmread(header.path, specific_tags=[_PIXEL_DATA], force=True)  # its header has passed
    element = dataset.get_item(_PIXEL_DATA)
    if not isinstance(element, RawDataElement) or not element.value:
        raise InputError(f"{header.path.name} has no PixelData (7FE0,0010). Get the file again.")
    return bytes(element.value)


def _decode_native(header: Header, value: bytes) -> npt.NDArray[np.integer[Any]]:
    _check_length(header, len(value))
    pixels, rows, columns = header.pixels, header.rows or 0, header.columns or 0
    sign = "i" if pixels.signed else "u"
    kind = np.dtype(f"{_NATIVE[header.transfer_syntax]}{sign}{(pixels.bits_allocated or 0) // 8}")
    if len(value) > rows * columns * kind.itemsize + 1:  # a value has even length
        raise InputError(
            f"{header.path.name} has {len(value)} bytes of PixelData (7FE0,0010), expected "
            f"{rows * columns * kind.itemsize} for {rows} x {columns} pixels. Get the file again."
        )
    return np.frombuffer(value, kind, rows * columns).reshape(rows, columns).astype(kind.newbyteorder("="))


def _decode_rle(header: Header, value: bytes) -> npt.NDArray[np.integer[Any]]:
    options: dict[str, Any] = {
        "pixel_keyword": "PixelData",
        "number_of_frames": 1,
        "rows": header.rows,
        "columns": header.columns,
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "bits_allocated": header.pixels.bits_allocated,
        "bits_stored": header.pixels.bits_stored,
        "pixel_representation": int(header.pixels.signed),
    }
    array, _ = get_decoder(RLELossless).as_array(value, raw=True, **options)
    return array.reshape(header.rows or 0, header.columns or 0)  # of several fragments pydicom makes several slices


def _values_by_itk(header: Header) -> npt.NDArray[np.float64]:
    check_utf8(header.path)
    image = sitk.ReadImage(str(header.path), sitk.sitkFloat64, imageIO="GDCMImageIO")
    values: npt.NDArray[np.float64] = sitk.GetArrayFromImage(image)
    if values.size != (header.rows or 0) * (header.columns or 0):
        raise InputError(
            f"{header.path.name} decodes to {values.shape} pixels, expected one slice of {header.rows} x "
            f"{header.columns}. Get the file again."
        )
    return values.reshape(header.rows or 0, header.columns or 0)


def _check_frame(header: Header) -> None:
    """Refuse a frame that this module cannot find in its file."""
    if header.transfer_syntax not in (IMPLICIT, EXPLICIT):
        raise InputError(
            f"{header.path.name} is Enhanced PET in transfer syntax {header.transfer_syntax or 'absent'}, expected "
            "uncompressed. Export it uncompressed, or as single slices."
        )
    _check_length(header, header.file_bytes - header.pixels_at - (header.frame or 0) * header.slice_bytes)


def _check_length(header: Header, length: int) -> None:
    expected = header.slice_bytes
    if length < expected:
        raise InputError(
            f"{header.path.name} is truncated: {length} bytes, expected {expected} for {header.rows} x "
            f"{header.columns} pixels. Get the file again."
        )


def _said(value: float | None) -> str:
    return "absent" if value is None else f"{value:g}"
