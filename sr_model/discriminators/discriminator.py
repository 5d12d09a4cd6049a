"""The interface between a discriminator and the rest of the project; a new one is a single file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sr_model.discriminators.settings import DiscriminatorSettings

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class DiscriminatorKind:
    """A kind of discriminator: how to configure and how to build it."""

    name: str
    """Value of `train.gan.discriminator`; its settings are the section `train.gan.NAME`."""
    settings: type[DiscriminatorSettings]
    build: Callable[[Any, int], nn.Module]
    """Make the module from an instance of `settings` and the side of a training crop in pixels. The module maps
    (B, 3, side, side), nominally in [0, 1], to logits (B, N), which are high for images that look true. Random numbers
    come from torch's generator."""
    stride: Callable[[Any], int]
    """Number of pixels that the side of a crop has to be a multiple of, under the settings."""
