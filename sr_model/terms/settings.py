"""Settings of the terms. This module imports no torch, so that a command can check its settings at once."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sr_model.deferred import deferred
from sr_model.pretrained import Pretrained
from sr_model.terms.term import TermSettings

Network = Literal["vgg16", "vgg19"]
FeatureDistance = Literal["mse", "l1"]
Pooling = Literal["max", "blurred"]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]

CONVOLUTIONS: dict[str, tuple[int, ...]] = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
"""Convolutions of each block of a VGG network; a pooling follows every block."""


class Phase(TermSettings):
    """The term "phase" of the objective: errors that repeat with the period of the enlargement."""

    period: int = Field(4, ge=2, le=16)
    """Period of the pattern in pixels, usually `scale`."""

    def smallest_side(self) -> int:
        """Side in pixels of the smallest images that have a whole period without their border."""
        return 2 * self.period


class Perceptual(TermSettings):
    """The term "perceptual" of the objective: a distance between VGG features."""

    network: Network = "vgg19"
    """VGG network whose features are compared."""
    layers: dict[str, Weight] = Field({"conv2_2": 1.0}, examples=["conv2_2=1"])
    """Weight of each layer. "conv5_4" is taken before the activation, "relu5_4" after it. The paper's VGG22 and VGG54
    are relu2_2 and relu5_4; features carry more information before the activation."""
    distance: FeatureDistance = "mse"
    """Distance between features, averaged over a layer."""
    scale: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Factor on features; the paper uses 1/12.75 = 0.0784 for the published weights."""
    pooling: Pooling = Field("max", exclude_if=lambda value: value == "max")  # so that older names stay
    """Pooling of the features: "max" keeps the largest of 2x2 values, as the network was trained; "blurred" takes the
    largest of 2x2 values around every position, and blurs before it drops every second one (Zhang 2019,
    arXiv:1904.11486), so that no phase of the pixels is favoured."""
    shift: int = Field(0, ge=0, le=8, exclude_if=lambda value: value == 0)
    """Most pixels by which both images are shifted, at random for each patch, before they are compared; 3 lets the
    network's pooling meet all phases of a fourfold enlargement. Borders that leave the images are cut off."""
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
            try:
                layer_index(self.network, layer)
            except ValueError as error:
                raise ValueError(f"train.perceptual.layers names {layer}, but {error}") from None
        return self

    def smallest_side(self) -> int:
        """Side in pixels of the smallest images whose features can be compared: every pooling halves them."""
        deepest = max(layer_index(self.network, layer) for layer in self.layers)
        return int(2 ** sum(name.startswith("pool") for name in _names(self.network)[: deepest + 1])) + self.shift

    def pretrained(self) -> Pretrained:
        """The weights of the VGG network."""
        select = partial(deferred("sr_model.terms.perceptual:select"), self)
        return Pretrained(self.network, self.weights, "train.perceptual.weights", tuple(sorted(self.layers)), select)


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


def _names(network: Network) -> list[str]:
    names = []
    for block, count in enumerate(CONVOLUTIONS[network], start=1):
        for i in range(1, count + 1):
            names += [f"conv{block}_{i}", f"relu{block}_{i}"]
        names.append(f"pool{block}")
    return names
