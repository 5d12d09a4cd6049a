"""List the image files of folders, file systems and glob patterns, without opening them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from pipeline import storage
from pipeline.data.images import EXTENSIONS
from pipeline.settings import UserError
from pipeline.storage import one_line

_VERSION_KEYS = ("ETag", "CRC", "mtime", "LastModified", "chksum")
"""Entries of a file's details that change with its content; the first one that is present is used."""


@dataclass(frozen=True)
class SourceImage:
    """An image file that has not been opened yet."""

    name: str
    """Path within the source, with extension; unique within a listing."""
    url: str
    """Absolute path, fsspec URL, builtin://NAME, zip://MEMBER::ARCHIVE or tar://MEMBER::ARCHIVE."""
    version: str
    """Size and modification time, ETag or checksum; it changes when the content changes."""
    bytes: int
    """Size of the file."""


def list_files(source: str) -> list[SourceImage]:
    """List the images of a folder (recursively), a glob pattern, or a single file, at a local path or fsspec URL.

    Raises:
        UserError: if the source does not exist or cannot be listed.
    """
    location = absolute(source)
    fs, path = fsspec.url_to_fs(location)

    def find() -> tuple[str, dict[str, dict[str, Any]]]:
        if any(sign in source for sign in "*?["):
            return str(PurePosixPath(path).parent), fs.glob(path, detail=True)
        info = fs.info(path)
        if info["type"] == "file":
            return str(PurePosixPath(path).parent), {path: info}
        return path, fs.find(path, detail=True)

    try:
        root, details = storage.with_retries(location, find)
    except FileNotFoundError:
        raise UserError(f"source {source} does not exist, expected a folder, archive, file or glob pattern") from None
    except (OSError, ValueError) as error:
        raise UserError(f"source {source} cannot be listed: {one_line(error)}") from None
    local = "file" in fs.protocol
    return [
        describe(path, path if local else fs.unstrip_protocol(path), info, root) for path, info in images_among(details)
    ]


def absolute(source: str) -> str:
    """Return the absolute form of a local path; URLs stay as they are."""
    return source if "://" in source else str(Path(source).expanduser().absolute())


def images_among(details: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Select the visible files with an image's extension from fsspec's details, sorted by path."""
    for path, info in sorted(details.items()):
        hidden = PurePosixPath(path).name.startswith(".")
        if info["type"] == "file" and path.lower().endswith(EXTENSIONS) and not hidden:
            yield path, info


def describe(path: str, url: str, info: dict[str, Any], root: str = "") -> SourceImage:
    """Describe an image file by fsspec's details.

    Args:
        path: its path in the file system.
        url: where its content is read from.
        info: fsspec's details of the file.
        root: folder that its name is relative to.
    """
    version = next((info[key] for key in _VERSION_KEYS if info.get(key)), "")
    try:
        name = str(PurePosixPath(path).relative_to(root))
    except ValueError:  # a glob pattern can match files in several folders
        name = path
    size = int(info["size"] or 0)
    return SourceImage(name, url, f"{size} {version}", size)
