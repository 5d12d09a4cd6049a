"""The files and folders of a source that are not used, and the reasons."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import PurePosixPath

from pipeline.data.images import EXTENSIONS
from pipeline.storage import printable, unicode_name

_SYSTEM_NAMES = frozenset(
    {
        "__macosx", "@eadir", "@recycle", "@tmp", "#recycle", "#snapshot", "$recycle.bin", "recycler",
        "system volume information", "lost+found", "thumbs",
    }
)  # fmt: skip
"""Lower-case names of the folders in which systems keep copies: thumbnails, trash and snapshots. Those whose names
begin with a dot, such as .ipynb_checkpoints, are hidden anyway."""
_SUSPICIOUS = re.compile(r"(?:^|[/\n])(?:\.|" + "|".join(map(re.escape, _SYSTEM_NAMES)) + ")", re.IGNORECASE)
"""The beginning of a name that may be hidden or a system's own."""
_NAMED = 3
"""Names that a summary lists for each reason."""
_NAMED_TYPES = 6
"""Types of files that a summary lists."""


class LeftOutKind(StrEnum):
    """Kind of reason for which a listing leaves something out; the text is for one of them and for several."""

    OTHER_TYPE = "file of another type|files of other types"
    SYSTEM = "hidden or system file or folder|hidden or system files and folders"
    LINKED_FOLDER = "linked folder, which is not followed|linked folders, which are not followed"
    UNUSABLE = "that cannot be used|that cannot be used"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file or folder of a source that is not used, or several files of one type."""

    name: str
    """Path within the source; the first in order, if there are several files."""
    kind: LeftOutKind
    detail: str = ""
    """The reason, if the kind does not say it; it completes a sentence that begins with the name."""
    count: int = 1


class Leftovers:
    """Collects what is left out: everything once, and files of other types as one entry for each type.

    A source can have more texts than images, so these are counted and not kept.
    """

    def __init__(self, entries: Iterable[LeftOut] = ()) -> None:
        self._single: dict[LeftOut, None] = {}
        self._first: dict[str, LeftOut] = {}
        self._types: Counter[str] = Counter()
        for entry in entries:
            self.add(entry)

    def add(self, entry: LeftOut) -> None:
        """Add what is left out."""
        if entry.kind is LeftOutKind.OTHER_TYPE:
            first = self._first.setdefault(_type(entry), entry)
            if entry.name < first.name:
                self._first[_type(entry)] = entry
            self._types[_type(entry)] += entry.count
        else:
            self._single[entry] = None

    def entries(self) -> list[LeftOut]:
        """Return everything that was added: types of files last, and the rest as it came."""
        types = [replace(self._first[name], count=number) for name, number in self._types.items()]
        return [*self._single, *sorted(types, key=lambda entry: entry.name)]


def _type(entry: LeftOut) -> str:
    return PurePosixPath(entry.name).suffix.lower()[:12] or "no ending"


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
    number = sum(entry.count for entry in entries)
    if kind is LeftOutKind.OTHER_TYPE:
        types: Counter[str] = Counter()
        for entry in entries:
            types[_type(entry)] += entry.count
        most = sorted(types.items(), key=lambda item: (-item[1], item[0]))[:_NAMED_TYPES]
        parts = [f"{printable(name)} {files}" for name, files in most]
        more = len(types) - len(parts)
    else:
        parts = [f"{printable(entry.name)} {entry.detail}".rstrip() for entry in entries[:_NAMED]]
        more = len(entries) - len(parts)
    if more:
        parts.append(f"and {more} more")
    return f"{number} {one if number == 1 else several} ({', '.join(parts)})"


def reason_to_leave_out(path: str, extensions: tuple[str, ...] = EXTENSIONS) -> LeftOut | None:
    """Return what to leave out because of its name: a file, or the hidden folder that it is in.

    Args:
        path: path within the source.
        extensions: lower-case endings of images.

    Returns:
        None for a visible file with an image's extension.
    """
    if _SUSPICIOUS.search(path):
        parts = path.split("/")
        for number, part in enumerate(parts):
            if is_system(part):
                return LeftOut("/".join(parts[: number + 1]), LeftOutKind.SYSTEM)
    return None if path.lower().endswith(extensions) else LeftOut(path, LeftOutKind.OTHER_TYPE)


def are_plain(paths: Sequence[str], extensions: tuple[str, ...]) -> bool:
    """Tell whether `reason_to_leave_out` is None for all paths, which this finds much faster; False may be wrong."""
    text = "\n".join(paths)
    if _SUSPICIOUS.search(text) or unicode_name(text) != text:
        return False
    endings = text.lower().split("\n")
    return len(endings) == len(paths) and all(path.endswith(extensions) for path in endings)


def is_system(name: str) -> bool:
    """Tell whether a file or folder of this name, without its path, is hidden or a system's own."""
    hidden = name.startswith(".") and name not in (".", "..")
    return hidden or name.lower() in _SYSTEM_NAMES
