"""The networks, one file each. To add one, write its file and add its `Architecture` to `ARCHITECTURES`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sr_model.networks import srresnet
from sr_model.networks.architecture import Architecture, NetworkSettings, SuperResolver

ARCHITECTURES: dict[str, Architecture] = {entry.name: entry for entry in (srresnet.ARCHITECTURE,)}
"""All networks by name; the first one is the default."""

DEFAULT = next(iter(ARCHITECTURES))
"""Name of the network that a configuration without `model.name` describes."""


def from_weights(weights: Mapping[str, Tensor]) -> SuperResolver:
    """Recognise a network by its state dict and load it, in eval mode, float32.

    Raises:
        ValueError: if no architecture has such weights.
    """
    reasons = []
    for architecture in ARCHITECTURES.values():
        try:
            return architecture.load(weights)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError("; ".join(reasons))


__all__ = ["ARCHITECTURES", "DEFAULT", "Architecture", "NetworkSettings", "SuperResolver", "from_weights"]
