"""List and read the images in zip and tar archives, without unpacking them to disk."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import posixpath
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import IO, Any, TypeVar

from pipeline import storage
from pipeline.data.images import EXTENSIONS
from pipeline.data.left_out import LeftOut, LeftOutKind, Leftovers, reason_to_leave_out
from pipeline.data.listing import Listing, describe
from pipeline.data.locations import FileLocation, Location, TarLocation, ZipLocation
from pipeline.data.rejection import RejectedImageError, RejectionKind
from pipeline.data.source_images import SourceImages
from pipeline.data.streams import StorageError, open_stream, stamp
from pipeline.settings import UserError
from pipeline.settings.fields import absolute_path
from pipeline.storage import one_line, printable

T = TypeVar("T")

_ZIP = (".zip",)
_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
ENDINGS = _ZIP + _TAR
"""Lower-case endings of archives."""
_DECOMPRESSORS: dict[bytes, Callable[[IO[bytes]], IO[bytes]]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),  # type: ignore[dict-item, return-value]
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}
"""Decompressor of a tar archive, by the archive's first bytes."""

_LARGEST_HEADER = 2**20
"""Bytes of a member's extended header in a tar archive; real ones have some hundred."""
_LARGEST_PADDING = 2**26
"""Bytes after the end of a tar archive that are read to check the checksum behind them."""
_MOST_LINKS = 32
"""Links from link to link that are followed; the limit ends circles."""
_LONGEST_LINK = 4096
"""Bytes of a symbolic link in a zip archive."""
_LZMA_MEMORY = 2**28
"""Bytes that decompressing a member of a zip archive may take beside its content."""
_ZIP_HEADER = struct.Struct("<4s2xHH16xHH")
"""Header of a member of a zip archive (APPNOTE.TXT 4.3.7): signature, flags, method, and the lengths of name and extra
field, which follow."""
_EXTRA = 256
"""Bytes of an extra field that are requested with a member; a longer one takes a second request."""
_ENCRYPTED, _PATCHED, _STRONGLY_ENCRYPTED = 1, 1 << 5, 1 << 6
"""Flags of a member of a zip archive."""


@dataclass(frozen=True)
class _Member:
    """A member of an archive."""

    name: str
    """Its name in the archive."""
    location: Location | None
    """The place of its content; None if it has none."""
    details: dict[str, Any]
    """Size and version, as `describe` takes them."""
    target: str | None = None
    """The member that it is a link to."""
    fault: str = ""
    """The reason for which it cannot be used; it completes a sentence that begins with the name."""


def is_archive(source: str) -> bool:
    """Tell by its ending if a path or URL names an archive."""
    on_web = source.startswith(("http://", "https://"))
    path = re.split("[?#]", source, maxsplit=1)[0] if on_web else source
    return path.lower().endswith(ENDINGS)


def may_be_archive(name: str) -> bool:
    """Tell whether files of the same type as one of this name can be archives; "set.csv.gz" and "set.tar.gz" are."""
    return name.lower().endswith(tuple(f".{ending.rpartition('.')[2]}" for ending in ENDINGS))


def list_archive(source: str, extensions: tuple[str, ...] = EXTENSIONS) -> Listing:
    """List the images in a zip or tar archive at a local path or fsspec URL.

    A link to a member counts as that member. A member that cannot be used is left out.

    Args:
        source: the archive.
        extensions: lower-case endings of the members that are taken for images.

    Raises:
        UserError: if the archive does not exist or cannot be read.
    """
    kind = "zip" if source.lower().endswith(_ZIP) else "tar"
    archive = absolute_path(source)
    _open_tar.cache_clear()  # the archive may have changed
    try:
        members = _run(archive, lambda: _zip_members(archive) if kind == "zip" else _tar_members(archive))
    except FileNotFoundError:
        raise UserError(f"source {printable(source)} does not exist, expected a {kind} archive") from None
    except (OSError, _ContentError) as error:
        raise UserError(
            f"source {printable(source)} cannot be read: {one_line(error)}, expected a whole {kind} archive"
        ) from None
    return _sort_members(source, members, extensions)


