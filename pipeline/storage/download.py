"""Large files from the web: fetched once into a cache, resumed where they broke off, checked before they count."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import requests
import tenacity
import urllib3
from filelock import FileLock
from tqdm import tqdm

from pipeline.storage import files
from pipeline.storage.names import fingerprint

_ATTEMPTS = 6
"""Attempts in a row that bring nothing new, before a download is given up."""
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}


def fetch(url: str, cache: str, size: int | None = None, sha256: str | None = None) -> str:
    """Download a file, or find it in the cache.

    A broken connection is taken up again where it broke off, also by a later call; passing troubles of the server are
    waited out with growing pauses. Only a whole file gets its name in the cache. Where no checksum is known, that of
    the first download is kept beside it.

    Args:
        url: http or https.
        cache: folder, local or any fsspec URL, that processes may share.
        size: bytes, if known.
        sha256: hexadecimal, if known.

    Returns:
        Path or URL of the file in the cache.

    Raises:
        DownloadError: if the server has no such file or cannot be reached, or if what it sends isn't what was expected.
        OSError: if the file cannot be stored.
    """
    name = re.sub(r"[^A-Za-z0-9._-]", "_", PurePosixPath(unquote(urlsplit(url).path)).name) or "file"
    name = f"{fingerprint(url)}-{name}"
    target = f"{cache}/{name}"
    # An unfinished file is local: in the cache itself, or in a folder that serves all remote caches.
    workplace = Path(tempfile.gettempdir(), f"sr-downloads-{os.getuid()}") if "://" in cache else Path(cache)
    if not _known(target, size, sha256):
        workplace.mkdir(parents=True, exist_ok=True)
        with FileLock(workplace / f"{name}.lock"):
            if not _known(target, size, sha256):  # by now, through another process
                part = workplace / f"{name}.part"
                found = _download(url, part, size, sha256)
                note = {"url": url, "bytes": part.stat().st_size, "sha256": found}
                files.put(part, target)
                files.write_json(f"{target}.json", note)
                part.unlink(missing_ok=True)
    return target


def _known(target: str, size: int | None, sha256: str | None) -> bool:
    """Whether the cache has the file, by its size and its note; the checksum was taken when it was downloaded."""
    note = files.read_json(f"{target}.json")
    if note is None or files.size(target) != note["bytes"]:
        return False
    return bool(size in (None, note["bytes"]) and sha256 in (None, note["sha256"]))


def _download(url: str, part: Path, size: int | None, sha256: str | None) -> str:
    """Make `part` the whole file; returns its SHA-256."""
    for _ in range(2):  # damaged on the way: once more from the start
        while not _receive(url, part):
            pass
        found = files.sha256(part)
        received = part.stat().st_size
        if size in (None, received) and sha256 in (None, found):
            return found
        part.unlink()
    raise DownloadError(
        f"{url} gave {received} bytes with SHA-256 {found}, expected {size or received} bytes with {sha256 or found}"
    )


class DownloadError(OSError):
    """A download failed; the text is one sentence."""


class _PassingError(Exception):
    """An attempt that brought nothing, and may bring something later."""


def _give_up(state: tenacity.RetryCallState) -> bool:
    assert state.outcome is not None
    url, part = state.args
    raise DownloadError(
        f"{url} cannot be downloaded: {state.outcome.exception()}, {_ATTEMPTS} times in a row; expected a server that "
        f"sends the file. What has arrived is kept in {part.parent}: run the same command again to go on"
    )


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(_PassingError),
    stop=tenacity.stop_after_attempt(_ATTEMPTS),
    wait=tenacity.wait_random_exponential(multiplier=0.5, max=30),
    retry_error_callback=_give_up,
)
def _receive(url: str, part: Path) -> bool:
    """Get what is missing in one request; whether the file is complete. False if it only grew."""
    before = have = part.stat().st_size if part.exists() else 0
    version = files.read_json(f"{part}.json") or {}
    if have and not version.get("etag"):  # nothing says that the rest would be of the same file
        have = 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": version["etag"]}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=(10, 60)) as answer:
            if answer.status_code in _TRANSIENT:
                raise _PassingError(f"the server answers {answer.status_code} {answer.reason}")
            sent = answer.headers.get("Content-Range", "")
            if have and answer.status_code == 416 and sent == f"bytes */{have}":
                return True
            changed = answer.status_code == 206 and _strong_etag(answer) not in (None, version.get("etag"))
            if have and (answer.status_code == 416 or changed):
                # What there is stays as the mark that the next attempt must pass, or this could go on for ever.
                files.write_json(f"{part}.json", {})
                raise _PassingError("the file is another than before")
            if answer.status_code >= 400:
                raise DownloadError(f"{url} answers {answer.status_code} {answer.reason}, expected a file")
            if answer.status_code == 206 and not (have and sent.startswith(f"bytes {have}-")):
                raise _PassingError("the server sends another part than was asked for")
            if answer.status_code != 206:
                have = 0
                part.unlink(missing_ok=True)  # before the note, which must never be of another version
                files.write_json(f"{part}.json", {"etag": _strong_etag(answer)})
            return _store(answer, part, have, before)
    except requests.RequestException as error:
        raise _PassingError(f"no answer ({type(error).__name__})") from None
    except DownloadError:
        raise
    except OSError as error:  # a full disk, whose own text doesn't name the file
        raise OSError(error.errno, error.strerror, error.filename or str(part)) from None


def _store(answer: requests.Response, part: Path, have: int, before: int) -> bool:
    length, content_range = answer.headers.get("Content-Length"), answer.headers.get("Content-Range", "")
    total = int(length) if length is not None else None
    if answer.status_code == 206:
        size = content_range.rpartition("/")[2]
        total = int(size) if size.isdigit() else None if total is None else have + total
    reason = ""
    with (
        part.open("r+b" if have else "wb") as file,
        tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem, mininterval=2) as bar,
    ):
        file.seek(have)
        try:
            # What has come so far, each time: requests would drop the last chunk of a connection that breaks.
            while chunk := answer.raw.read1(1 << 20):
                file.write(chunk)
                bar.update(len(chunk))
        except urllib3.exceptions.HTTPError as error:
            reason = f"the connection broke ({type(error).__name__})"
    now = part.stat().st_size
    if not reason and total in (None, now):
        return True
    if now > before:
        return False
    raise _PassingError(reason or f"{now} of {total} bytes came")


def _strong_etag(answer: requests.Response) -> str | None:
    """The answer's validator, if a part of the same version can be asked for by it (RFC 9110, section 13.1.5)."""
    etag = answer.headers.get("ETag", "")
    return etag if etag.startswith('"') else answer.headers.get("Last-Modified")
