"""The base class of all networks: an upsampler of RGB images."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


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
