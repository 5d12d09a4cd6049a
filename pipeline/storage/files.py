"""Files at any path or fsspec URL, written whole or not at all; passing troubles of object stores are waited out."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import fsspec
import tenacity

T = TypeVar("T")

_PATIENCE_S = 90
"""How long an object store may be away before an operation on it fails."""


def write(url: str, content: bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part."""
    with create(url) as part:
        part.write_bytes(content)


@contextmanager
def create(url: str, sync: bool = True) -> Iterator[Path]:
    """Give a local file to fill, which becomes `url` at once when the block ends without an error.

    Local files are synced and renamed into place; object stores publish an object when its upload is complete. Without
    `sync`, a loss of power may still damage the file, until `flush` is called.
    """
    fs, path = fsspec.url_to_fs(url)
    if _is_local(fs):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        part = Path(f"{path}.{uuid4().hex[:8]}.part")
    else:
        part = Path(tempfile.gettempdir(), f"sr-{uuid4().hex}.part")
    try:
        yield part
        put(part, url, sync)
    finally:
        part.unlink(missing_ok=True)


def put(part: Path, url: str, sync: bool = True) -> None:
    """Publish a finished local file as `url`; it is gone from where it was, or may be removed."""
    fs, path = fsspec.url_to_fs(url)
    if _is_local(fs):
        if sync:
            flush(str(part))
        part.replace(path)
    else:
        patiently(url, lambda: _upload(fs, part, path))


def _upload(fs: fsspec.AbstractFileSystem, part: Path, path: str) -> None:
    try:
        fs.put_file(str(part), path)
    except FileNotFoundError as error:
        if "NoSuchUpload" not in repr(error.__cause__):  # but NoSuchBucket
            raise
        raise ConnectionError(f"the store has dropped the upload ({error})") from error


def flush(url: str) -> None:
    """Have a local file's content written to its disk; object stores have done so."""
    fs, path = fsspec.url_to_fs(url)
    if _is_local(fs):
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def copy(file: Path, url: str) -> None:
    """Copy a local file to `url`, whole or not at all."""
    with create(url) as part:
        shutil.copyfile(file, part)


@contextmanager
def local_copy(url: str) -> Iterator[Path]:
    """The file at `url` as a local file: itself, or a copy that is removed afterwards.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    fs, path = fsspec.url_to_fs(url)
    if _is_local(fs):
        if not Path(path).is_file():
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="sr-") as folder:
        patiently(url, lambda: fs.get_file(path, f"{folder}/copy"))
        yield Path(folder, "copy")


def remove(folder: str) -> None:
    """Remove a folder and what is in it, if it exists."""
    fs, path = fsspec.url_to_fs(folder)
    with suppress(FileNotFoundError):
        patiently(folder, lambda: fs.rm(path, recursive=True))


def sweep(folder: str) -> None:
    """Remove what killed writers left in a local folder more than an hour ago."""
    fs, path = fsspec.url_to_fs(folder)
    if _is_local(fs):
        for part in Path(path).glob("*.part"):
            if time.time() - part.stat().st_mtime > 3600:
                part.unlink(missing_ok=True)


def read(url: str) -> bytes | None:
    """The file's content, or None if there is no such file."""
    fs, path = fsspec.url_to_fs(url)
    try:
        return patiently(url, lambda: bytes(fs.cat_file(path)))
    except FileNotFoundError:
        return None


def write_json(url: str, value: Any) -> None:
    """Write a JSON-like value, indented for people."""
    write(url, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(url: str) -> Any:
    """The value of a JSON file, or None if there is no such file."""
    content = read(url)
    return None if content is None else json.loads(content)


def exists(url: str) -> bool:
    """Whether there is such a file or folder."""
    fs, path = fsspec.url_to_fs(url)
    return patiently(url, lambda: bool(fs.exists(path)))


def size(url: str) -> int | None:
    """Pixels of a file, or None if there is no such file."""
    fs, path = fsspec.url_to_fs(url)
    try:
        return patiently(url, lambda: int(fs.info(path)["size"]))
    except FileNotFoundError:
        return None


def names(folder: str) -> list[str]:
    """Names in a folder, sorted; none if it doesn't exist."""
    fs, path = fsspec.url_to_fs(folder)
    try:
        entries = patiently(folder, lambda: list(fs.ls(path, detail=False)))
    except FileNotFoundError:
        return []
    paths = {entry.rstrip("/") for entry in entries} - {path.rstrip("/")}  # S3's consoles make an object of a folder
    return sorted(name for entry in paths if (name := entry.rsplit("/", 1)[-1]))


def sha256(file: Path) -> str:
    """Checksum of a local file, hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _is_local(fs: fsspec.AbstractFileSystem) -> bool:
    return "file" in fs.protocol


_FOR_GOOD = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, NotImplementedError, ValueError)
_FOR_GOOD_NAMED = re.compile("Credentials|Authentication|ParamValidation")
"""In the names of such classes of the object stores' clients."""


def _passing(error: BaseException) -> bool:
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    for_good = isinstance(error, _FOR_GOOD) or bool(_FOR_GOOD_NAMED.search(type(error).__name__))
    return isinstance(error, Exception) and not for_good and not full


_NUMBERS = {FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES}
"""Of errors that come without: an OSError of that number is of that class."""


def patiently(url: str, operation: Callable[[], T], final: tuple[type[Exception], ...] = ()) -> T:
    """Try an operation on a file or folder of an object store until it works, or patience ends.

    Args:
        url: what it works on.
        operation: what to do, perhaps several times.
        final: exceptions that are the operation's own and pass unchanged.

    Raises:
        OSError: naming the URL.
    """
    fs, _ = fsspec.url_to_fs(url)
    if _is_local(fs):
        return operation()
    fs.invalidate_cache()  # another process may have written since
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: _passing(error) and not isinstance(error, final)),
        stop=tenacity.stop_after_delay(_PATIENCE_S),
        wait=tenacity.wait_random_exponential(multiplier=0.2, max=10),
        reraise=True,
    )
    try:
        return retrying(operation)
    except final:
        raise
    except Exception as error:  # clients of object stores have exception classes of their own
        number = next((number for kind, number in _NUMBERS.items() if isinstance(error, kind)), errno.EIO)
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise OSError(getattr(error, "errno", None) or number, reason or type(error).__name__, url) from error
