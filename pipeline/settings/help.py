"""The text of --help for a command that takes settings."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo

from pipeline.settings.forms import short_form
from pipeline.settings.mistakes import known_settings

_COMMON = (
    "source", "home", "name", "scale", "preprocess.holdout", "preprocess.degradation.bicubic", "preprocess.tile",
    "model.batch_norm", "model.channels", "model.blocks", "train.length", "train.global_batch", "train.micro_batch",
    "train.lr", "train.loss", "train.seed", "train.validate_every", "evaluate.benchmarks", "tune.grid", "tune.samples",
    "tune.scheduler", "tune.concurrent", "cluster.workers", "cluster.address", "tracking.uri",
)  # fmt: skip
"""Settings that most users change, in the order in which --help lists them."""

_PATCH_SET = ("home", "cache", "log_format", "source", "scale", "preprocess")
_TRAINING = ("name", *_PATCH_SET, "data", "model", "train", "evaluate", "cluster")
_CONCERNED: dict[str, tuple[str, ...]] = {
    "run": (*_TRAINING, "tracking"),
    "train": (*_TRAINING, "tracking"),
    "tune": (*_TRAINING, "tracking", "tune"),
    "evaluate": (*_TRAINING, "tracking"),
    "preprocess": (*_PATCH_SET, "cluster.address", "cluster.object_store_mb"),
}
"""Settings, or sections of them, that concern each command."""


def settings_help(
    prog: str, module: str, purpose: str, options: Mapping[str, tuple[str, str]], everything: bool = False
) -> str:
    """Return the text of --help: the options of the command, common settings, then the other settings by section.

    Args:
        prog: the program as the user called it.
        module: name of the command's module in `pipeline`.
        purpose: a sentence that says what the command does.
        options: word for the value ("" if there is none) and help text of each option that is no setting.
        everything: also list settings that do not concern the command.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s [--config FILE] [--KEY VALUE | KEY=VALUE ...]",
        description=f"{purpose} Options override the settings of the file. Pass null to unset an optional setting.",
        epilog=None
        if everything
        else "--help-all also lists the settings of other commands, which a file may contain.",
        add_help=False,
    )
    first = parser.add_argument_group("options")
    for option, (value, text) in options.items():
        _add(first, option, value, text)
    _add(first, "--help", "", "list the options and settings of this command")
    _add(first, "--help-all", "", "list all settings")

    concerned = _CONCERNED[module]
    listed = {
        key: field
        for key, field in known_settings().items()
        if everything or key in concerned or key.startswith(tuple(f"{section}." for section in concerned))
    }
    groups: dict[str, list[str]] = {"common settings": [key for key in _COMMON if key in listed]}
    for key in listed:
        if key not in _COMMON:
            groups.setdefault(f"{key.rpartition('.')[0] or 'other general'} settings", []).append(key)
    for title, keys in groups.items():
        group = parser.add_argument_group(title)
        for key in keys:
            _add(group, f"--{key}", short_form(listed[key].annotation), _help_text(listed[key]))
    return parser.format_help().rstrip()


def _add(group: argparse._ArgumentGroup, option: str, value: str, text: str) -> None:
    escaped = text.replace("%", "%%")
    if value:
        group.add_argument(option, metavar=value, help=escaped)
    else:
        group.add_argument(option, action="store_true", help=escaped)


def _help_text(field: FieldInfo) -> str:
    """Return a setting's description with its default, unless that is null: the description says what null means."""
    text = " ".join((field.description or "").split())
    default: Any = field.get_default(call_default_factory=True)
    if default is None:
        return text
    shown = default if isinstance(default, str) else json.dumps(default, ensure_ascii=False)
    return f"{text} (default: {shown})" if shown != "" else text
