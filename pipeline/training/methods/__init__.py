"""The ways of training, one file each. To add one, write its file and add its `MethodKind` to `METHODS`.

This module imports no torch, so that a command can check its settings at once.
"""

from __future__ import annotations

from pipeline.settings import Config, UserError
from pipeline.training.methods.method import Loss, Method, MethodKind, Modules, Phase, Sample, Setup, Trainee
from sr_model.deferred import deferred

_ALL = (MethodKind("supervised", deferred("pipeline.training.methods.supervised:Supervised")),)

METHODS: dict[str, MethodKind] = {kind.name: kind for kind in _ALL}
"""All ways of training by name; the first one is the default."""


def find_method(config: Config) -> MethodKind:
    """The way of training that the configuration names, if it can work with the other settings.

    Raises:
        UserError: if there is no such method, or a setting does not suit it.
    """
    kind = METHODS.get(config.train.method)
    if kind is None:
        raise UserError(f"train.method is {config.train.method!r}, expected one of {', '.join(METHODS)}")
    kind.check(config)
    return kind


__all__ = ["METHODS", "Loss", "Method", "MethodKind", "Modules", "Phase", "Sample", "Setup", "Trainee", "find_method"]
