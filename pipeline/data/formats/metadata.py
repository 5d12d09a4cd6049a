"""Orientation, resolution and EXIF metadata. Damaged metadata are never an error; they count as absent."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.data.formats.directory import Directory
from pipeline.data.rejection import RejectedImageError

EXIF_PREFIX = b"Exif\0\0"
"""Bytes that JPEG files, and some others, have in front of a block of EXIF metadata."""

_ORIENTATION, _EXIF, _GPS, _WIDTH, _HEIGHT = 274, 34665, 34853, 40962, 40963
_INTEROPERABILITY = 40965
"""Points to a directory that says nothing about the picture."""
_LAST_TYPE = 12
"""Types of values with higher numbers are those of BigTIFF."""
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_DESCRIPTIVE = (270, 271, 272, 282, 283, 296, 305, 306, 315, 316, 33432)
"""Tags of a TIFF file that describe the picture rather than its storage: description, maker, model, resolution,
software, time, artist, computer and copyright."""
MOST_BYTES = 2**20
"""Bytes that are copied from a directory at most: entries may share their bytes, so that copies outgrow the file."""
_PER_INCH = {2: 1.0, 3: 2.54}
"""Units of length per inch, by the number of the unit: inch and centimetre; 1 states no unit."""
Entries = dict[int, tuple[int, int, bytes]]
"""Type, number of values and their bytes, by tag."""
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
        tags = exif if isinstance(exif, Directory) else Directory(exif.removeprefix(EXIF_PREFIX))
        return tags.number(_ORIENTATION, None)
    except RejectedImageError:
        return None


def density(across: float | None, down: float | None, units_per_inch: float = 1) -> tuple[float, float] | None:
    """Return pixels per inch across and down; None unless both are numbers that a display or printer could have."""
    if not across or not down:
        return None
    found = round(across * units_per_inch, 2), round(down * units_per_inch, 2)
    return found if min(found) >= 1 and max(found) <= 65_535 else None


def density_in(tags: Directory | bytes) -> tuple[float, float] | None:
    """Return pixels per inch across and down as a TIFF file or a block of EXIF metadata states them."""
    try:
        tags = Directory(tags.removeprefix(EXIF_PREFIX)) if isinstance(tags, bytes) else tags
        unit = tags.number(_RESOLUTION_UNIT, 2) or 2
        across, down = tags.ratio(_X_RESOLUTION), tags.ratio(_Y_RESOLUTION)
        return density(across, down, _PER_INCH[unit]) if unit in _PER_INCH else None
    except RejectedImageError:
        return None


def upright(exif: bytes | None, width: int, height: int) -> bytes | None:
    """Return EXIF metadata for an image that has been turned upright and perhaps enlarged.

    The values are replaced in place, so that everything else, such as the notes of a camera's maker, stays where it is.
    The thumbnail, which shows the picture as it was, loses its entry.

    Args:
        exif: a block of EXIF metadata, with or without the prefix that JPEG files have.
        width: pixels.
        height: pixels.

    Returns:
        The block without the prefix; None if it is damaged.
    """
    if exif is None:
        return None
    block = exif.removeprefix(EXIF_PREFIX)
    changed = bytearray(block)
    try:
        tags = Directory(block)
        if block[2:4] not in (b"*\0", b"\0*"):
            return None
        tags.overwrite(_ORIENTATION, 1, changed)
        if len(block) >= tags.end + 4:
            struct.pack_into("<I", changed, tags.end, 0)
        if (photo := tags.directory(_EXIF)) is not None:
            photo.overwrite(_WIDTH, width, changed)
            photo.overwrite(_HEIGHT, height, changed)
    except (RejectedImageError, struct.error):
        return None
    return bytes(changed)


@dataclass(frozen=True)
class Description:
    """The tags of a TIFF file, or of a block of EXIF metadata, that describe the picture rather than its storage."""

    order: str = "<"
    """Byte order of the values, as struct writes it."""
    main: Entries = field(default_factory=dict)
    parts: dict[int, Entries] = field(default_factory=dict)
    """The directories of the photograph and of the place, by the tag that points to them."""

    def directories(self, start: int, more: Entries | None = None) -> bytes:
        """Return the directories as they are stored.

        Args:
            start: their position in the file.
            more: further entries of the main directory.
        """
        main = self.main | (more or {}) | {tag: (4, 1, bytes(4)) for tag in self.parts}
        position = start + len(_directory(self.order, main, start))
        behind = []
        for tag, entries in self.parts.items():
            main[tag] = 4, 1, struct.pack(f"{self.order}I", position)
            behind.append(_directory(self.order, entries, position))
            position += len(behind[-1])
        return b"".join([_directory(self.order, main, start), *behind])


def describe(tags: Directory | bytes) -> Description:
    """Return the tags that describe the picture, of at most 1 MB each directory; nothing of damaged metadata.

    Args:
        tags: the directory of a TIFF file; or a block of EXIF metadata without the prefix that JPEG files have.
    """
    try:
        tags = Directory(tags) if isinstance(tags, bytes) else tags
        found = {tag: tags.directory(tag) for tag in (_EXIF, _GPS)}
        parts = {tag: copied for tag, part in found.items() if part and (copied := _copied(part, part.tags()))}
        return Description(tags.order, _copied(tags, _DESCRIPTIVE), parts)
    except RejectedImageError:
        return Description()


def exif_of_tiff(tags: Directory) -> bytes | None:
    """Return the tags of a TIFF file that describe the picture as a block of EXIF metadata; None if there are none."""
    found = describe(tags)
    if not found.main and not found.parts:
        return None
    head = (b"II*\0" if found.order == "<" else b"MM\0*") + struct.pack(f"{found.order}I", 8)
    return head + found.directories(8)


def _copied(tags: Directory, wanted: Sequence[int]) -> Entries:
    """Return entries for a block of EXIF metadata, in all at most `MOST_BYTES`."""
    copied, left = {}, MOST_BYTES
    for tag in wanted:
        if tag in tags and tag != _INTEROPERABILITY and 0 < tags.size(tag) <= left:
            kind, count, stored = tags.stored(tag)
            if kind <= _LAST_TYPE:
                copied[tag] = kind, count, stored
                left -= len(stored)
    return copied


def _directory(order: str, entries: Entries, start: int) -> bytes:
    """Return a directory and the values of its tags, for a position in the file."""
    values_at = start + 2 + 12 * len(entries) + 4
    listed, values = [struct.pack(f"{order}H", len(entries))], []
    for tag, (kind, count, stored) in sorted(entries.items()):
        field = stored.ljust(4, b"\0")
        if len(stored) > 4:
            field = struct.pack(f"{order}I", values_at)
            values.append(stored + bytes(len(stored) % 2))
            values_at += len(values[-1])
        listed.append(struct.pack(f"{order}HHI", tag, kind, count) + field)
    return b"".join([*listed, bytes(4), *values])
