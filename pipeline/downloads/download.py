"""Downloads of large files into a cache: resumed after an interruption, and verified before they are used."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import tenacity
from filelock import FileLock

from pipeline import terminal
from pipeline.storage import documents, files, fingerprint, is_url, private_folder, redact

if TYPE_CHECKING:
    import requests

_ATTEMPTS = 6
"""Number of attempts in a row without new bytes after which a download fails."""
_TEMPORARY_STATUSES = {408, 425, 429, 500, 502, 503, 504}


class DownloadError(OSError):
    """A download failed. The text is one sentence."""


@dataclass(frozen=True)
class _CachedFile:
    """Note beside a finished file in the cache."""

    url: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _PartialFile:
    """Note beside an unfinished file."""

    etag: str | None = None
    """Validator of the version that its bytes belong to; None if the download cannot be resumed."""


def fetch(
    url: str,
    cache: str,
    size: int | None = None,
    sha256: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Download a file into the cache unless it is there already.

    A download resumes after a broken connection, in this call or a later one. Temporary server errors are retried with
    growing pauses. A file gets its name in the cache only when it is complete. A note beside it holds its size and
    SHA-256.

    Args:
        url: address of the file, http or https.
        cache: folder, a local path or any fsspec URL, that processes may share.
        size: expected size in bytes, if known.
        sha256: expected SHA-256 in hexadecimal, if known.
        sleep: called with the seconds to wait between two attempts.

    Returns:
        Path or URL of the file in the cache.

    Raises:
        DownloadError: if the server does not have the file, cannot be reached, or sends something else than expected.
        OSError: if the file cannot be stored.
    """
    name = re.sub(r"[^A-Za-z0-9._-]", "_", PurePosixPath(unquote(urlsplit(url).path)).name) or "file"
    name = f"{fingerprint(url)}-{name}"
    target = f"{cache}/{name}"
    # An unfinished file is always local: in the cache itself, or in one folder for all remote caches.
    if not _is_cached(target, size, sha256):
        if is_url(cache):
            folder = private_folder("sr-downloads")
        else:
            folder = Path(cache)
            folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock"):
            if not _is_cached(target, size, sha256):  # another process may have finished it meanwhile
                part = folder / f"{name}.part"
                checksum = _download(url, part, size, sha256, sleep)
                note = _CachedFile(redact(url), part.stat().st_size, checksum)
                files.put(part, target)
                documents.write_document(f"{target}.json", note)
                part.unlink(missing_ok=True)
    return target


def recorded_sha256(file: str) -> str | None:
    """Return the SHA-256 of a file in the cache, in hexadecimal, from the note beside it; None without a note."""
    note = documents.read_expendable(f"{file}.json", _CachedFile)
    return note.sha256 if note else None


def discard(file: str) -> None:
    """Remove a file from the cache, so that it is downloaded again."""
    files.remove(f"{file}.json")
    files.remove(file)


def _is_cached(target: str, size: int | None, sha256: str | None) -> bool:
    """Tell whether the cache has the file, by its size and its note; the SHA-256 is not computed again."""
    note = documents.read_expendable(f"{target}.json", _CachedFile)
    if note is None or files.size(target) != note.bytes:
        return False
    return size in (None, note.bytes) and sha256 in (None, note.sha256)


def _download(url: str, part: Path, size: int | None, sha256: str | None, sleep: Callable[[float], None]) -> str:
    """Complete the file `part` and return its SHA-256."""
    for _ in range(2):  # once more from the start if the file was damaged on the way
        while not _receive_with_retries(url, part, sleep):
            pass
        found = files.sha256(part)
        received = part.stat().st_size
        if size in (None, received) and sha256 in (None, found):
            return found
        part.unlink()
    raise DownloadError(
        f"{url} gave {received} bytes with SHA-256 {found}, expected {size or received} bytes with {sha256 or found}"
    )


class _TemporaryError(Exception):
    """An attempt brought no new bytes; a later one may."""


