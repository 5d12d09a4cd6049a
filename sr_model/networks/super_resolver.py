"""The base class of all networks: an upsampler of RGB images."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

from torch import Tensor, nn

from sr_model.networks.sampling import Sampling


class SuperResolver(nn.Module, ABC):
    """A network that enlarges RGB images by an integer factor."""

    scale: int
    """Factor by which height and width grow."""
    recompute: bool = False
    """Activation checkpointing in training mode (Chen et al. 2016, arXiv:1604.06174): keep few activations and compute
    the others again in the backward pass. Gradients stay the same; memory shrinks and time grows."""

    sampling: Sampling | None = None
    """How a network that draws one of the possible images does so; it may be replaced. None for a network that computes
    a single image."""
    noise_channels: int = 0
    """Values of noise for each LR pixel that `forward` and `for_inference` take as channels behind those of the image.
    0 for a network that samples nothing."""

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

    def rate_factors(self) -> dict[nn.Parameter, float]:
        """Factors of the learning rate of parameters that learn at another rate than the rest; by default none do."""
        return {}

    def started(self) -> nn.Module:
        """Return the module whose weights `train.init_from` names: the network itself, or a part that stays frozen."""
        return self

    def for_inference(self) -> nn.Module:
        """Return a network of its own that computes the same as this one in eval mode, up to rounding, and faster.

        A subclass returns plain layers (`sr_model.networks.inference`) if it can. They are exported as they are, and
        enlarge images in strips of rows. By default this is a copy, which enlarges images in tiles.

        Returns:
            A module in eval mode with the input and output of `forward`, on the same device and of the same dtype. It
            shares no tensor with this network, and its parameters need no gradients.
        """
        return copy.deepcopy(self).eval().requires_grad_(False)


class TrunkNetwork(SuperResolver):
    """A network whose trunk computes features on the LR grid, which the rest upsamples.

    `for_inference` returns plain layers. The first `Residual` among them is the end of the trunk, and the last two are
    a convolution and a pixel shuffle.
    """

    channels: int
    """Number of features C."""

    @abstractmethod
    def features(self, lr: Tensor) -> Tensor:
        """Compute the features (B, C, h, w) of `lr` (B, 3, h, w)."""

    @abstractmethod
    def upsample_features(self, features: Tensor) -> Tensor:
        """Compute the image (B, 3, s*h, s*w) of features (B, C, h, w)."""

    def forward(self, lr: Tensor) -> Tensor:
        """Enlarge `lr` (B, 3, h, w) to (B, 3, s*h, s*w); RGB, nominally in [0, 1], the output is not clamped."""
        return self.upsample_features(self.features(lr))
