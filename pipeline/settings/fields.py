"""Types and validators that several sections of the settings share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field

from pipeline import storage

Decay = Annotated[float, Field(ge=0, lt=1)]
"""Decay rate of a moving average."""
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""Weight of a term or layer in a sum."""

# Defaults are validated as well: a default of 0 becomes the same 0.0 as in a file, so that both give one fingerprint.
STRICT = ConfigDict(
    extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
)


class MethodSettings(BaseModel):
    """Settings of a method of training; empty for a method that has none."""

    model_config = STRICT

    @property
    def unused_sections(self) -> list[str]:
        """Sections inside these settings that do not take part."""
        return []


def absolute_path(path: str) -> str:
    """Make a local path absolute, because workers run in other folders; return a URL unchanged.

    Raises:
        ValueError: if the text is empty, has a NUL, which no path has, or is not UTF-8, as files of settings are.
    """
    if not path or "\0" in path:
        raise ValueError("a path or URL")
    if storage.unicode_name(path) != path:
        raise ValueError("a path in UTF-8: rename it, or make a link to it and name the link")
    return path if storage.is_url(path) else str(Path(os.path.expanduser(path)).absolute())  # noqa: PTH111


def absolute_model(text: str) -> str:
    """Make the local path of a model absolute; return any other name of a model unchanged.

    Other names are URLs, models of MLflow, and bundled models: a name alone at which no file or folder lies.

    Raises:
        ValueError: if the text cannot be a path.
    """
    path = absolute_path(text)
    is_name = not any(sign in text for sign in "/\\") and not text.endswith((".safetensors", ".onnx"))
    named = text.startswith(("models:/", "runs:/")) or (is_name and not os.path.lexists(path))
    return text if named else path


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
