"""Settings as YAML text, which is refused before it can take much time or memory."""

from __future__ import annotations

from typing import Any

import yaml

from pipeline.settings.errors import UserError
from pipeline.storage import one_line

MOST_BYTES = 200_000
_MOST_VALUES = 5_000
"""Values in a text, with those that an alias repeats. The largest shipped file has about 30."""
_DEEPEST = 30
"""Levels of lists and mappings; settings need five."""


def parse_yaml(text: str, origin: str) -> dict[str, Any]:
    """Parse settings.

    Args:
        text: YAML.
        origin: the file or the run that it comes from, for messages.

    Raises:
        UserError: if it is no mapping, or larger than settings can be.
    """
    try:
        _check_size(text, origin)
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        # PyYAML lets exceptions of Python pass, such as that for the date 2026-13-45.
        raise UserError(f"{origin} is not valid YAML: {one_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{origin} holds {type(content).__name__}, expected a mapping of settings")
    return {str(key): value for key, value in content.items()}


def _check_size(text: str, origin: str) -> None:
    """Count the values without building them, since a few aliases of aliases can stand for billions."""
    if len(text) > MOST_BYTES:
        raise UserError(f"{origin} has {len(text)} characters, expected settings of at most {MOST_BYTES}")
    total = 0
    anchors: dict[str, int] = {}  # number of values behind each
    open_collections: list[tuple[str | None, int]] = []  # the anchor of each, and the total before it
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_collections.append((event.anchor, total))
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_collections.pop()
            if anchor:
                anchors[anchor] = total - before
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if event.anchor:
                anchors[event.anchor] = 1
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_collections):
                raise UserError(f"{origin} has an alias of itself, *{event.anchor}, expected plain settings")
            total += anchors.get(event.anchor or "", 1)
        if total > _MOST_VALUES:
            raise UserError(f"{origin} has more than {_MOST_VALUES} values, expected settings")
        if len(open_collections) > _DEEPEST:
            raise UserError(f"{origin} has more than {_DEEPEST} lists or mappings in each other, expected settings")