def _receive_with_retries(url: str, part: Path, sleep: Callable[[float], None]) -> bool:
    """Repeat `_receive` while it brings no new bytes.

    Raises:
        DownloadError: after `_ATTEMPTS` attempts.
    """
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(_TemporaryError),
        stop=tenacity.stop_after_attempt(_ATTEMPTS),
        wait=tenacity.wait_random_exponential(multiplier=0.5, max=30),
        sleep=sleep,
        reraise=True,
    )
    try:
        return retrying(_receive, url, part)
    except _TemporaryError as error:
        raise DownloadError(
            f"{url} cannot be downloaded: {error}, {_ATTEMPTS} times in a row; expected a server that sends the file. "
            f"The part received so far is in {part.parent}: rerun the same command to resume"
        ) from None


def _receive(url: str, part: Path) -> bool:
    """Request the missing bytes once, and append them to `part`.

    Returns:
        True if the file is complete, False if it only grew.

    Raises:
        _TemporaryError: if the attempt brought no new bytes.
        DownloadError: if the server does not have the file.
        OSError: if the bytes cannot be stored.
    """
    import requests  # here, because most commands download nothing

    size_before = have = part.stat().st_size if part.exists() else 0
    version = documents.read_expendable(f"{part}.json", _PartialFile) or _PartialFile()
    if have and not version.etag:  # nothing ensures that the rest would belong to the same version
        have = 0
    headers = {"Accept-Encoding": "identity"}
    if have and version.etag:
        headers |= {"Range": f"bytes={have}-", "If-Range": version.etag}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=(10, 60)) as response:
            if response.status_code in _TEMPORARY_STATUSES:
                raise _TemporaryError(f"the server answers {response.status_code} {response.reason}")
            sent = response.headers.get("Content-Range", "")
            if have and response.status_code == 416 and sent == f"bytes */{have}":
                return True
            changed = response.status_code == 206 and _strong_etag(response) not in (None, version.etag)
            if have and (response.status_code == 416 or changed):
                # The part stays, because the next attempt must exceed its size to count as progress.
                documents.write_document(f"{part}.json", _PartialFile())
                raise _TemporaryError("the file has changed on the server")
            if response.status_code >= 400:
                raise DownloadError(f"{url} answers {response.status_code} {response.reason}, expected a file")
            if response.status_code == 206 and not (have and sent.startswith(f"bytes {have}-")):
                raise _TemporaryError("the server sends another part than was asked for")
            if response.status_code != 206:
                have = 0
                part.unlink(missing_ok=True)  # before its note changes, which must never describe another version
                documents.write_document(f"{part}.json", _PartialFile(_strong_etag(response)))
            return _store(response, part, have, size_before)
    except requests.RequestException as error:
        raise _TemporaryError(f"no answer ({type(error).__name__})") from None
    except DownloadError:
        raise
    except OSError as error:  # such as a full disk; its own text does not name the file
        raise OSError(error.errno, error.strerror, error.filename or str(part)) from None


def _store(response: requests.Response, part: Path, have: int, size_before: int) -> bool:
    """Write the body of a response to `part` from byte `have` on; returns and raises as `_receive` does."""
    import urllib3  # here, as requests

    length, content_range = response.headers.get("Content-Length"), response.headers.get("Content-Range", "")
    total = int(length) if length is not None else None
    if response.status_code == 206:
        size = content_range.rpartition("/")[2]
        total = int(size) if size.isdigit() else None if total is None else have + total
    reason = ""
    name = part.stem.partition("-")[2]  # without the fingerprint of the address
    with (
        part.open("r+b" if have else "wb") as file,
        terminal.stage(f"download {name}", "the first bytes are awaited", unit="MB") as shown,
    ):
        file.seek(have)
        if total:
            shown.begin_at(have / 1e6, total / 1e6)
        try:
            # read1 returns the bytes that have arrived; requests would lose the last chunk of a broken connection.
            while chunk := response.raw.read1(1 << 20):
                file.write(chunk)
                have += len(chunk)
                if total:
                    shown.update(have / 1e6)
                else:
                    shown.update(message=f"{have / 1e6:.1f} MB")
        except urllib3.exceptions.HTTPError as error:
            reason = f"the connection broke ({type(error).__name__})"
    now = part.stat().st_size
    if not reason and total in (None, now):
        return True
    if now > size_before:
        return False
    raise _TemporaryError(reason or f"{now} of {total} bytes came")


def _strong_etag(response: requests.Response) -> str | None:
    """Return the validator with which parts of the same version can be requested (RFC 9110, section 13.1.5)."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")
