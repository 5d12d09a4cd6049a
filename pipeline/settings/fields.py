"""Types and validators that several sections of the settings share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field

Decay = Annotated[float, Field(ge=0, lt=1)]
"""Decay rate of a moving average."""
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""Weight of a term or layer in a sum."""

# Defaults are validated as well: a default of 0 becomes the same 0.0 as in a file, so that both give one fingerprint.
STRICT = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


def absolute_path(path: str) -> str:
    """Make a local path absolute, because workers run in other folders; return a URL unchanged.

    Raises:
        ValueError: if the text is empty.
    """
    if not path:
        raise ValueError("a path or URL")
    return path if "://" in path else str(Path(path).expanduser().absolute())


def absolute_source(source: str) -> str:
    """Make the local path of a source absolute; return a dataset's name, such as "builtin" or "div2k", unchanged.

    Raises:
        ValueError: if the text is empty.
    """
    return source if source == "builtin" or source.split("/")[0] == "div2k" else absolute_path(source)


def section_models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models that a field's type allows: one for a section, several for a union, none for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if getattr(annotation, "__origin__", None) in (list, dict, tuple):
        return []  # a container of models is a value, not a section
    return [model for argument in get_args(annotation) for model in section_models(argument)]
