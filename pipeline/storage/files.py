"""Reading and writing whole files at any local path or fsspec URL.

A file is written completely or not at all. Operations on an object store are retried while it is unavailable.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import has_magic
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import fsspec

from pipeline.storage.locations import locate
from pipeline.storage.retries import DISK_FULL, is_local, with_retries

_ABANDONED_S = 3600
"""Age in seconds at which an unfinished file counts as left by a killed writer."""
_CHECKSUMS = ("ETag", "etag", "md5Hash", "content_md5")
"""Entries of a file's details that stand for its content, in the stores of Amazon, Google and Microsoft."""


def write(url: str, content: bytes) -> None:
    """Write a file. Readers see either the old content or the new content, never a part of it."""
    with create(url) as part:
        part.write_bytes(content)


@contextmanager
def create(url: str, sync: bool = True) -> Iterator[Path]:
    """Give a local file to fill; it becomes `url` when the block ends without an error.

    Args:
        url: path or fsspec URL of the file.
        sync: write a local file's content to disk before it gets its name. Without this, a power failure can damage
            the file until `flush` is called. Object stores publish an object only when its upload is complete.
    """
    fs, path = locate(url)
    if is_local(fs):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        part = Path(f"{path}.{uuid4().hex[:8]}.part")
    else:
        descriptor, name = tempfile.mkstemp(prefix="sr-", suffix=".part")  # a new file that only this user can read
        os.close(descriptor)
        part = Path(name)
    try:
        yield part
        put(part, url, sync)
    except OSError as error:
        if error.errno in DISK_FULL and error.filename is None:
            error.filename = url
        raise
    finally:
        part.unlink(missing_ok=True)


def put(part: Path, url: str, sync: bool = True) -> None:
    """Publish a finished local file as `url`. A local file is moved there; the caller removes an uploaded one."""
    fs, path = locate(url)
    if is_local(fs):
        if sync:
            flush(str(part))
        part.replace(path)
    else:
        with_retries(url, lambda: _upload(fs, part, path))


def _upload(fs: fsspec.AbstractFileSystem, part: Path, path: str) -> None:
    try:
        fs.put_file(str(part), path)
    except FileNotFoundError as error:
        if "NoSuchUpload" not in repr(error.__cause__):  # such as NoSuchBucket
            raise
        raise ConnectionError(f"the store has dropped the upload ({error})") from error


def flush(url: str) -> None:
    """Write a local file's content to its disk. Objects in a store are already safe."""
    fs, path = locate(url)
    if is_local(fs):
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def copy(file: Path, url: str) -> None:
    """Copy a local file to `url`, completely or not at all."""
    with create(url) as part:
        shutil.copyfile(file, part)


def copy_stored(origin: str, url: str) -> bool:
    """Copy a file within its object store, so that its content does not travel.

    Args:
        origin: URL of the file.
        url: URL of the copy.

    Returns:
        False if nothing was done, because these are local files or two stores, or the store cannot copy.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    (fs, path), (other, source) = locate(url), locate(origin)
    if is_local(fs) or fs is not other:
        return False
    try:
        with_retries(url, lambda: fs.cp_file(source, path), expected=(NotImplementedError,))
    except NotImplementedError:
        return False
    return True


@contextmanager
def local_copy(url: str) -> Iterator[Path]:
    """Give the file at `url` as a local file: a local one itself, otherwise a copy that is removed after the block.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    fs, path = locate(url)
    if is_local(fs):
        if not Path(path).is_file():
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="sr-") as folder:
        with_retries(url, lambda: fs.get_file(path, f"{folder}/copy"))
        yield Path(folder, "copy")


def remove(url: str) -> None:
    """Remove a file, or a folder and its content, if it exists."""
    fs, path = locate(url)

    def remove_all() -> None:
        if is_local(fs) or not has_magic(path):
            fs.rm(path, recursive=True)
            return
        for file in fs.find(path):  # `rm` would take the name for a pattern
            fs.rm_file(file)

    with suppress(FileNotFoundError):
        with_retries(url, remove_all)


def sweep(folder: str) -> None:
    """Remove unfinished files that killed writers left in a local folder more than an hour ago."""
    fs, path = locate(folder)
    if is_local(fs):
        for part in Path(path).glob("*.part"):
            if time.time() - part.stat().st_mtime > _ABANDONED_S:
                part.unlink(missing_ok=True)


def read(url: str, start: int | None = None, end: int | None = None) -> bytes | None:
    """Return a file's content, or None if there is no such file.

    Args:
        url: path or fsspec URL of the file.
        start: position of the first byte to read; None for the beginning.
        end: position behind the last byte, which may lie behind the end; None for the end.
    """
    fs, path = locate(url)
    try:
        return with_retries(url, lambda: bytes(fs.cat_file(path, start=start, end=end)))
    except FileNotFoundError:
        return None


def exists(url: str) -> bool:
    """Tell whether there is a file or folder at `url`."""
    fs, path = locate(url)
    return with_retries(url, lambda: bool(fs.exists(path)))


def size(url: str) -> int | None:
    """Return a file's size in bytes, or None if there is no such file or its server does not say."""
    fs, path = locate(url)
    try:
        found = with_retries(url, lambda: fs.info(path)["size"])
        return None if found is None else int(found)
    except FileNotFoundError:
        return None


class StoredFile(NamedTuple):
    """Size and ETag of a file, as its store reports them."""

    bytes: int
    etag: str
    """A text that changes with the content, such as the ETag of S3; empty for a local file."""

    @classmethod
    def of(cls, info: dict[str, Any]) -> StoredFile:
        """Take it from fsspec's details."""
        return cls(int(info["size"]), next((str(info[key]) for key in _CHECKSUMS if info.get(key)), ""))


def stored(url: str) -> StoredFile | None:
    """Return what the store reports of a file, or None if there is no such file."""
    fs, path = locate(url)
    try:
        return StoredFile.of(with_retries(url, lambda: fs.info(path)))
    except FileNotFoundError:
        return None


def names(folder: str) -> list[str]:
    """Return the sorted names of a folder's files and folders; an empty list if the folder does not exist."""
    fs, path = locate(folder)
    try:
        entries = with_retries(folder, lambda: list(fs.ls(path, detail=False)))
    except FileNotFoundError:
        return []
    paths = {entry.rstrip("/") for entry in entries} - {path.rstrip("/")}  # S3 consoles store an object for a folder
    return sorted(name for entry in paths if (name := entry.rsplit("/", 1)[-1]))


def sizes(folder: str) -> dict[str, int]:
    """Return the size in bytes of each file in a folder by its name; empty if the folder does not exist."""
    return {name: file.bytes for name, file in stored_files(folder).items()}


def stored_files(folder: str) -> dict[str, StoredFile]:
    """Return what the store reports of each file in a folder by its name; empty if the folder does not exist."""
    fs, path = locate(folder)
    try:
        entries = with_retries(folder, lambda: list(fs.ls(path, detail=True)))
    except FileNotFoundError:
        return {}
    return {entry["name"].rsplit("/", 1)[-1]: StoredFile.of(entry) for entry in entries if entry["type"] == "file"}


def sha256(file: Path) -> str:
    """Return the SHA-256 of a local file in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
