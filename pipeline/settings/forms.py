"""Words for what a setting accepts, for messages and for --help."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

_PLAIN: dict[Any, tuple[str, str]] = {
    str: ("text", "TEXT"),
    int: ("an integer", "INTEGER"),
    float: ("a number", "NUMBER"),
    bool: ("true or false", "true|false"),
    Any: ("any value", "VALUE"),
    type(None): ("null", "null"),
}
"""Words for a type in a sentence, and its short form in --help."""


def describe(annotation: Any, metadata: Sequence[Any] = (), examples: Sequence[Any] | None = None) -> str:
    """Return what a type accepts as a part of a sentence, such as "an integer of at least 1, or auto".

    Args:
        annotation: the type of a setting or of a value in it.
        metadata: limits of the value.
        examples: values as one writes them; the first one is quoted.
    """
    parts = [_describe_one(*member) for member in _members(annotation, metadata)]
    text = _join(parts)
    return f"{text}, such as {examples[0]}" if examples else text


def short_form(annotation: Any) -> str:
    """Return what a type accepts in a word, such as "INTEGER|auto"."""
    words = []
    for kind, _ in _members(annotation, ()):
        if get_origin(kind) is Literal:
            words += [str(value) for value in get_args(kind)]
        elif get_origin(kind) is dict:
            words.append("NAME=VALUE" if get_args(kind)[1] in _PLAIN or _is_number(get_args(kind)[1]) else "JSON")
        elif get_origin(kind) in (list, tuple):
            words.append(f"{short_form(get_args(kind)[0])},...")
        elif kind is not type(None):
            words.append(_PLAIN[kind][1])
    return "|".join(dict.fromkeys(words))


def types_below(annotation: Any, part: int | str) -> Any:
    """Return the type of an item of a list or mapping; None if values have no items, or may have those of two types."""
    members = [kind for kind, _ in _members(annotation, ()) if kind is not type(None)]
    origin, arguments = get_origin(members[0]), get_args(members[0])
    if len(members) > 1:
        return None
    if origin is dict:
        return arguments[1]
    if origin in (list, tuple) and isinstance(part, int):
        return arguments[min(part, len(arguments) - 1)]
    return None


def is_container(annotation: Any) -> bool:
    """Tell whether a value of this type can be a list or a mapping."""
    return any(get_origin(kind) in (dict, list, tuple) for kind, _ in _members(annotation, ()))


def _members(annotation: Any, metadata: Sequence[Any]) -> list[tuple[Any, Sequence[Any]]]:
    """Return the types of a union, each with its limits; the limits of the whole belong to its numbers and texts."""
    if get_origin(annotation) is Annotated:
        kind, *own = get_args(annotation)
        inner = [limit for entry in own for limit in (entry.metadata if isinstance(entry, FieldInfo) else [entry])]
        return _members(kind, [*inner, *metadata])
    if get_origin(annotation) in (Union, types.UnionType):
        return [member for kind in get_args(annotation) for member in _members(kind, metadata)]
    return [(annotation, () if annotation is type(None) else metadata)]


def _describe_one(kind: Any, metadata: Sequence[Any]) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return _join([str(value) for value in arguments])
    if origin is dict:
        if arguments[1] is Any or not (arguments[1] in _PLAIN or _is_number(arguments[1])):
            return "a mapping"
        return "NAME=VALUE" if arguments[1] is str else f"NAME=VALUE, where VALUE is {describe(arguments[1])}"
    if origin is tuple:
        return f"a list of {len(arguments)} values, each {describe(arguments[0])}"
    if origin is list:
        return "a list" if arguments[0] is Any else f"a list of {describe(arguments[0])}"
    return _PLAIN[kind][0] + _describe_limits(metadata)


def _describe_limits(metadata: Sequence[Any]) -> str:
    """Return the limits of a number, such as " of at least 0 and below 1"."""
    limits = {
        name: value
        for entry in metadata
        for name in ("ge", "gt", "le", "lt", "min_length")
        if (value := getattr(entry, name, None)) is not None
    }
    if "min_length" in limits:
        return " that is not empty"
    if "ge" in limits and "le" in limits:
        return f" from {limits['ge']} to {limits['le']}"
    words = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
    given = [f"{word} {limits[name]}" for name, word in words.items() if name in limits]
    return f" {' and '.join(given)}" if given else ""


def _is_number(annotation: Any) -> bool:
    return any(kind in (int, float) for kind, _ in _members(annotation, ()))


def _join(parts: Sequence[str]) -> str:
    """Join alternatives with "or"; a comma precedes it where an alternative has several words."""
    if len(parts) == 1:
        return parts[0]
    comma = "," if any(" " in part for part in parts) else ""
    return f"{', '.join(parts[:-1])}{comma} or {parts[-1]}"
