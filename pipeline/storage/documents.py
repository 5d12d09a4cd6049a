"""JSON files that are checked against a type when they are read."""

from __future__ import annotations

import sys
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from pipeline.storage import files
from pipeline.storage.texts import one_line

T = TypeVar("T")

DELETE_AND_RERUN = "delete it and rerun the command, which makes it again"
"""Remedy for a damaged file that the same command writes."""

_reported: set[str] = set()
"""Messages of `report_once` that were printed."""


class DamagedFileError(OSError):
    """A file of the pipeline does not hold what it should. The text is one sentence: the file and what to do."""


def read_document(url: str, kind: type[T], remedy: str = DELETE_AND_RERUN) -> T | None:
    """Read a JSON file as a value of a type.

    Args:
        url: path or fsspec URL of the file.
        kind: a dataclass, a pydantic model or another type that pydantic can validate.
        remedy: what the user can do if the file is damaged; the end of the error's sentence.

    Returns:
        The value, or None if there is no such file.

    Raises:
        DamagedFileError: if the file does not hold such a value.
    """
    content = files.read(url)
    return None if content is None else parse_document(content, kind, url, remedy)


def read_expendable(url: str, kind: type[T], consequence: str = "") -> T | None:
    """Read a JSON file that can be made again; a damaged one counts as missing.

    Args:
        url: path or fsspec URL of the file.
        kind: as for `read_document`.
        consequence: what happens because a damaged file counts as missing. It is printed to stderr after the damage;
            nothing is printed if it is empty.
    """
    try:
        return read_document(url, kind, consequence)
    except DamagedFileError as error:
        if consequence:
            report_once(str(error))
        return None


def parse_document(content: bytes, kind: type[T], url: str, remedy: str = DELETE_AND_RERUN) -> T:
    """Parse the content of a JSON file as `read_document` does; `url` is for the message alone.

    Raises:
        DamagedFileError: if the content is not a value of this type.
    """
    try:
        return TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = one_line(".".join(str(part) for part in first["loc"]), 100)
        where = f" at {place}" if place else ""
        reason = one_line(first["msg"].lower(), 200)
        raise DamagedFileError(f"{url} is damaged{where}: {reason}{remedy and f'; {remedy}'}") from None


def report_once(message: str) -> None:
    """Print a sentence to stderr, unless this process has printed it before."""
    if message not in _reported:
        _reported.add(message)
        print(message, file=sys.stderr, flush=True)


def write_document(url: str, value: Any) -> None:
    """Write a dataclass, a pydantic model or another value that pydantic can serialize as indented JSON."""
    files.write(url, TypeAdapter(type(value)).dump_json(value, indent=1) + b"\n")