def read_member(location: ZipLocation | TarLocation) -> bytes:
    """Read a member of an archive.

    A member of a zip archive, or of a tar archive that is not compressed, takes one request, and nothing else of the
    archive is read. The members of a compressed tar archive are best read in order, because a step back starts again
    at the beginning.

    Raises:
        RejectedImageError: if the member is damaged or encrypted.
        OSError: if the archive cannot be read.
    """
    try:
        if isinstance(location, ZipLocation):
            return _read_zip(location)
        return _read_tar(location) if location.plain else _run(location.archive, lambda: _read_compressed(location))
    except (zipfile.BadZipFile, tarfile.ReadError, _ContentError) as error:
        detail = f"cannot be read from its archive: {one_line(error)}"
        raise RejectedImageError(RejectionKind.DAMAGED, detail) from None


class _ContentError(Exception):
    """The content of an archive is damaged or of an unknown kind."""


def _run(archive: str, operation: Callable[[], T]) -> T:
    """Run an operation on an archive, again while its storage is unavailable.

    Raises:
        _ContentError: if the archive's content makes the operation fail.
        OSError: if the storage fails.
    """

    def attempt() -> T:
        try:
            return operation()
        except StorageError as error:
            _open_tar.cache_clear()
            raise (error.__cause__ or error) from None
        except Exception as error:  # see open_stream
            _open_tar.cache_clear()  # a decompressor cannot be used after an error
            raise _ContentError(str(error) or type(error).__name__) from error

    return storage.with_retries(archive, attempt, (_ContentError,))


@lru_cache(maxsize=8)
def _open_tar(archive: str, _stamp: tuple[int, ...]) -> IO[bytes]:
    """Open the content of a compressed tar archive for reading its members."""
    return _decompressed(open_stream(archive))


def _decompressed(file: IO[bytes]) -> IO[bytes]:
    """Return the content of a tar archive: the file itself, or what it is decompressed to."""
    start = file.read(6)
    file.seek(0)
    return next((opener(file) for magic, opener in _DECOMPRESSORS.items() if start.startswith(magic)), file)


def _zip_members(archive: str) -> list[_Member]:
    with open_stream(archive) as file:
        infos = zipfile.ZipFile(file).infolist()
        end = file.seek(0, os.SEEK_END)
    members = []
    for info in infos:
        mode = info.external_attr >> 16 if info.create_system == 3 else 0  # the mode of Unix
        details = {"size": info.file_size, "CRC": info.CRC}
        numbers = info.file_size, info.header_offset, info.compress_size, info.CRC, info.compress_type
        location = ZipLocation(archive, info.filename, *numbers)
        name = info.orig_filename
        if "\0" in name:
            members.append(_Member(name, None, details, fault="has a name with a NUL character"))
        elif name.endswith("/"):
            continue
        elif info.file_size >= 2**63:
            members.append(_Member(name, None, {**details, "size": 0}, fault="states an impossible size"))
        elif info.header_offset < 0 or info.header_offset + info.compress_size > end:
            members.append(_Member(name, None, details, fault="lies outside of the archive"))
        elif stat.S_ISLNK(mode) and info.file_size <= _LONGEST_LINK:
            members.append(_zip_link(location, details))
        elif stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            members.append(_Member(name, None, details, fault="is no regular file"))
        else:
            members.append(_Member(name, location, details))
    return members


def _zip_link(location: ZipLocation, details: dict[str, Any]) -> _Member:
    """Return the member for a symbolic link, whose content is the path that it points to."""
    try:
        target = _read_zip(location).decode(errors="surrogateescape")
    except OSError as error:
        raise StorageError from error
    except zipfile.BadZipFile as error:
        return _Member(location.member, None, details, fault=f"is a damaged link: {one_line(error)}")
    return _Member(location.member, None, details, _link_target(location.member, target))


