"""Networks that were trained on ImageNet: which weights are needed and how they are loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor, nn

Weights: TypeAlias = "Mapping[str, Tensor]"
"""State dict of a pretrained network."""


@dataclass(frozen=True)
class Pretrained:
    """Weights of a published network that a term or a metric needs."""

    network: str
    """Name of the published network, such as "vgg19"."""
    source: str
    """Path or URL of a file with torchvision's names, or "torchvision" to download the published file."""
    setting: str
    """Dotted key of the setting that names the file, for messages."""
    part: tuple[str, ...]
    """Names of the needed parts, such as layers. Together with the file's content they identify the weights."""
    select: Callable[[Weights], dict[str, Tensor]]
    """Takes the needed tensors from the whole state dict; raises ValueError or RuntimeError where some are missing."""


def load_weights(network: nn.Module, weights: Weights, name: str) -> None:
    """Load a state dict.

    Args:
        network: the network that receives the weights.
        weights: its state dict, with torchvision's names.
        name: name of the network, for the message.

    Raises:
        ValueError: if weights are missing, or there are others.
        RuntimeError: if a shape differs.
    """
    missing, unexpected = network.load_state_dict(weights, strict=False)
    if missing or unexpected:
        raise ValueError(f"the weights lack {', '.join(missing) or 'nothing'}, expected {name}'s names and shapes")
