"""TIFF files of 8 or 16 bits with colours, opacity and metadata; Pillow writes no colours of 16 bits."""

from __future__ import annotations

import struct
import zlib
from typing import IO

import numpy as np

from pipeline.data.formats.metadata import Description, Entries, describe
from pipeline.data.formats.tiff_structure import Compression, Photometric, Tag
from pipeline.upscaling.images import DecodedImage

_STRIP = 2**20
"""Bytes of a strip before compression, at most, but at least one row."""
_LARGEST = 2**32 - 2**25
"""Bytes of the pixels in a file, whose positions have 32 bits; the rest is for metadata."""
_SHORT, _LONG, _RATIONAL, _UNDEFINED = 3, 4, 5, 7
_FORMS = {_SHORT: "H", _LONG: "I", _RATIONAL: "I"}
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_DIFFERENCES, _UNASSOCIATED, _INCH = 2, 2, 2


def write_tiff(image: DecodedImage, file: IO[bytes]) -> None:
    """Write a TIFF 6.0 file with Deflate compression and differences, strip by strip.

    Args:
        image: the image.
        file: an empty file, which can be written to at any position.

    Raises:
        ValueError: if the file would be larger than 4 GB.
    """
    described = describe(image.exif) if image.exif else Description()
    order = described.order
    samples, alpha = image.pixels, image.alpha
    height, width, channels = samples.shape
    count = channels + (alpha is not None)
    rows = min(max(_STRIP // (width * count * samples.itemsize), 1), height)
    file.write((b"II*\0" if order == "<" else b"MM\0*") + bytes(4))
    position, offsets, sizes = 8, [], []
    for top in range(0, height, rows):
        part = samples[top : top + rows]
        if alpha is not None:
            part = np.dstack([part, alpha[top : top + rows]])
        differences = np.diff(part, axis=1, prepend=part.dtype.type(0))
        stored = np.dtype(f"{order}u{samples.itemsize}")
        strip = zlib.compress(differences.astype(stored, copy=False).tobytes())
        file.write(strip)
        offsets.append(position)
        sizes.append(len(strip))
        position += len(strip)
        if position > _LARGEST:
            raise ValueError("it would have more than 4 GB, which a TIFF file cannot hold")
    file.write(bytes(position % 2))
    position += position % 2
    entries = {
        Tag.WIDTH: _entry(order, _LONG, width),
        Tag.HEIGHT: _entry(order, _LONG, height),
        Tag.BITS: _entry(order, _SHORT, *[samples.itemsize * 8] * count),
        Tag.COMPRESSION: _entry(order, _SHORT, Compression.DEFLATE),
        Tag.PHOTOMETRIC: _entry(order, _SHORT, Photometric.BLACK_IS_ZERO if channels == 1 else Photometric.RGB),
        Tag.STRIP_OFFSETS: _entry(order, _LONG, *offsets),
        Tag.SAMPLES: _entry(order, _SHORT, count),
        Tag.ROWS_PER_STRIP: _entry(order, _LONG, rows),
        Tag.STRIP_SIZES: _entry(order, _LONG, *sizes),
        Tag.PLANAR: _entry(order, _SHORT, 1),
        Tag.PREDICTOR: _entry(order, _SHORT, _DIFFERENCES),
    }
    more: Entries = {int(tag): entry for tag, entry in entries.items()}
    if alpha is not None:
        more[Tag.EXTRA_SAMPLES] = _entry(order, _SHORT, _UNASSOCIATED)
    if image.profile:
        more[Tag.ICC_PROFILE] = _UNDEFINED, len(image.profile), image.profile
    if image.density:
        for tag, value in zip((_X_RESOLUTION, _Y_RESOLUTION), image.density, strict=True):
            more[tag] = _entry(order, _RATIONAL, round(value * 1000), 1000)
        more[_RESOLUTION_UNIT] = _entry(order, _SHORT, _INCH)
    file.write(described.directories(position, more))
    file.seek(4)
    file.write(struct.pack(f"{order}I", position))


def _entry(order: str, kind: int, *numbers: int) -> tuple[int, int, bytes]:
    """Return a tag's type, the number of its values, and their bytes; a fraction has two numbers."""
    count = len(numbers) // 2 if kind == _RATIONAL else len(numbers)
    return kind, count, struct.pack(f"{order}{len(numbers)}{_FORMS[kind]}", *numbers)
