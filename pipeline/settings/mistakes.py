"""Sentences that explain mistakes in the settings."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from pipeline.settings.fields import section_models
from pipeline.settings.forms import describe, is_container, types_below
from pipeline.settings.hints import ADVICE_BY_WORD, SETTINGS_BY_WORD, plain_word
from pipeline.settings.network import known_networks, networks_with, without_network_name
from pipeline.settings.schema import Config
from pipeline.storage import one_line

_OWN_CHECKS = ("value_error", "assertion_error")
_UNKNOWN_KEY = ("extra_forbidden", "invalid_key")
_UNKNOWN_NETWORK = ("union_tag_invalid", "union_tag_not_found")

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100
_short.maxlist = _short.maxtuple = _short.maxdict = 6


def explain(error: ValidationError, origin: str | None = None) -> str:
    """Return the first problem that pydantic found as one sentence: the key, its value and what was expected.

    Args:
        error: what pydantic raised for a `Config`.
        origin: the file or run that the settings come from, if any; the sentence names it.
    """
    first = error.errors(include_url=False)[0]
    where = f" (settings of {origin} and the command line)" if origin else ""
    location, kind, value = without_network_name(first["loc"]), first["type"], first["input"]
    if kind == "missing":  # an item of a list that is too short
        location = location[:-1]
    key, expected = _expected_at(location)
    if kind in _UNKNOWN_KEY:
        key = _known_inside(key, value)
        return f"unknown key {key}{suggest(key)}{where}"
    if kind in _UNKNOWN_NETWORK:
        key = f"{key}.name"
        tags = str(first.get("ctx", {}).get("expected_tags", "")).replace("'", "").split(", ")
        expected = " or ".join(tags if tags != [""] else known_networks())
        value = value.get("name") if isinstance(value, dict) else value
    elif kind in _OWN_CHECKS:
        expected = one_line(first["msg"].partition("error, ")[2])
        if key in _SECTIONS:  # the message of a check across keys names them itself
            return expected + where
    elif kind == "finite_number":
        expected = expected.replace("a number", "a finite number")
    return f"{key} is {shown(value)}, expected {expected}{where}"


def refuse_form(key: str, value: str) -> str:
    """Return a sentence about the value of an option that cannot be read at all, such as a list without its end."""
    _, expected = _expected_at(key.split("."))
    return f"{key} is {shown(value)}, expected {expected}"


def shown(value: Any) -> str:
    """Return a value as a message quotes it: as in YAML, in one line, and shortened if it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return one_line(_short.repr(value))


def suggest(key: str) -> str:
    """Return ", did you mean KEY?" with the known key that an unknown one probably stands for, or "" if none does.

    A setting of another network than the configured one is unknown too, and the text names that network.
    """
    word = plain_word(key)
    if word in ADVICE_BY_WORD:
        return f": {ADVICE_BY_WORD[word]}"
    known = known_keys()
    if key in known:
        return f", which is a setting of {' and '.join(networks_with(key.split('.')[1]))}, see model.name"
    by_word = {plain_word(name): name for name in known}
    same_end = [name for name in known if word == plain_word(name.rpartition(".")[2])]
    last = plain_word(key.rpartition(".")[2])
    found = (
        by_word.get(word)
        or SETTINGS_BY_WORD.get(word)
        or " or ".join(same_end[:2])
        or next(iter(difflib.get_close_matches(key, known, n=1, cutoff=0.7)), None)
        or ("." in key and SETTINGS_BY_WORD.get(last))
        or next(iter(difflib.get_close_matches(key, known, n=1)), None)
    )
    return f", did you mean {found}?" if found else ""


def _known_inside(key: str, value: Any) -> str:
    """Return the key of a setting in a section that is unknown as a whole, because another network has it."""
    while isinstance(value, dict) and value:
        name, value = next(iter(value.items()))
        if not any(f"{known}.".startswith(f"{key}.{name}.") for known in known_keys()):
            break
        key = f"{key}.{name}"
    return key


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Return the dotted keys of all settings, such as "train.lr"."""
    return list(known_settings(model, prefix))


def known_settings(model: type[BaseModel] = Config, prefix: str = "") -> dict[str, FieldInfo]:
    """Return all settings by dotted key; of two networks' settings with the same key, the first one."""
    found: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        sections = section_models(field.annotation)
        below = [known_settings(section, f"{prefix}{name}.") for section in sections] or [{f"{prefix}{name}": field}]
        for settings in below:
            found.update({key: inner for key, inner in settings.items() if key not in found})
    return found


def _expected_at(location: Sequence[int | str]) -> tuple[str, str]:
    """Return the dotted key at a location of pydantic's, and what is accepted there.

    A location also has parts that are no keys, such as the branch of a union; they are left out.
    """
    models: list[type[BaseModel]] = [Config]
    parts = list(location)
    key = ""
    while parts:
        part = parts.pop(0)
        key = f"{key}.{part}" if key else str(part)
        field = next((model.model_fields[part] for model in models if part in model.model_fields), None)
        if field is None:
            return key, ""
        models = section_models(field.annotation)
        if not models:
            return _expected_of_item(key, field, parts)
    example = min(known_keys(models[0], f"{key}."), key=lambda name: name.count("."))
    meant = SETTINGS_BY_WORD.get(key)
    return key, f"settings of this section, such as {example}{f'; did you mean {meant}?' if meant else ''}"


def _expected_of_item(key: str, field: FieldInfo, parts: Sequence[int | str]) -> tuple[str, str]:
    """Return the key of an item in a setting that is a list or a mapping, or of the setting itself."""
    kind: Any = field.annotation
    for number, part in enumerate(parts):
        below = types_below(kind, part)
        if below is None:  # the part names a branch of a union
            break
        if parts[number + 1 : number + 2] == ["[key]"]:
            return f"a name in {key}", "text"
        kind = below
        key += f".{part}" if isinstance(part, str) and "." not in part else f"[{part}]"
    if kind is field.annotation:
        return key, describe(kind, field.metadata, field.examples)
    example = f", as in {field.examples[0]}" if field.examples and is_container(kind) else ""
    return key, describe(kind) + example


def _sections(model: type[BaseModel], prefix: str = "") -> list[str]:
    nested = [
        (name, section) for name, field in model.model_fields.items() for section in section_models(field.annotation)
    ]
    return [prefix, *(key for name, section in nested for key in _sections(section, f"{prefix}.{name}".lstrip(".")))]


_SECTIONS = frozenset(_sections(Config))