def _tar_members(archive: str) -> list[_Member]:
    with open_stream(archive) as file:
        content = _decompressed(file)
        members = _read_headers(archive, content, plain=content is file)
    fs, path = storage.locate(archive)
    mark = storage.fingerprint(describe("", FileLocation(archive), fs.info(path)).version)
    for member in members:  # a header says nothing about the content: archives that are made anew keep the times
        member.details["mtime"] = f"{member.details['mtime']} {mark}"
    return members


def _read_headers(archive: str, content: IO[bytes], plain: bool) -> list[_Member]:
    headers = _Headers(content)
    opened = tarfile.TarFile(fileobj=headers)  # type: ignore[arg-type]
    members = []
    while (info := opened.next()) is not None:
        opened.members.clear()  # type: ignore[attr-defined]  # the list would hold every header
        details = {"size": info.size, "mtime": info.mtime, "chksum": info.chksum}
        if info.isdir():
            continue
        target = location = None
        fault = ""
        if "\0" in info.name:
            fault = "has a name with a NUL character"
        elif info.issym():
            target = _link_target(info.name, info.linkname)
        elif info.islnk():
            target = info.linkname
        elif not info.isreg() or info.issparse():
            fault = "is a sparse file" if info.issparse() else "is no regular file"
        else:
            location = TarLocation(archive, info.name, info.offset_data, info.size, plain)
        members.append(_Member(info.name, location, details, target, fault))
    if len(headers.last) < tarfile.BLOCKSIZE or headers.last.strip(b"\0"):  # `tarfile` takes any damage for the end
        raise tarfile.ReadError(f"the header at byte {opened.offset} is damaged or missing")
    left = _LARGEST_PADDING
    while left > 0 and (read := len(content.read(2**16))):  # a checksum may follow, which the decompressor checks
        left -= read
    return members


class _Headers:
    """The content of a tar archive, of which `tarfile` reads no more than headers.

    A header can state any size of what follows it, and `tarfile` reads all of that into memory.
    """

    def __init__(self, content: IO[bytes]) -> None:
        self._content = content
        self.seek, self.tell = content.seek, content.tell
        self.last = b""
        """The bytes of the last call of `read`."""

    def read(self, size: int) -> bytes:
        if size > _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header has {size} bytes")
        self.last = self._content.read(size)
        return self.last


def _link_target(name: str, target: str) -> str:
    """Return the name of the member that a symbolic link points to."""
    return posixpath.join(posixpath.dirname(name), target)


def _sort_members(source: str, members: Sequence[_Member], extensions: tuple[str, ...]) -> Listing:
    """Divide an archive's members into images and what is left out."""
    by_path = {_path(member.name): member for member in members}
    has_links = any(member.target is not None for member in members)
    folders = {str(folder) for path in by_path for folder in PurePosixPath(path).parents} if has_links else set()
    images = []
    left_out = Leftovers()
    for member in members:
        name = "/".join(part for part in member.name.split("/") if part not in ("", "."))
        reason = reason_to_leave_out(name, extensions)
        found = _follow(member, by_path)
        if reason is None and by_path[_path(member.name)] is not member:
            reason = LeftOut(name, LeftOutKind.UNUSABLE, "is followed by a member of the same name")
        elif found is None and _path(member.target or "") in folders:
            reason = LeftOut(name, LeftOutKind.LINKED_FOLDER)
        elif reason is None and (found is None or found.location is None):
            reason = LeftOut(name, LeftOutKind.UNUSABLE, found.fault if found else "is a link to nothing")
        if reason:
            left_out.add(reason)
        elif found and found.location:
            images.append(describe(name, found.location, found.details))
    return Listing(source, SourceImages.of(images).sorted(), left_out.entries())


