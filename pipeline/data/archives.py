"""List and read the images in zip and tar archives, without unpacking them to disk."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from functools import lru_cache
from pathlib import PurePosixPath

import fsspec

from pipeline import storage
from pipeline.data.listing import SourceImage, absolute, describe, images_among
from pipeline.data.rejection import RejectedImageError, RejectionKind
from pipeline.settings import UserError
from pipeline.storage import one_line

_ZIP = (".zip",)
_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_COMPRESSION = {".gz": "gzip", ".tgz": "gzip", ".bz2": "bz2", ".xz": "xz"}
_SEPARATOR = "::"

_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError)
"""Exceptions that damaged or encrypted archives raise; RuntimeError includes NotImplementedError."""


def is_archive(source: str) -> bool:
    """Tell by its ending if a path or URL names an archive."""
    return source.lower().endswith(_ZIP + _TAR)


def list_archive(source: str) -> list[SourceImage]:
    """List the images in a zip or tar archive at a local path or fsspec URL.

    Raises:
        UserError: if the archive does not exist or cannot be read.
    """
    kind = "zip" if source.lower().endswith(_ZIP) else "tar"
    archive = absolute(source)
    _open.cache_clear()  # the archive may have changed
    try:
        details = storage.with_retries(archive, lambda: _open(kind, archive).find("", detail=True), _DAMAGED)
    except FileNotFoundError:
        raise UserError(f"source {source} does not exist, expected a {kind} archive") from None
    except (OSError, *_DAMAGED) as error:
        reason = one_line(error)
        raise UserError(f"source {source} cannot be read: {reason}, expected a whole {kind} archive") from None
    return [describe(path, f"{kind}://{path}{_SEPARATOR}{archive}", info) for path, info in images_among(details)]


def is_member(url: str) -> bool:
    """Tell if a URL names a file within an archive."""
    return _SEPARATOR in url


def read_member(url: str) -> bytes:
    """Read a file within an archive.

    The members of a compressed tar archive are best read in order, because a step back starts again at the beginning.

    Args:
        url: zip://MEMBER::ARCHIVE or tar://MEMBER::ARCHIVE.

    Raises:
        RejectedImageError: if the member is damaged or encrypted.
        OSError: if the archive cannot be read.
    """
    member, _, archive = url.rpartition(_SEPARATOR)
    kind, _, path = member.partition("://")
    try:
        return storage.with_retries(archive, lambda: bytes(_open(kind, archive).cat_file(path)), _DAMAGED)
    except _DAMAGED as error:
        detail = f"cannot be read from its archive: {one_line(error)}"
        raise RejectedImageError(RejectionKind.DAMAGED, detail) from None


@lru_cache(maxsize=8)
def _open(kind: str, archive: str) -> fsspec.AbstractFileSystem:
    compression = _COMPRESSION.get(PurePosixPath(archive.lower()).suffix)
    return fsspec.filesystem(kind, fo=archive, **({"compression": compression} if compression else {}))
