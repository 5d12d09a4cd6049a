"""Sentences that explain mistakes in the settings."""

from __future__ import annotations

import difflib

from pydantic import BaseModel, ValidationError

from pipeline.settings.fields import section_models
from pipeline.settings.network import without_network_name
from pipeline.settings.schema import Config


def explain(error: ValidationError, origin: str | None = None) -> str:
    """Return the first problem that pydantic found as one sentence: the key, its value and what was expected.

    Args:
        error: what pydantic raised for a `Config`.
        origin: the file or run that the settings come from, if any; the sentence names it.
    """
    first = error.errors()[0]
    key = ".".join(str(part) for part in without_network_name(first["loc"]))
    where = f" (settings of {origin} and the command line)" if origin else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key {key}{suggest(key)}{where}"
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if first["type"] == "value_error" and key in _SECTIONS:  # the message of a check across keys names them itself
        return message + where
    return f"{key} is {first['input']!r}, expected {message}{where}"


def suggest(key: str) -> str:
    """Return ", did you mean KEY?" with the known key that resembles an unknown one most, or "" if none does."""
    match = difflib.get_close_matches(key, known_keys(), n=1)
    return f", did you mean {match[0]}?" if match else ""


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Return the dotted keys of all settings, such as "train.lr"."""
    keys = []
    for name, field in model.model_fields.items():
        sections = section_models(field.annotation)
        nested = [key for section in sections for key in known_keys(section, f"{prefix}{name}.")]
        keys += nested if sections else [f"{prefix}{name}"]
    return list(dict.fromkeys(keys))


def _sections(model: type[BaseModel], prefix: str = "") -> list[str]:
    nested = [
        (name, section) for name, field in model.model_fields.items() for section in section_models(field.annotation)
    ]
    return [prefix, *(key for name, section in nested for key in _sections(section, f"{prefix}.{name}".lstrip(".")))]


_SECTIONS = frozenset(_sections(Config))
