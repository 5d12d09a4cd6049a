"""The places that the content of a source image is read from."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.storage import fingerprint, printable, redact


@dataclass(frozen=True)
class FileLocation:
    """A file."""

    url: str
    """Absolute path or fsspec URL."""

    def __str__(self) -> str:
        return printable(self.url)


@dataclass(frozen=True)
class BuiltinLocation:
    """A photograph in an installed package."""

    name: str

    def __str__(self) -> str:
        return f"builtin://{self.name}"


@dataclass(frozen=True)
class ZipLocation:
    """A member of a zip archive."""

    archive: str
    """Absolute path or fsspec URL of the archive."""
    member: str
    """Its name in the archive; if several members have it, the last one is meant."""
    size: int
    """Bytes of its content, as the archive states it."""

    def __str__(self) -> str:
        return printable(f"{self.member} in {self.archive}")


@dataclass(frozen=True)
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

    def __str__(self) -> str:
        return printable(f"{self.member} in {self.archive}")


Location = FileLocation | BuiltinLocation | ZipLocation | TarLocation


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
