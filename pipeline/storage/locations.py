"""Tell paths from URLs, and find the file system that holds a file."""

from __future__ import annotations

import os
import re
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, cast

import fsspec
from fsspec.core import split_protocol
from fsspec.implementations.local import LocalFileSystem

fsspec.config.conf.setdefault("s3", {}).setdefault("config_kwargs", {"max_pool_connections": 64})
"""Requests to S3 that a process makes at the same time; the default of botocore is 10."""
_SCHEME = "[A-Za-z][A-Za-z0-9+.-]*"
_URL = re.compile(f"(?P<chain>(?:{_SCHEME}::)*){_SCHEME}://")


def is_url(text: str) -> bool:
    """Tell whether a text begins with the scheme of a URL, such as "s3://"; any other text is a local path."""
    return _URL.match(text) is not None


def locate(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a local path or fsspec URL, and the path in it.

    No character of the path has a meaning of its own: `::`, `*`, `?`, `[`, `%` and `#` can be part of a file's name.
    Only a URL that begins with several schemes, such as "simplecache::s3://", chains file systems.

    Args:
        url: a local path or an fsspec URL.

    Raises:
        ValueError: if no file system has this scheme.
        ImportError: if the package of this file system is not installed.
    """
    match = _URL.match(url)
    if match is None:
        path = url if url.startswith("/") else f"{Path.cwd()}/{url}"
        return LocalFileSystem(), path.rstrip("/") or "/"
    if match["chain"]:
        fs, path = fsspec.url_to_fs(url)
        return fs, path
    protocol, _ = split_protocol(url)
    kind = fsspec.get_filesystem_class(protocol)
    if protocol in ("s3", "s3a"):
        _parse_times_fast()
    return fsspec.filesystem(protocol, **kind._get_kwargs_from_urls(url)), kind._strip_protocol(url)


@cache
def _parse_times_fast() -> None:
    """Let S3's client parse times by the standard library, because four fifths of a listing's CPU time went there."""
    from botocore import parsers
    from botocore.utils import parse_timestamp

    def parse(text: Any) -> datetime:
        try:
            parsed = datetime.fromisoformat(text)
        except (TypeError, ValueError):  # another form, as in the headers of HTTP
            return cast(datetime, parse_timestamp(text))
        return parsed if parsed.tzinfo else cast(datetime, parse_timestamp(text))

    parsers.DEFAULT_TIMESTAMP_PARSER = parse


def real_name(place: str) -> str:
    """Return the one name of a file or folder that links, ".." or other forms of its URL may name as well.

    Args:
        place: a local path or fsspec URL, as for `locate`, with the same errors.
    """
    fs, path = locate(place)
    url = str(fs.unstrip_protocol(path))
    if url.startswith("file://"):
        return os.path.realpath(url.removeprefix("file://"))
    return f"{fs.storage_options.get('host', '')} {url}"  # some file systems leave the host out of the path
