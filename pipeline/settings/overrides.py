"""Changing some settings of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.settings.errors import UserError
from pipeline.settings.fields import section_models
from pipeline.settings.mistakes import explain, known_keys, suggest
from pipeline.settings.network import known_settings, settings_for
from pipeline.settings.schema import Config


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Return a copy of a configuration with other values.

    Args:
        config: the configuration to copy.
        values: new values by dotted key, such as {"train.lr": 1e-3}.

    Raises:
        UserError: for an unknown key or an invalid value.
    """
    changed = config.model_dump()
    if "model.name" in values and values["model.name"] != config.model.name:
        kept = settings_for(values["model.name"], changed["model"])
        changed["model"] = known_settings(values["model.name"]) | kept
    for key, value in values.items():
        *sections, name = key.split(".")
        section: Any = changed
        for part in sections:
            section = section.get(part) if isinstance(section, dict) else None
        # A default may be left out of the dump; networks have different keys, so theirs are those of the dump.
        known = isinstance(section, dict) and (name in section or (sections[:1] != ["model"] and key in known_keys()))
        if not known:
            raise UserError(f"unknown key {key}{suggest(key)}")
        section[name] = value
    try:
        return Config(**changed)
    except ValidationError as error:
        raise UserError(explain(error)) from None


def merge(values: dict[str, Any], overrides: dict[str, Any], model: type[BaseModel] = Config) -> dict[str, Any]:
    """Merge nested settings key by key.

    A setting whose value is itself a mapping, such as train.loss, is replaced as a whole.

    Args:
        values: settings of a file.
        overrides: settings that take precedence.
        model: the section that both belong to.

    Raises:
        UserError: if `values` gives a section something other than a mapping.
    """
    merged = dict(values)
    for key, value in overrides.items():
        models = section_models(model.model_fields[key].annotation) if key in model.model_fields else []
        if models and key in merged:
            if not isinstance(merged[key], dict):
                raise UserError(f"{key} is {merged[key]!r} in the configuration, expected a mapping of settings")
            below = settings_for(value.get("name"), merged[key]) if key == "model" else merged[key]
            merged[key] = merge(below, value, models[0])
        else:
            merged[key] = value
    return merged
