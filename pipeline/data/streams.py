"""Open files so that a failure of the storage can be told from a damaged content."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import IO, Any

from pipeline import storage

_BLOCK = 2**22
"""Bytes that are requested from a store at a time; the default of S3's client would be 50 MB for each open file."""
_MOST_BYTES = 2**43
"""A position in a file that is not reached; some file systems refuse larger ones."""


class StorageError(Exception):
    """The storage did not deliver the bytes of a file; the cause says why."""


class _Stream(io.RawIOBase):
    """A file whose own errors are `StorageError`."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read(len(buffer))
        except Exception as error:  # the clients of stores have exceptions of their own
            raise StorageError from error
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_CUR:
            offset, whence = offset + self._position, os.SEEK_SET
        if whence == os.SEEK_SET and not 0 <= offset < _MOST_BYTES:  # a damaged archive can ask for any position
            raise OSError(errno.EINVAL, f"position {offset} is outside of the file")
        try:
            self._position = self._file.seek(offset, whence)
        except (OSError, ValueError) as error:
            if whence == os.SEEK_END:  # `zipfile` tries positions at which a small file has not begun
                raise OSError(errno.EINVAL, f"position {offset} from the end is outside of the file") from error
            raise StorageError from error
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        self._file.close()
        super().close()


def open_stream(url: str) -> IO[bytes]:
    """Open a file whose own errors can be told from those of its content.

    Every exception that is not a `StorageError` then comes from the content, whatever its class: the modules for
    archives and compression raise a dozen different ones on damaged files.

    Args:
        url: path or fsspec URL of the file.

    Raises:
        StorageError: if it cannot be opened, and later if it cannot be read.
    """
    fs, path = storage.locate(url)
    try:
        file = open(path, "rb", buffering=0) if storage.is_local(fs) else fs.open(path, "rb", block_size=_BLOCK)  # noqa: SIM115
    except Exception as error:  # the clients of stores have exceptions of their own
        raise StorageError from error
    return io.BufferedReader(_Stream(file), 2**16)


def stamp(url: str) -> tuple[int, ...]:
    """Return what changes when a local file is replaced; empty for a file in a store.

    Raises:
        StorageError: if there is no such file.
    """
    fs, path = storage.locate(url)
    if not storage.is_local(fs):
        return ()
    try:
        found = Path(path).stat()
    except OSError as error:
        raise StorageError from error
    return found.st_ino, found.st_size, found.st_mtime_ns
