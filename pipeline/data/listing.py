"""List the image files of folders, file systems and glob patterns, without opening them, and say what is left out."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
from fsspec.utils import glob_translate

from pipeline import storage
from pipeline.data.images import EXTENSIONS
from pipeline.data.left_out import (
    LeftOut,
    LeftOutKind,
    Leftovers,
    are_plain,
    count,
    describe_left_out,
    reason_to_leave_out,
)
from pipeline.data.locations import FileLocation, Location
from pipeline.data.source_images import SourceFiles, SourceImage, SourceImages
from pipeline.data.walks import File, walk_local, walk_store
from pipeline.settings import UserError
from pipeline.settings.fields import absolute_path
from pipeline.storage import one_line, printable, unicode_name

_VERSION_KEYS = (
    "ETag", "CRC", "mtime", "LastModified", "chksum", "etag", "md5Hash", "content_md5", "last_modified",
    "Last-Modified",
)  # fmt: skip
"""Entries of a file's details that change with its content; the first one that is present is used."""


@dataclass(frozen=True)
class Listing:
    """The images of one source, and what else the source holds."""

    source: str
    """The source as it was named."""
    images: Sequence[SourceImage]
    left_out: list[LeftOut]

    def summary(self) -> str:
        """Return one line that says how many images there are and what is left out."""
        left_out = describe_left_out(self.left_out)
        source = storage.redact(printable(self.source))
        return f"source {source}: {count(len(self.images), 'image')}{left_out and f'; left out: {left_out}'}"


def list_files(source: str, extensions: tuple[str, ...] = EXTENSIONS) -> Listing:
    """List the images of a folder (recursively), a glob pattern, or a single file, at a local path or fsspec URL.

    A source is a pattern only if no file or folder has this name. A link to a file counts as the file, and a link to a
    folder is not followed.

    Args:
        source: what to list.
        extensions: lower-case endings of the files that are taken for images.

    Raises:
        UserError: if the source does not exist or cannot be listed.
    """
    location = absolute_path(source)
    try:
        fs, path = storage.locate(location)
        return _list(fs, path, source, location, extensions)
    except FileNotFoundError:
        raise UserError(
            f"source {printable(source)} does not exist, expected a folder, archive, file or glob pattern"
        ) from None
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"source {printable(source)} cannot be listed: {one_line(error)}") from None


def _list(fs: fsspec.AbstractFileSystem, path: str, source: str, location: str, extensions: tuple[str, ...]) -> Listing:
    local = storage.is_local(fs)
    root, pattern = _split_pattern(path, lambda part: storage.with_retries(location, lambda: bool(fs.exists(part))))
    named_from = path if pattern is None else path.rpartition("/")[0]
    matches = re.compile(glob_translate(pattern)).match if pattern else None
    left_out = Leftovers()

    def place(file: str) -> FileLocation:
        return FileLocation(file if local else fs.unstrip_protocol(file))

    if pattern is None:
        info = storage.with_retries(location, lambda: fs.info(root))
        if info["type"] == "file":
            name = root.rpartition("/")[2]
            if not name.lower().endswith(extensions):
                return Listing(source, [], [LeftOut(name, LeftOutKind.OTHER_TYPE)])
            return Listing(source, [describe(name, place(root), info)], [])
        if info["type"] != "directory":
            raise ValueError("it is neither a file nor a folder")
    depth = None if pattern is None or "**" in pattern.split("/") else pattern.count("/") + 1

    def select(found: File | LeftOut) -> Iterator[SourceImage]:
        path = found.name if isinstance(found, LeftOut) else found[0]
        if matches and not matches(path):
            return
        if isinstance(found, LeftOut):
            left_out.add(found)
        elif reason := reason_to_leave_out(path, extensions):
            left_out.add(reason)
        else:
            file = f"{root.rstrip('/')}/{path}"
            inside = file.startswith(f"{named_from}/")  # a glob pattern can match files in several folders
            yield describe(file.removeprefix(f"{named_from}/") if inside else file, place(file), found[1])

    def images() -> Iterator[SourceImage | SourceFiles]:
        if local:
            for found in walk_local(root, depth, extensions):
                yield from select(found)
            return
        for several in walk_store(fs, location, root, depth):
            if isinstance(several, LeftOut):
                yield from select(several)
            elif several and not pattern and are_plain([name for name, _ in several], extensions):
                url = place(f"{root.rstrip('/')}/{several[0][0]}").url
                yield _describe_all(url.removesuffix(several[0][0]), several)
            else:
                yield from itertools.chain.from_iterable(map(select, several))

    listed = SourceImages.of(images()).sorted()
    entries = left_out.entries()
    return Listing(source, listed, entries if local else sorted(entries, key=lambda entry: entry.name))


def _split_pattern(path: str, exists: Callable[[str], bool]) -> tuple[str, str | None]:
    """Split a path into an existing folder and a glob pattern below it; the pattern is None if the path is no pattern.

    A part with a sign such as "*" is a name, not a pattern, if there is a file or folder of this name.
    """
    parts = path.split("/")
    for number, part in enumerate(parts):
        if any(sign in part for sign in "*?[") and not exists("/".join(parts[: number + 1])):
            return "/".join(parts[:number]) or "/", "/".join(parts[number:])
    return path, None


def describe(name: str, location: Location, info: dict[str, Any]) -> SourceImage:
    """Describe an image file.

    Args:
        name: its path within the source.
        location: the place that its content is read from.
        info: fsspec's details of the file, of which the size and one of `_VERSION_KEYS` are used.
    """
    return SourceImage(unicode_name(name), location, _version(info), int(info["size"] or 0))


def _describe_all(prefix: str, files: Sequence[File]) -> SourceFiles:
    """Describe files as `describe` does, whose URLs begin with a prefix and end with their names."""
    infos = [info for _, info in files]
    sizes = [int(info["size"] or 0) for info in infos]
    return SourceFiles(prefix, [name for name, _ in files], [_version(info) for info in infos], sizes)


def _version(info: dict[str, Any]) -> str:
    size = int(info["size"] or 0)
    for key in _VERSION_KEYS:
        if info.get(key):
            return f"{size} {info[key]}"
    return f"{size} "
