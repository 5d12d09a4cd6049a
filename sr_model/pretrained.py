"""Networks that were trained on ImageNet: which weights are needed, how they are loaded, what input they expect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Weights = Mapping[str, Tensor]
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


class Normalise(nn.Module):
    """Bring RGB in [0, 1] to mean 0 and standard deviation 1 of each channel over ImageNet."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to the same shape, in the precision of the buffers."""
        return (image.to(self.mean.dtype) - self.mean) / self.std


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
