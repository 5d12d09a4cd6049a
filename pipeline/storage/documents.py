"""JSON files that hold one typed value each, checked when they are read."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from pipeline.storage import files

T = TypeVar("T")


class DamagedFileError(OSError):
    """A file that the pipeline wrote does not hold what it should; the text is one sentence that names the file."""


def read_document(url: str, kind: type[T]) -> T | None:
    """Read a JSON file as a dataclass, pydantic model or other annotated type.

    Args:
        url: path or fsspec URL of the file.
        kind: the type of its value.

    Returns:
        The value, or None if there is no such file.

    Raises:
        DamagedFileError: if the file does not hold such a value.
    """
    content = files.read(url)
    return None if content is None else parse_document(content, kind, url)


def parse_document(content: bytes, kind: type[T], url: str) -> T:
    """Parse the content of a JSON file as `read_document` does.

    Raises:
        DamagedFileError: if it does not hold a value of this type.
    """
    try:
        return TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        where = f" at {place}" if place else ""
        raise DamagedFileError(f"{url} is damaged{where}: {first['msg'].lower()}") from None


def write_document(url: str, value: Any) -> None:
    """Write a dataclass, pydantic model or other annotated value as JSON, indented for people."""
    files.write(url, TypeAdapter(type(value)).dump_json(value, indent=1) + b"\n")
