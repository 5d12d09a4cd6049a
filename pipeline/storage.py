"""Files at any path or fsspec URL, written whole or not at all."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec


def write(url: str, content: bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part.

    Local files are synced and renamed into place; object stores publish an object when its upload is complete.
    """
    fs, path = fsspec.url_to_fs(url)
    if "file" not in fs.protocol:
        fs.pipe_file(path, content)
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    part = f"{path}.{uuid4().hex[:8]}.part"
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(part).replace(path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def read(url: str) -> bytes | None:
    """The file's content, or None if there is no such file."""
    try:
        content: bytes = _fs(url).cat_file(_path(url))
    except FileNotFoundError:
        return None
    return content


def write_json(url: str, value: Any) -> None:
    """Write a JSON-like value, indented for people."""
    write(url, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(url: str) -> Any:
    """The value of a JSON file, or None if there is no such file."""
    content = read(url)
    return None if content is None else json.loads(content)


def exists(url: str) -> bool:
    """Whether there is such a file or folder."""
    return bool(_fs(url).exists(_path(url)))


def names(folder: str) -> list[str]:
    """Names in a folder, sorted; none if it doesn't exist."""
    fs, path = fsspec.url_to_fs(folder)
    try:
        fs.invalidate_cache(path)
        return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in fs.ls(path, detail=False))
    except FileNotFoundError:
        return []


def plain_name(name: str) -> str:
    """A file's relative path as a name that any store and MLflow take."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


def _fs(url: str) -> fsspec.AbstractFileSystem:
    return fsspec.url_to_fs(url)[0]


def _path(url: str) -> str:
    return str(fsspec.url_to_fs(url)[1])
