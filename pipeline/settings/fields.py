"""Kinds of values that several sections of the settings share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field

Decay = Annotated[float, Field(ge=0, lt=1)]


Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


# Defaults are validated, too, so that 0 is the 0.0 that a file or command line gives: names are made of them.
STRICT = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


def absolute_path(path: str) -> str:
    """Workers run in folders of their own."""
    if not path:
        raise ValueError("a path or URL")
    return path if "://" in path else str(Path(path).expanduser().absolute())


def absolute_source(source: str) -> str:
    """A name such as "builtin" or "div2k/valid" is no path."""
    return source if source == "builtin" or source.split("/")[0] == "div2k" else absolute_path(source)
