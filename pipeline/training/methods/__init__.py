"""The ways of training, one file each; `pipeline.settings.methods` registers them.

This module imports no torch, so that a command can check its settings at once.
"""

from __future__ import annotations

from pipeline.settings import Config, UserError, architecture
from pipeline.settings.methods import METHODS, MethodKind
from pipeline.training.methods.method import Loss, Method, Modules, Phase, Sample, Setup, Trainee


def find_method(config: Config) -> MethodKind:
    """The way of training that the configuration names, if it can work with the other settings.

    Raises:
        UserError: if there is no such method, or a setting does not suit it.
    """
    kind = METHODS.get(config.train.method)
    if kind is None:
        raise UserError(f"train.method is {config.train.method!r}, expected one of {', '.join(METHODS)}")
    network = architecture(config.model)
    if network.method not in (None, kind.name):
        raise UserError(
            f"train.method is {kind.name}, but model.name is {network.name}, which only train.method={network.method} "
            "trains"
        )
    kind.check(config)
    return kind


__all__ = ["METHODS", "Loss", "Method", "MethodKind", "Modules", "Phase", "Sample", "Setup", "Trainee", "find_method"]
