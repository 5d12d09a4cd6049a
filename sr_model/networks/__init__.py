"""The networks, one file each. To add one, write its file, and add its settings and an entry to `ARCHITECTURES`.

This module imports no torch, so that a command can check its settings at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sr_model.deferred import deferred
from sr_model.networks.architecture import Architecture, NetworkSettings
from sr_model.networks.settings import (
    SCALES,
    EDSRSettings,
    RefinerSettings,
    SRCNNSettings,
    SRResNetDirectSettings,
    SRResNetSettings,
)

if TYPE_CHECKING:
    from torch import Tensor

    from sr_model.networks.super_resolver import SuperResolver

_ALL = (
    Architecture(
        name="srresnet",
        title="SRResNet",
        settings=SRResNetSettings,
        scales=SCALES,
        build=deferred("sr_model.networks.srresnet:build"),
        infer=deferred("sr_model.networks.srresnet:infer"),
    ),
    Architecture(
        name="edsr",
        title="EDSR",
        settings=EDSRSettings,
        scales=SCALES,
        build=deferred("sr_model.networks.edsr:build"),
        infer=deferred("sr_model.networks.edsr:infer"),
    ),
    Architecture(
        name="srresnet-direct",
        title="SRResNet-direct",
        settings=SRResNetDirectSettings,
        scales=SCALES,
        build=deferred("sr_model.networks.srresnet_direct:build"),
        infer=deferred("sr_model.networks.srresnet_direct:infer"),
    ),
    Architecture(
        name="srcnn",
        title="SRCNN",
        settings=SRCNNSettings,
        scales=SCALES,
        build=deferred("sr_model.networks.srcnn:build"),
        infer=deferred("sr_model.networks.srcnn:infer"),
    ),
    Architecture(
        name="refiner",
        title="Refiner",
        settings=RefinerSettings,
        scales=SCALES,
        build=deferred("sr_model.networks.refiner:build"),
        infer=deferred("sr_model.networks.refiner:infer"),
        method="flow",
    ),
)

ARCHITECTURES: dict[str, Architecture] = {entry.name: entry for entry in _ALL}
"""All networks by name; the first one is the default."""

DEFAULT = next(iter(ARCHITECTURES))
"""Name of the network that a configuration without `model.name` describes."""


def recognise(weights: Mapping[str, Tensor]) -> tuple[Architecture, SuperResolver]:
    """Recognise a network by its state dict and load it, in eval mode, float32.

    Raises:
        ValueError: if no architecture has such weights.
    """
    reasons = []
    for architecture in ARCHITECTURES.values():
        try:
            return architecture, architecture.load(weights)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError("; ".join(reasons))


def from_weights(weights: Mapping[str, Tensor]) -> SuperResolver:
    """Return the network of a state dict; see `recognise`."""
    return recognise(weights)[1]


__all__ = ["ARCHITECTURES", "DEFAULT", "Architecture", "NetworkSettings", "from_weights", "recognise"]