def _path(name: str) -> str:
    """Return a member's path in the archive without what does not change it, such as "./" at the beginning."""
    return posixpath.normpath(name).lstrip("/")


def _follow(member: _Member, by_path: dict[str, _Member]) -> _Member | None:
    """Return the member that a link leads to, or None if there is none; any other member is returned as it is."""
    found: _Member | None = member
    for _ in range(_MOST_LINKS):
        if found is None or found.target is None:
            return found
        found = by_path.get(_path(found.target))
    return None


def _read_zip(location: ZipLocation) -> bytes:
    """Read a member of a zip archive by one request, or two if its header is unusually long.

    Raises:
        BadZipFile: if it is damaged, encrypted or of an unknown kind.
        OSError: if the storage fails.
    """
    if location.stored > 2 * location.size + 2**16:
        raise zipfile.BadZipFile(f"{location.stored} bytes would become {location.size}")
    start = location.offset
    guess = _ZIP_HEADER.size + len(location.member.encode(errors="surrogatepass")) + _EXTRA
    found = _read_range(location.archive, start, start + guess + location.stored)
    if len(found) < _ZIP_HEADER.size:
        raise zipfile.BadZipFile("its header is missing")
    signature, flags, _, name, extra = _ZIP_HEADER.unpack_from(found)
    if signature != b"PK\3\4":
        raise zipfile.BadZipFile("its header is damaged")
    if flags & (_ENCRYPTED | _PATCHED | _STRONGLY_ENCRYPTED):
        raise zipfile.BadZipFile("it is encrypted, or a patch of another file")
    begin = _ZIP_HEADER.size + name + extra
    if len(found) < begin + location.stored:
        found, begin = _read_range(location.archive, start + begin, start + begin + location.stored), 0
    try:
        content = _decompress(found[begin : begin + location.stored], location.method, location.size)
    except Exception as error:  # the modules for compression have a dozen different ones
        raise zipfile.BadZipFile(str(error) or type(error).__name__) from error
    if len(content) != location.size or zlib.crc32(content) != location.crc:
        raise zipfile.BadZipFile("its content does not have the size and the CRC that the archive states")
    return content


def _decompress(stored: bytes, method: int, size: int) -> bytes:
    """Decompress a member of a zip archive, but no more than one byte beyond its size."""
    if method == zipfile.ZIP_STORED:
        return stored
    if method == zipfile.ZIP_DEFLATED:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored, size + 1)
    if method == zipfile.ZIP_BZIP2:
        return bz2.BZ2Decompressor().decompress(stored, size + 1)
    if method == zipfile.ZIP_LZMA:  # APPNOTE.TXT 5.8: version, length and properties; a .lzma file has also the size
        end = 4 + int.from_bytes(stored[2:4], "little")
        decompressor = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_LZMA_MEMORY)
        return decompressor.decompress(stored[4:end] + b"\xff" * 8 + stored[end:], size + 1)
    raise NotImplementedError(f"its compression method {method} is unknown")


def _read_tar(location: TarLocation) -> bytes:
    """Read a member of a tar archive that is not compressed by one request."""
    content = _read_range(location.archive, location.offset, location.offset + location.size)
    if len(content) < location.size:
        raise tarfile.ReadError(f"{len(content)} of {location.size} bytes came")
    return content


def _read_range(archive: str, start: int, end: int) -> bytes:
    content = storage.read(archive, start, end) if end > start else b""
    if content is None:
        raise FileNotFoundError(f"{printable(archive)} is gone")
    return content


def _read_compressed(location: TarLocation) -> bytes:
    file = _open_tar(location.archive, stamp(location.archive))
    file.seek(location.offset)
    parts, left = [], location.size
    while left and (part := file.read(min(left, 2**24))):
        parts.append(part)
        left -= len(part)
    if left:
        raise tarfile.ReadError(f"{location.size - left} of {location.size} bytes came")
    return b"".join(parts)
