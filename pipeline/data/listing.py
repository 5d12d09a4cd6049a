"""List the image files of folders, file systems and glob patterns, without opening them, and say what is left out."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any

import fsspec
from fsspec.utils import glob_translate

from pipeline import storage
from pipeline.data.images import EXTENSIONS
from pipeline.data.locations import FileLocation, Location
from pipeline.settings import UserError
from pipeline.settings.fields import absolute_path
from pipeline.storage import one_line, printable, unicode_name

_SYSTEM_NAMES = frozenset(
    {
        "__macosx", "@eadir", "@recycle", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "recycler",
        "system volume information", "lost+found", "thumbs",
    }
)  # fmt: skip
"""Lower-case names of the folders in which systems keep copies: thumbnails, trash and snapshots. Those whose names
begin with a dot, such as .ipynb_checkpoints, are hidden anyway."""
_VERSION_KEYS = ("ETag", "CRC", "mtime", "LastModified", "chksum")
"""Entries of a file's details that change with its content; the first one that is present is used."""
_NAMED = 3
"""Names that a summary lists for each reason."""
_NAMED_TYPES = 6
"""Types of files that a summary lists."""


@dataclass(frozen=True)
class SourceImage:
    """An image file that has not been opened yet."""

    name: str
    """Path within the source, with extension; unique within a listing."""
    location: Location
    """The place that its content is read from."""
    version: str
    """Size and modification time, ETag or checksum; it changes when the content changes."""
    bytes: int
    """Size of the file."""


class LeftOutKind(StrEnum):
    """Kind of reason for which a listing leaves something out; the text is for one of them and for several."""

    OTHER_TYPE = "file of another type|files of other types"
    SYSTEM = "hidden or system file or folder|hidden or system files and folders"
    LINKED_FOLDER = "linked folder, which is not followed|linked folders, which are not followed"
    UNUSABLE = "that cannot be used|that cannot be used"


@dataclass(frozen=True)
class LeftOut:
    """A file or folder of a source that is not used."""

    name: str
    """Path within the source."""
    kind: LeftOutKind
    detail: str = ""
    """The reason, if the kind does not say it; it completes a sentence that begins with the name."""


@dataclass(frozen=True)
class Listing:
    """The images of one source, and what else the source holds."""

    source: str
    """The source as it was named."""
    images: list[SourceImage]
    left_out: list[LeftOut]

    def summary(self) -> str:
        """Return one line that says how many images there are and what is left out."""
        left_out = describe_left_out(self.left_out)
        source = storage.redact(printable(self.source))
        return f"source {source}: {count(len(self.images), 'image')}{left_out and f'; left out: {left_out}'}"


