"""The interface between a network and the rest of the project; a new network is a single file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn


class NetworkSettings(BaseModel):
    """Settings of a network; every network has a subclass whose `name` is a literal that selects it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)

    name: str

    @property
    def label(self) -> str:
        """Short text that tells variants of the network apart in the names of trainings."""
        return self.name


class SuperResolver(nn.Module, ABC):
    """A network that enlarges RGB images by an integer factor."""

    scale: int
    """Factor by which height and width grow."""
    recompute: bool = False
    """Activation checkpointing in training mode (Chen et al. 2016, arXiv:1604.06174): keep few activations and compute
    the others again in the backward pass. Gradients stay the same; memory shrinks and time grows."""

    @property
    @abstractmethod
    def receptive_radius(self) -> int:
        """LR pixels to each side that an output pixel depends on."""

    @abstractmethod
    def forward(self, lr: Tensor) -> Tensor:
        """Enlarge `lr` (B, 3, h, w) to (B, 3, s*h, s*w); RGB, nominally in [0, 1], the output is not clamped."""

    @abstractmethod
    def muon_weights(self) -> list[nn.Parameter]:
        """Weights of hidden convolutions, which the Muon optimizer updates; Adam updates all others."""


@dataclass(frozen=True)
class Architecture:
    """A kind of network: how to configure it, build it, and recognise it by its weights."""

    name: str
    """Value of `model.name` in a configuration."""
    title: str
    """Name in tables and reports, such as "SRResNet"."""
    settings: type[NetworkSettings]
    scales: tuple[int, ...]
    """Upscaling factors that it supports."""
    build: Callable[[int, Any], SuperResolver]
    """Make a network from a scale and an instance of `settings`; random numbers come from torch's generator."""
    infer: Callable[[Mapping[str, Tensor]], tuple[int, NetworkSettings]]
    """Read scale and settings off a state dict. Any KeyError, IndexError, ValueError or ZeroDivisionError means that
    the weights belong to another architecture."""

    def load(self, weights: Mapping[str, Tensor]) -> SuperResolver:
        """Build the network of a state dict, in eval mode, float32.

        Shapes are compared before any memory is allocated, so a small file cannot ask for a large network.

        Raises:
            ValueError: if the weights belong to another architecture.
        """
        try:
            scale, settings = self.infer(weights)
            with torch.device("meta"):
                net = self.build(scale, settings)
            whole = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
            net.load_state_dict(whole, assign=True)
        except (KeyError, IndexError, ValueError, ZeroDivisionError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"the weights are not those of {self.title}: {reason}") from None
        return net.eval()
