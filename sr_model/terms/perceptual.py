"""The term "perceptual": a distance between features of a VGG network (Simonyan and Zisserman 2015, arXiv:1409.1556).

Johnson et al. 2016 (arXiv:1603.08155) and Ledig et al. 2017 (arXiv:1609.04802) train with such a distance. Weights have
torchvision's names, `features.N.weight`; torchvision itself is not needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from sr_model.pretrained import Normalise, Pretrained, Weights, load_weights
from sr_model.terms.term import TermKind, TermSettings

Network = Literal["vgg16", "vgg19"]
FeatureDistance = Literal["mse", "l1"]

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
    """Weighted sum of distances between the features of two images.

    The network is frozen and ends at the deepest layer.

    Args:
        layers: weight of each layer, by the names that `layer_index` takes.
        weights: state dict of the trunk, `features.N.weight` and `.bias`, at least as deep as the deepest layer.
        network: the VGG network.
        distance: "mse" or "l1", averaged over the values of a layer.
        scale: factor on features; 1/12.75 brings the squared distances of torchvision's VGG-19 close to those of
            pixels (Ledig et al. 2017, section 3.2).

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
    ) -> None:
        super().__init__()
        self.layers = {layer_index(network, layer): weight for layer, weight in layers.items()}
        self.distance, self.scale = distance, scale
        depth = max(self.layers) + 1
        self.features = nn.ModuleList(_layers(network)[:depth])
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


def trunk(weights: Weights, network: Network, layers: Iterable[str]) -> dict[str, Tensor]:
    """Take from a whole VGG's state dict the tensors that `layers` need."""
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
            # The activation is not in place, since the output before it may be compared, too.
            layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
            before = channels
        layers.append(nn.MaxPool2d(2))
    return layers


def _number(name: str) -> float:
    match = re.fullmatch(r"features\.(\d+)\.(weight|bias)", name)
    return int(match[1]) if match else float("inf")


Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Perceptual(TermSettings):
    """The term "perceptual" of the objective: a distance between VGG features."""

    network: Network = "vgg19"
    """VGG network whose features are compared."""
    layers: dict[str, Weight] = Field({"conv2_2": 1.0})
    """Weight of each layer. "conv5_4" is taken before the activation, "relu5_4" after it. The paper's VGG22 and VGG54
    are relu2_2 and relu5_4; features carry more information before the activation."""
    distance: FeatureDistance = "mse"
    """Distance between features, averaged over a layer."""
    scale: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Factor on features; the paper uses 1/12.75 = 0.0784 for the published weights."""
    start: float = Field(0.0, ge=0, lt=1)
    """Share of the steps after which the term joins the others; until then they train alone. Ledig et al. 2017 also
    train on pixels first."""
    weights: str = "torchvision"
    """Path or URL of a .safetensors or .pth file with torchvision's names (features.N.weight); "torchvision" downloads
    the published file, 550 MB."""

    @model_validator(mode="after")
    def _known_layers(self) -> Perceptual:
        if not self.layers:
            raise ValueError("train.perceptual.layers is empty, expected at least one layer, such as conv2_2")
        for layer in self.layers:
            layer_index(self.network, layer)
        return self


def _create(settings: Perceptual, weights: Weights) -> PerceptualLoss:
    return PerceptualLoss(settings.layers, weights, settings.network, settings.distance, settings.scale)


def _pretrained(settings: Perceptual) -> Pretrained:
    def select(whole: Weights) -> dict[str, Tensor]:
        part = trunk(whole, settings.network, settings.layers)
        _create(settings, part)  # raises if tensors are missing or have other shapes
        return part

    return Pretrained(
        settings.network, settings.weights, "train.perceptual.weights", tuple(sorted(settings.layers)), select
    )


KIND = TermKind(
    "perceptual",
    _create,
    Perceptual,
    compares_pixels=False,
    pretrained=_pretrained,
    start=lambda settings: settings.start,
)
