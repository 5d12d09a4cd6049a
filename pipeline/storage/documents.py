"""JSON files: typed ones that are checked when they are read, and untyped ones."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from pipeline.storage import files

T = TypeVar("T")


class DamagedFileError(OSError):
    """A file of the pipeline does not hold what it should. The text is one sentence that names the file."""


def read_document(url: str, kind: type[T]) -> T | None:
    """Read a JSON file as a value of a type.

    Args:
        url: path or fsspec URL of the file.
        kind: a dataclass, a pydantic model or another type that pydantic can validate.

    Returns:
        The value, or None if there is no such file.

    Raises:
        DamagedFileError: if the file does not hold such a value.
    """
    content = files.read(url)
    return None if content is None else parse_document(content, kind, url)


def parse_document(content: bytes, kind: type[T], url: str) -> T:
    """Parse the content of a JSON file as `read_document` does; `url` is for the message alone.

    Raises:
        DamagedFileError: if the content is not a value of this type.
    """
    try:
        return TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        where = f" at {place}" if place else ""
        raise DamagedFileError(f"{url} is damaged{where}: {first['msg'].lower()}") from None


def write_document(url: str, value: Any) -> None:
    """Write a dataclass, a pydantic model or another value that pydantic can serialize as indented JSON."""
    files.write(url, TypeAdapter(type(value)).dump_json(value, indent=1) + b"\n")


def write_json(url: str, value: Any) -> None:
    """Write a value that the json module can serialize as indented JSON."""
    files.write(url, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(url: str) -> Any:
    """Return the value of a JSON file, or None if there is no such file.

    Raises:
        ValueError: if the file is not JSON.
    """
    content = files.read(url)
    return None if content is None else json.loads(content)
