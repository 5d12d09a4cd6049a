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
_UNSIGNED = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
_BYTES = (1, 2, 6, 7)


class Directory:
    """The first directory of a file.

    Args:
        content: the file's bytes.

    Raises:
        RejectedImageError: if the directory is damaged.
    """

    def __init__(self, content: bytes) -> None:
        if content[:4] not in SIGNATURES:
            raise damaged("it does not begin like a TIFF file")
        self.order = "<" if content[:1] == b"I" else ">"
        """Byte order, as struct and NumPy write it."""
        big = content[2:4] in (b"+\0", b"\0+")
        self._content = content
        number, entry = ("Q", "HHQ8s") if big else ("H", "HHI4s")
        try:
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

    def _bytes(self, tag: int) -> bytes:
        kind, count, value, position = self._entries[tag]
        size = _SIZES.get(kind, 0) * count
        start = position if size <= len(value) else struct.unpack(self._offset, value)[0]
        if start + size > len(self._content):
            raise damaged(f"the values of its tag {tag} are cut off")
        return self._content[start : start + size]
