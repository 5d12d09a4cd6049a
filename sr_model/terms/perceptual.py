"""The term "perceptual": a distance between features of a VGG network (Simonyan and Zisserman 2015, arXiv:1409.1556).

Johnson et al. 2016 (arXiv:1603.08155) and Ledig et al. 2017 (arXiv:1609.04802) train with such a distance. Weights have
torchvision's names, `features.N.weight`; torchvision itself is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sr_model.normalise import Normalise
from sr_model.pretrained import Weights, load_weights
from sr_model.terms.settings import CONVOLUTIONS, FeatureDistance, Network, Perceptual, Pooling, layer_index

_CHANNELS = (64, 128, 256, 512, 512)
"""Channels of each block."""


class PerceptualLoss(nn.Module):
    """Weighted sum of distances between the features of two images.

    The network is frozen and ends at the deepest layer.

    Args:
        layers: weight of each layer, by the names that `layer_index` takes.
        weights: state dict of the trunk, `features.N.weight` and `.bias`, at least as deep as the deepest layer.
        network: the VGG network.
        distance: "mse" or "l1", averaged over the values of a layer.
        scale: factor on features; 1/12.75 brings the squared distances of torchvision's VGG-19 close to those of
            pixels (Ledig et al. 2017, section 3.2).
        pooling: "max", as the network was trained, or "blurred".

    Raises:
        ValueError: if a layer or its weights are missing.
    """

    def __init__(
        self,
        layers: Mapping[str, float],
        weights: Mapping[str, Tensor],
        network: Network = "vgg19",
        distance: FeatureDistance = "mse",
        scale: float = 1.0,
        pooling: Pooling = "max",
    ) -> None:
        super().__init__()
        self.layers = {layer_index(network, layer): weight for layer, weight in layers.items()}
        self.distance, self.scale = distance, scale
        depth = max(self.layers) + 1
        self.features = nn.ModuleList(_layers(network, pooling)[:depth])
        load_weights(self, {name: value for name, value in weights.items() if _number(name) < depth}, network)
        self.normalise = Normalise()
        self.requires_grad_(False).eval()

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Compute the distance of (B, 3, H, W) RGB images, nominally in [0, 1]: one value for each image, (B,).

        Gradients flow to `sr` alone. The precision is that of the weights even under autocast, because bf16 rounds
        features by as much as they differ.
        """
        with torch.autocast(sr.device.type, enabled=False):
            x = self.normalise(sr)
            with torch.no_grad():
                y = self.normalise(hr)
            total = sr.new_zeros(len(sr), dtype=x.dtype)
            for i, layer in enumerate(self.features):
                x = layer(x)
                with torch.no_grad():
                    y = layer(y)
                if i in self.layers:
                    total = total + self.layers[i] * self._distance(x * self.scale, y * self.scale)
        return total

    def train(self, mode: bool = True) -> PerceptualLoss:
        """Stay in evaluation mode."""
        return super().train(False)

    def _distance(self, x: Tensor, y: Tensor) -> Tensor:
        each = F.mse_loss(x, y, reduction="none") if self.distance == "mse" else F.l1_loss(x, y, reduction="none")
        return each.flatten(1).mean(1)


class BlurredMaxPool(nn.Module):
    """Max pooling that favours one phase less: the largest of 2x2 values everywhere, then a blur, then every second.

    The blur is [1, 2, 1] / 4 along each axis, the smallest of Zhang 2019 (arXiv:1904.11486). Outputs lie where those of
    nn.MaxPool2d(2) do.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Reduce (B, C, H, W) to (B, C, H // 2, W // 2)."""
        largest = F.pad(F.max_pool2d(x, 2, stride=1), (1, 1, 1, 1), mode="replicate")
        return F.avg_pool2d(F.avg_pool2d(largest, 2, stride=1), 2)


def trunk(weights: Weights, network: Network, layers: Iterable[str]) -> dict[str, Tensor]:
    """Take from a whole VGG's state dict the tensors that `layers` need."""
    depth = max(layer_index(network, layer) for layer in layers) + 1
    return {name: value for name, value in weights.items() if _number(name) < depth}


def _layers(network: Network, pooling: Pooling) -> list[nn.Module]:
    layers: list[nn.Module] = []
    before = 3
    for channels, count in zip(_CHANNELS, CONVOLUTIONS[network], strict=True):
        for _ in range(count):
            # The activation is not in place, since the output before it may be compared, too.
            layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
            before = channels
        layers.append(nn.MaxPool2d(2) if pooling == "max" else BlurredMaxPool())
    return layers


def _number(name: str) -> float:
    match = re.fullmatch(r"features\.(\d+)\.(weight|bias)", name)
    return int(match[1]) if match else float("inf")


def create(settings: Perceptual, weights: Weights) -> PerceptualLoss:
    """Make the term from its settings and the state dict of a VGG network.

    Raises:
        ValueError: if weights are missing.
        RuntimeError: if a shape differs.
    """
    return PerceptualLoss(
        settings.layers, weights, settings.network, settings.distance, settings.scale, settings.pooling
    )


def select(settings: Perceptual, whole: Weights) -> dict[str, Tensor]:
    """Take from a whole VGG's state dict the tensors that the settings need.

    Raises:
        ValueError: if weights are missing.
        RuntimeError: if a shape differs.
    """
    part = trunk(whole, settings.network, settings.layers)
    create(settings, part)  # raises if tensors are missing or have other shapes
    return part
