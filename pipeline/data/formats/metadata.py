"""The orientation in EXIF and XMP metadata, which damaged metadata never turns into an error."""

from __future__ import annotations

import re

from pipeline.data.formats.directory import Directory
from pipeline.data.rejection import RejectedImageError

_EXIF_PREFIX = b"Exif\0\0"
_ORIENTATION = 274
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


def orientation(exif: bytes | Directory | None, xmp: bytes | None) -> int:
    """Return the orientation, 1 to 8; 1 if the metadata state none or cannot be read.

    Args:
        exif: a block of EXIF metadata, with or without the prefix that JPEG files have; or a directory with its tags.
        xmp: a block of XMP metadata, which counts if EXIF states nothing.
    """
    stated = _in_exif(exif) if exif else None
    if stated is None and xmp and (found := _XMP_ORIENTATION.search(xmp)):
        stated = int(found[1])
    return stated if stated is not None and 1 <= stated <= 8 else 1


def _in_exif(exif: bytes | Directory) -> int | None:
    try:
        tags = exif if isinstance(exif, Directory) else Directory(exif.removeprefix(_EXIF_PREFIX))
        return tags.number(_ORIENTATION, None)
    except RejectedImageError:
        return None
