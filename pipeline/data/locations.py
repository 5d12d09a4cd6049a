"""The places that the content of a source image is read from."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from pipeline.storage import fingerprint, printable, redact


@dataclass(frozen=True, slots=True)
class FileLocation:
    """A file."""

    url: str
    """Absolute path or fsspec URL."""

    def __str__(self) -> str:
        return printable(self.url)


@dataclass(frozen=True, slots=True)
class BuiltinLocation:
    """A photograph in an installed package."""

    name: str

    def __str__(self) -> str:
        return f"builtin://{self.name}"


@dataclass(frozen=True, slots=True)
class ZipLocation:
    """A member of a zip archive."""

    archive: str
    """Absolute path or fsspec URL of the archive."""
    member: str
    """Its name in the archive."""
    size: int
    """Bytes of its content, as the archive states it."""
    offset: int
    """Position of its header in the file."""
    stored: int
    """Bytes of its content as it is stored, perhaps compressed."""
    crc: int
    """CRC-32 of its content."""
    method: int
    """Number of its compression method."""

    def __str__(self) -> str:
        return printable(f"{self.member} in {self.archive}")


@dataclass(frozen=True, slots=True)
class TarLocation:
    """A member of a tar archive."""

    archive: str
    """Absolute path or fsspec URL of the archive."""
    member: str
    """Its name in the archive."""
    offset: int
    """Position of its content in the decompressed archive."""
    size: int
    """Bytes of its content."""
    plain: bool
    """The archive is not compressed, so that the position is one in the file."""

    def __str__(self) -> str:
        return printable(f"{self.member} in {self.archive}")


Location = FileLocation | BuiltinLocation | ZipLocation | TarLocation
Base = tuple[type[Location], str]
"""The kind of a location, and the text that it begins with; many locations share one."""
_ZIP, _TAR = struct.Struct("<QQQLH"), struct.Struct("<QQ?")


def pack(location: Location, name: str = "") -> tuple[Base, bytes]:
    """Divide a location into what it shares with others and a few bytes of its own.

    Args:
        location: any location.
        name: the name of its image, which the URL of a file often ends with; nothing of such a URL is left.
    """
    if isinstance(location, FileLocation):
        if name and location.url.endswith(name):
            return (FileLocation, location.url[: -len(name)]), b""
        folder, slash, file = location.url.rpartition("/")
        return ((FileLocation, folder + slash), _encode(file)) if file else ((FileLocation, ""), _encode(location.url))
    if isinstance(location, ZipLocation):
        numbers = _ZIP.pack(location.size, location.offset, location.stored, location.crc, location.method)
        return (ZipLocation, location.archive), numbers + _encode(location.member)
    if isinstance(location, TarLocation):
        numbers = _TAR.pack(location.offset, location.size, location.plain)
        return (TarLocation, location.archive), numbers + _encode(location.member)
    return (BuiltinLocation, location.name), b""


def unpack(base: Base, place: bytes, name: str = "") -> Location:
    """Return the location that `pack` divided, given the same name."""
    kind, begin = base
    if kind is BuiltinLocation:
        return BuiltinLocation(begin)
    if kind is ZipLocation:
        return ZipLocation(begin, _decode(place[_ZIP.size :]), *_ZIP.unpack_from(place))
    if kind is TarLocation:
        return TarLocation(begin, _decode(place[_TAR.size :]), *_TAR.unpack_from(place))
    return FileLocation(begin + (_decode(place) or name))


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # a byte of a name that is not UTF-8 is a lone surrogate in Python


def _decode(content: bytes) -> str:
    return content.decode("utf-8", "surrogatepass")


def identity(location: Location) -> tuple[str, str]:
    """Return two texts that JSON can hold and that only this place has: of the file, and of the member in it.

    A byte of a name that is not UTF-8 becomes an escape sequence that begins with NUL, which no path contains.
    """
    if isinstance(location, FileLocation):
        plain = redact(location.url)  # no secret may reach a file
        parts = plain if plain == location.url else f"{plain} {fingerprint(location.url)}", ""
    elif isinstance(location, BuiltinLocation):
        parts = str(location), ""
    else:
        parts = location.archive, location.member
    url, member = (re.sub("[\ud800-\udfff]", lambda match: f"\0{ord(match[0]):x}", part) for part in parts)
    return url, member