def count(number: int, noun: str) -> str:
    """Return a number with a noun in the singular or plural."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def describe_left_out(left_out: Iterable[LeftOut]) -> str:
    """Return the number of files and folders for each reason, with some names; empty if nothing is left out."""
    by_kind: dict[LeftOutKind, list[LeftOut]] = {}
    for entry in left_out:
        by_kind.setdefault(entry.kind, []).append(entry)
    return ", ".join(_describe_kind(kind, by_kind[kind]) for kind in LeftOutKind if kind in by_kind)


def _describe_kind(kind: LeftOutKind, entries: list[LeftOut]) -> str:
    one, several = kind.value.split("|")
    if kind is LeftOutKind.OTHER_TYPE:
        types = Counter(PurePosixPath(entry.name).suffix.lower()[:12] or "no ending" for entry in entries)
        most = sorted(types.items(), key=lambda item: (-item[1], item[0]))[:_NAMED_TYPES]
        parts = [f"{printable(name)} {number}" for name, number in most]
        more = len(types) - len(parts)
    else:
        parts = [f"{printable(entry.name)} {entry.detail}".rstrip() for entry in entries[:_NAMED]]
        more = len(entries) - len(parts)
    if more:
        parts.append(f"and {more} more")
    return f"{len(entries)} {one if len(entries) == 1 else several} ({', '.join(parts)})"


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
        return storage.with_retries(location, lambda: _list(fs, path, source, extensions))
    except FileNotFoundError:
        raise UserError(
            f"source {printable(source)} does not exist, expected a folder, archive, file or glob pattern"
        ) from None
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"source {printable(source)} cannot be listed: {one_line(error)}") from None


def _list(fs: fsspec.AbstractFileSystem, path: str, source: str, extensions: tuple[str, ...]) -> Listing:
    local = storage.is_local(fs)
    root, pattern = _split_pattern(path, fs.exists)
    named_from = path if pattern is None else path.rpartition("/")[0]
    matches = re.compile(glob_translate(pattern)).match if pattern else None
    left_out: dict[LeftOut, None] = {}
    images = []

    def add(found: str, info: dict[str, Any]) -> None:
        reason = reason_to_leave_out(found, extensions)
        if reason:
            left_out[reason] = None
            return
        file = f"{root.rstrip('/')}/{found}"
        inside = file.startswith(f"{named_from}/")  # a glob pattern can match files in several folders
        name = file.removeprefix(f"{named_from}/") if inside else file
        images.append(describe(name, FileLocation(file if local else fs.unstrip_protocol(file)), info))

    if pattern is None:
        info = fs.info(root)
        if info["type"] == "file":
            name = root.rpartition("/")[2]
            if not name.lower().endswith(extensions):
                return Listing(source, [], [LeftOut(name, LeftOutKind.OTHER_TYPE)])
            location = FileLocation(root if local else fs.unstrip_protocol(root))
            return Listing(source, [describe(name, location, info)], [])
        if info["type"] != "directory":
            raise ValueError("it is neither a file nor a folder")
    depth = None if pattern is None or "**" in pattern.split("/") else pattern.count("/") + 1
    for found in _walk_local(root, depth, extensions) if local else _walk_remote(fs, root, depth):
        name = found.name if isinstance(found, LeftOut) else found[0]
        if matches and not matches(name):
            continue
        if isinstance(found, LeftOut):
            left_out[found] = None
        else:
            add(*found)
    images.sort(key=lambda image: image.name)
    return Listing(source, images, list(left_out))


def _split_pattern(path: str, exists: Callable[[str], bool]) -> tuple[str, str | None]:
    """Split a path into an existing folder and a glob pattern below it; the pattern is None if the path is no pattern.

    A part with a sign such as "*" is a name, not a pattern, if there is a file or folder of this name.
    """
    parts = path.split("/")
    for number, part in enumerate(parts):
        if any(sign in part for sign in "*?[") and not exists("/".join(parts[: number + 1])):
            return "/".join(parts[:number]) or "/", "/".join(parts[number:])
    return path, None


def _walk_local(
    root: str, depth: int | None, extensions: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, Any]] | LeftOut]:
    """Find the files below a local folder.

    Args:
        root: absolute path of the folder.
        depth: levels of folders to search; None for all.
        extensions: endings of images, without which nothing that is no file is worth a reason of its own.

    Yields:
        Path below the folder and details of each file, or what is left out because it is no file.
    """
    folders = [("", 1)]
    while folders:
        folder, level = folders.pop()
        try:
            entries = sorted(os.scandir(f"{root}/{folder}" if folder else root), key=lambda entry: entry.name)
        except OSError as error:
            if not folder:
                raise
            yield LeftOut(folder, LeftOutKind.UNUSABLE, f"cannot be listed: {error.strerror}")
            continue
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            try:
                if _is_system(entry.name):
                    yield LeftOut(name, LeftOutKind.SYSTEM)
                elif entry.is_dir(follow_symlinks=False):
                    if depth is None or level < depth:
                        folders.append((name, level + 1))
                elif entry.is_dir():
                    yield LeftOut(name, LeftOutKind.LINKED_FOLDER)
                elif entry.is_file():
                    details = entry.stat()
                    yield name, {"size": details.st_size, "mtime": details.st_mtime}
                elif name.lower().endswith(extensions):
                    what = "is a link to nothing" if entry.is_symlink() else "is no regular file"
                    yield LeftOut(name, LeftOutKind.UNUSABLE, what)
                else:
                    yield LeftOut(name, LeftOutKind.OTHER_TYPE)
            except FileNotFoundError:
                continue  # another process has removed it meanwhile
            except OSError as error:
                yield LeftOut(name, LeftOutKind.UNUSABLE, f"cannot be read: {error.strerror}")


def _walk_remote(
    fs: fsspec.AbstractFileSystem, root: str, depth: int | None
) -> Iterator[tuple[str, dict[str, Any]] | LeftOut]:
    """Find the files below a folder of any file system, as `_walk_local` does."""
    for path, info in sorted(fs.find(root, maxdepth=depth, detail=True).items()):
        if info["type"] == "file" and not path.endswith("/"):  # consoles store an object "FOLDER/" for a folder
            yield path.removeprefix(root.rstrip("/")).lstrip("/"), info


def reason_to_leave_out(path: str, extensions: tuple[str, ...] = EXTENSIONS) -> LeftOut | None:
    """Return what to leave out because of its name: a file, or the hidden folder that it is in.

    Args:
        path: path within the source.
        extensions: lower-case endings of images.

    Returns:
        None for a visible file with an image's extension.
    """
    parts = path.split("/")
    for number, part in enumerate(parts):
        if _is_system(part):
            return LeftOut("/".join(parts[: number + 1]), LeftOutKind.SYSTEM)
    return None if path.lower().endswith(extensions) else LeftOut(path, LeftOutKind.OTHER_TYPE)


def _is_system(name: str) -> bool:
    hidden = name.startswith(".") and name not in (".", "..")
    return hidden or name.lower() in _SYSTEM_NAMES


def describe(name: str, location: Location, info: dict[str, Any]) -> SourceImage:
    """Describe an image file.

    Args:
        name: its path within the source.
        location: the place that its content is read from.
        info: fsspec's details of the file, of which the size and one of `_VERSION_KEYS` are used.
    """
    version = next((info[key] for key in _VERSION_KEYS if info.get(key)), "")
    size = int(info["size"] or 0)
    return SourceImage(unicode_name(name), location, f"{size} {version}", size)
