"""The journal of an output folder: which file was made of which image, so that a rerun skips what is done."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from pydantic import TypeAdapter, ValidationError

from pipeline import storage

NAME = ".upscaled.jsonl"
"""Name of the journal; listings of images leave out hidden files."""

_UPLOAD_EVERY_S = 30.0
"""Seconds between two uploads of a journal to an object store."""


class Journal:
    """The files that earlier commands have made in a folder, and those that this one makes.

    A damaged line counts as missing, so that its image is made again.

    Args:
        folder: path or URL of the folder, which need not exist.
    """

    def __init__(self, folder: str) -> None:
        self._url = f"{folder.rstrip('/')}/{NAME}"
        self._sizes = _sizes_below(folder)
        self._made: dict[str, tuple[str, int | None]] = {}  # without a size, the file was begun
        self._file: IO[bytes] | None = None
        self._uploaded = time.monotonic()
        line = TypeAdapter(tuple[str, str, int | None])
        for stored in (storage.read(self._url) or b"").splitlines():
            try:
                name, identity, size = line.validate_json(stored)
            except ValidationError:
                continue
            self._made[name] = identity, size

    def is_done(self, name: str, identity: str) -> bool:
        """Tell whether a file is there, was made of the same, and has had its size since then.

        Args:
            name: its path in the folder.
            identity: stands for everything that the file's content depends on.
        """
        return name in self._sizes and self._made.get(name) == (identity, self._sizes[name])

    def results(self) -> set[str]:
        """Return the paths of the files in the folder that were begun, or made with the sizes that they have.

        A command that was killed may have finished a file without noting its size.
        """
        return {
            name for name, (_, size) in self._made.items() if name in self._sizes and size in (None, self._sizes[name])
        }

    def begin(self, files: Iterable[tuple[str, str]]) -> None:
        """Note the names and identities of files, before they are made."""
        lines = []
        for name, identity in files:
            self._made[name] = identity, None
            lines.append(_line(name, identity, None))
        if storage.is_url(self._url):
            self.close()
        elif lines:
            Path(self._url).parent.mkdir(parents=True, exist_ok=True)
            self._append(b"".join(lines))

    def add(self, name: str, identity: str, size: int) -> None:
        """Note that a file was made; `size` is its size in bytes."""
        self._made[name] = identity, size
        if storage.is_url(self._url):
            if time.monotonic() - self._uploaded > _UPLOAD_EVERY_S:
                self.close()
        else:
            self._append(_line(name, identity, size))

    def close(self) -> None:
        """Write what is left to write."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if storage.is_url(self._url) and self._made:
            storage.write(self._url, b"".join(_line(name, *made) for name, made in self._made.items()))
            self._uploaded = time.monotonic()

    def _append(self, lines: bytes) -> None:
        if self._file is None:
            self._file = Path(self._url).open("ab", buffering=0)  # noqa: SIM115
            self._file.write(b"\n")  # ends a line that a killed command may have left unfinished
        self._file.write(lines)


def _line(name: str, identity: str, size: int | None) -> bytes:
    return json.dumps([name, identity, size], ensure_ascii=False).encode() + b"\n"


def _sizes_below(folder: str) -> dict[str, int]:
    """Return the sizes of all files below a folder by their path in it; empty if there is no such folder."""
    fs, path = storage.locate(folder)
    try:
        found = storage.with_retries(folder, lambda: dict(fs.find(path, detail=True)))
    except FileNotFoundError:
        return {}
    root = path.rstrip("/")
    return {
        storage.unicode_name(place.removeprefix(root).lstrip("/")): int(info["size"] or 0)
        for place, info in found.items()
        if info["type"] == "file"
    }
