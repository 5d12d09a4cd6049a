"""Distances between what trained networks see in two images: one to train on, another to judge by.

`PerceptualLoss` compares features of VGG networks (Simonyan and Zisserman 2015, arXiv:1409.1556), as Johnson et al.
2016 (arXiv:1603.08155) and Ledig et al. 2017 (arXiv:1609.04802) do. `SqueezeNetDistance` is of another network, so that
an image isn't judged by what it was made for. Weights have torchvision's names, `features.N.weight`; torchvision isn't
needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Network = Literal["vgg16", "vgg19"]
Distance = Literal["mse", "l1"]

_CONVOLUTIONS: dict[str, tuple[int, ...]] = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
"""Convolutions of each block; a pooling follows every block."""
_CHANNELS = (64, 128, 256, 512, 512)


def layer_index(network: Network, layer: str) -> int:
    """Index in torchvision's `features` of a layer by its usual name.

    Args:
        network: "vgg16" or "vgg19".
        layer: "conv3_4" (before the activation), "relu3_4" (after it) or "pool3".

    Raises:
        ValueError: if the network has no such layer.
    """
    names = _names(network)
    if layer not in names:
        raise ValueError(f"{network} has no layer {layer}, expected one such as conv2_2, relu5_4 or pool3")
    return names.index(layer)


class PerceptualLoss(nn.Module):
    """Weighted sum of distances between the features of two images; frozen, and computed no deeper than need be.

    Args:
        layers: weight of each layer, by names of `layer_index`.
        weights: state dict of the trunk, `features.N.weight` and `.bias`, at least as deep as the deepest layer.
        network: which VGG.
        distance: "mse" or "l1", the mean over a layer's values.
        scale: factor on features; 1/12.75 brings the squared distances of torchvision's VGG-19 near those of pixels
            (Ledig et al. 2017, section 3.2).

    Raises:
        ValueError: if a layer or its weights are missing.
    """

    def __init__(
        self,
        layers: Mapping[str, float],
        weights: Mapping[str, Tensor],
        network: Network = "vgg19",
        distance: Distance = "mse",
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.layers = {layer_index(network, layer): weight for layer, weight in layers.items()}
        self.distance, self.scale = distance, scale
        depth = max(self.layers) + 1
        self.features = nn.ModuleList(_layers(network)[:depth])
        _load(self, {name: value for name, value in weights.items() if _number(name) < depth}, network)
        self.normalise = _Normalise()
        self.requires_grad_(False).eval()

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Distance of (B, 3, H, W) images, RGB nominally in [0, 1], to one value an image, (B,).

        Gradients flow to `sr` alone. Computed in the precision of the trunk's weights even under autocast, whose
        rounding of features is of the size of their differences.
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
        """Stays in evaluation mode."""
        return super().train(False)

    def _distance(self, x: Tensor, y: Tensor) -> Tensor:
        each = F.mse_loss(x, y, reduction="none") if self.distance == "mse" else F.l1_loss(x, y, reduction="none")
        return each.flatten(1).mean(1)


class SqueezeNetDistance(nn.Module):
    """Distance between features of SqueezeNet 1.1 (Iandola et al. 2016, arXiv:1602.07360), unit-normalised per layer.

    The form of LPIPS (Zhang et al. 2018, arXiv:1801.03924, equation 1) with all its fitted weights 1: at every position
    the vector of channels is brought to length 1; squared differences are summed over channels, averaged over
    positions, and added up over seven layers. 0 for equal images.

    Args:
        weights: state dict of the trunk, `features.0.weight` to `features.12.expand3x3.bias`.

    Raises:
        ValueError: if weights are missing.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        fires = [(64, 16, 64), (128, 16, 64), (128, 32, 128), (256, 32, 128)]
        fires += [(256, 48, 192), (384, 48, 192), (384, 64, 256), (512, 64, 256)]
        fire = iter([_Fire(*widths) for widths in fires])

        def pool() -> nn.Module:
            return nn.MaxPool2d(3, stride=2, ceil_mode=True)

        first: list[nn.Module] = [nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), pool()]
        self.features = nn.ModuleList([*first, next(fire), next(fire), pool(), next(fire), next(fire), pool(), *fire])
        self.compared = (1, 4, 7, 9, 10, 11, 12)
        _load(self, {name: value for name, value in weights.items() if name.startswith("features.")}, "SqueezeNet 1.1")
        self.normalise = _Normalise()
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Distance of (B, 3, H, W) images, RGB in [0, 1], at least 17 pixels a side, to one value an image, (B,)."""
        x: Tensor = self.normalise(sr)
        y: Tensor = self.normalise(hr)
        total = x.new_zeros(len(x))
        for i, layer in enumerate(self.features):
            x, y = layer(x), layer(y)
            if i in self.compared:
                difference = F.normalize(x, dim=1, eps=1e-10) - F.normalize(y, dim=1, eps=1e-10)
                total = total + difference.square().sum(1).mean((1, 2))
        return total


def trunk(weights: Mapping[str, Tensor], network: Network, layers: Mapping[str, float]) -> dict[str, Tensor]:
    """Of a whole VGG's state dict, what `layers` need."""
    depth = max(layer_index(network, layer) for layer in layers) + 1
    return {name: value for name, value in weights.items() if _number(name) < depth}


def _names(network: Network) -> list[str]:
    names = []
    for block, count in enumerate(_CONVOLUTIONS[network], start=1):
        for i in range(1, count + 1):
            names += [f"conv{block}_{i}", f"relu{block}_{i}"]
        names.append(f"pool{block}")
    return names


def _layers(network: Network) -> list[nn.Module]:
    layers: list[nn.Module] = []
    before = 3
    for channels, count in zip(_CHANNELS, _CONVOLUTIONS[network], strict=True):
        for _ in range(count):
            # Not in place: a layer's output before its activation may be asked for.
            layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
            before = channels
        layers.append(nn.MaxPool2d(2))
    return layers


class _Normalise(nn.Module):
    """What the trunks were trained on: mean 0 and deviation 1 in each channel over ImageNet, from RGB in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        return (image.to(self.mean.dtype) - self.mean) / self.std


class _Fire(nn.Module):
    def __init__(self, before: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(before, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], dim=1)


def _load(network: nn.Module, weights: Mapping[str, Tensor], name: str) -> None:
    missing, unexpected = network.load_state_dict(weights, strict=False)
    if missing or unexpected:
        raise ValueError(f"the weights lack {', '.join(missing) or 'nothing'}, expected {name}'s names and shapes")


def _number(name: str) -> float:
    match = re.fullmatch(r"features\.(\d+)\.(weight|bias)", name)
    return int(match[1]) if match else float("inf")
