"""The directory (IFD) of tags in a TIFF file, a BigTIFF file or a block of EXIF metadata."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from pipeline.data.formats.raster import damaged
from pipeline.data.rejection import RejectedImageError

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of TIFF and BigTIFF files in both byte orders."""

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value, by the type of a tag."""
_SHORT, _LONG, _RATIONAL = 3, 4, 5
_UNSIGNED = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
_BYTES = (1, 2, 6, 7)


class Directory:
    """A directory of a file.

    Args:
        content: the file's bytes.
        start: position of the directory; by default, that of the first one.

    Raises:
        RejectedImageError: if the directory is damaged.
    """

    def __init__(self, content: bytes, start: int | None = None) -> None:
        if content[:4] not in SIGNATURES:
            raise damaged("it does not begin like a TIFF file")
        self.order = "<" if content[:1] == b"I" else ">"
        """Byte order, as struct and NumPy write it."""
        big = content[2:4] in (b"+\0", b"\0+")
        self._content = content
        number, entry = ("Q", "HHQ8s") if big else ("H", "HHI4s")
        try:
            if start is None:
                (start,) = struct.unpack_from(self.order + ("Q" if big else "I"), content, 8 if big else 4)
            (count,) = struct.unpack_from(self.order + number, content, start)
            first = start + struct.calcsize("=" + number)
            size = struct.calcsize("=" + entry)
            if count > 65_535 or first + count * size > len(content):
                raise damaged("its directory of tags is cut off")
            self._entries: dict[int, tuple[int, int, bytes, int]] = {}
            for position in range(first, first + count * size, size):
                tag, kind, length, value = struct.unpack_from(self.order + entry, content, position)
                self._entries.setdefault(tag, (kind, length, value, position + size - len(value)))
        except (struct.error, OverflowError):
            raise damaged("its directory of tags is cut off") from None
        self.end = first + count * size
        """Position behind the entries, where a pointer to the next directory follows."""
        self._offset = self.order + ("Q" if big else "I")

    def __contains__(self, tag: int) -> bool:
        return tag in self._entries

    def numbers(self, tag: int) -> npt.NDArray[np.int64]:
        """Return the values of a tag with unsigned integers; empty if there is no such tag."""
        if tag not in self._entries:
            return np.zeros(0, np.int64)
        kind = self._entries[tag][0]
        if kind not in _UNSIGNED:
            raise damaged(f"its tag {tag} is of type {kind}, expected unsigned integers")
        values = np.frombuffer(self._bytes(tag), self.order + _UNSIGNED[kind])
        if len(values) and int(values.max()) >= 2**63:
            raise damaged(f"its tag {tag} has a value that is too large")
        return values.astype(np.int64)

    def number(self, tag: int, default: int | None) -> int | None:
        """Return the only, or first, value of a tag with unsigned integers."""
        values = self.numbers(tag)
        return int(values[0]) if len(values) else default

    def raw(self, tag: int) -> bytes | None:
        """Return the bytes of a tag; None if there is no such tag, it holds other values or it is cut off."""
        try:
            return self._bytes(tag) if tag in self._entries and self._entries[tag][0] in _BYTES else None
        except RejectedImageError:
            return None

    def ratio(self, tag: int) -> float | None:
        """Return the only, or first, value of a tag with unsigned fractions; None if there is no usable one."""
        if tag not in self._entries or self._entries[tag][0] != _RATIONAL:
            return None
        numerator, denominator = struct.unpack_from(f"{self.order}II", self._bytes(tag).ljust(8, b"\0"))
        return numerator / denominator if denominator else None

    def directory(self, tag: int) -> Directory | None:
        """Return the directory that a tag points to; None if there is no such tag."""
        start = self.number(tag, None)
        return None if start is None else Directory(self._content, start)

    def tags(self) -> list[int]:
        """Return the numbers of all tags, in the order of the file."""
        return list(self._entries)

    def size(self, tag: int) -> int:
        """Return the bytes that the values of a tag take."""
        kind, count = self._entries[tag][:2]
        return _SIZES.get(kind, 0) * count

    def stored(self, tag: int) -> tuple[int, int, bytes]:
        """Return the type of a tag, the number of its values, and their bytes."""
        kind, count = self._entries[tag][:2]
        return kind, count, self._bytes(tag)

    def overwrite(self, tag: int, value: int, content: bytearray) -> None:
        """Replace the values of a tag by a number in a copy of a file that is no BigTIFF; no tag is added."""
        if tag in self._entries:
            position = self._entries[tag][3]
            kind, form = (_SHORT, "HIHxx") if value < 2**16 else (_LONG, "HII")
            struct.pack_into(self.order + form, content, position - 6, kind, 1, value)

    def _bytes(self, tag: int) -> bytes:
        _, _, value, position = self._entries[tag]
        size = self.size(tag)
        start = position if size <= len(value) else struct.unpack(self._offset, value)[0]
        if start + size > len(self._content):
            raise damaged(f"the values of its tag {tag} are cut off")
        return self._content[start : start + size]
