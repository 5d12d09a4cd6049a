"""EDSR, the residual super-resolution network without BatchNorm of Lim et al. 2017 (arXiv:1707.02921).

Shape legend: B images, C feature channels, (h, w) LR pixels, s scale, r factor of one upsampling stage.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sr_model.networks import trunk
from sr_model.networks.inference import Residual, convolution
from sr_model.networks.settings import SCALES, STAGES, EDSRSettings, Init
from sr_model.networks.super_resolver import TrunkNetwork
from sr_model.networks.upsampling import carry_colours, fuse_conv_after_shuffle


class EDSR(TrunkNetwork):
    """3x3 head, residual blocks, a long skip, PixelShuffle stages, 3x3 tail; 1.52 M parameters by default.

    Unlike the published network, it neither subtracts the mean colour of a dataset nor computes with values up to 255.

    Args:
        scale: upscaling factor, one of 2, 3, 4, 8.
        channels: feature channels C.
        blocks: residual blocks.
        residual_scale: factor of the residual branches (section 3.3 of the paper); the state dict has it as
            "residual_scale" if it is not 1.
        init: "paper" keeps PyTorch's default initialisation, as the authors' code does; "upsampler" is
            `init_as_upsampler`, which trains faster.

    Raises:
        ValueError: for a scale without a stage layout.
    """

    def __init__(
        self,
        scale: int = 4,
        channels: int = 64,
        blocks: int = 16,
        residual_scale: float = 1.0,
        init: Init = "upsampler",
    ) -> None:
        super().__init__()
        if scale not in STAGES:
            raise ValueError(f"scale is {scale}, expected one of {SCALES}")
        self.scale, self.channels = scale, channels
        self.conv_first = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(channels, residual_scale) for _ in range(blocks)))
        self.conv_body = nn.Conv2d(channels, channels, 3, padding=1)
        self.upsample = nn.ModuleList(nn.Conv2d(channels, channels * r * r, 3, padding=1) for r in STAGES[scale])
        self.conv_last = nn.Conv2d(channels, 3, 3, padding=1)
        if residual_scale != 1:
            self.register_buffer("residual_scale", torch.tensor(residual_scale))
        if init == "upsampler":
            init_as_upsampler(self)

    def features(self, lr: Tensor) -> Tensor:
        """Compute the features (B, C, h, w) behind the long skip; see `TrunkNetwork.features`."""
        y = x = self.conv_first(lr)  # (B, C, h, w)
        for block in self.body:
            y = trunk.run(block, y, self.recompute)
        features: Tensor = x + self.conv_body(y)
        return features

    def upsample_features(self, features: Tensor) -> Tensor:
        """Compute the image of features; see `TrunkNetwork.upsample_features`."""
        return trunk.run(self._upscale, features, self.recompute)

    def muon_weights(self) -> list[nn.Parameter]:
        """Weights of all convolutions but the first and the last one."""
        ends = (self.conv_first, self.conv_last)
        hidden = (module for module in self.modules() if isinstance(module, nn.Conv2d) and module not in ends)
        return [cast("nn.Parameter", conv.weight) for conv in hidden]

    @property
    def receptive_radius(self) -> int:
        """LR pixels to each side that an output pixel depends on."""
        # The head and the convolution before the long skip see 1 each, and each block has two convolutions. The stages
        # and the tail work on smaller pixels, and see less than 1 + 1 + 1/2 + ...
        return 1 + 2 * len(self.body) + 1 + 3

    @torch.no_grad()
    def for_inference(self) -> nn.Sequential:
        """Return plain layers: weights include `residual_scale`, and the last convolution comes before a shuffle."""
        branches = [Residual(*block.scaled()) for block in cast("list[ResidualBlock]", list(self.body))]
        layers = [copy.deepcopy(self.conv_first), Residual(*branches, copy.deepcopy(self.conv_body))]
        for conv, factor in zip(self.upsample, STAGES[self.scale], strict=True):
            layers += [copy.deepcopy(conv), nn.PixelShuffle(factor)]
        layers.insert(-1, convolution(*fuse_conv_after_shuffle(self.conv_last, STAGES[self.scale][-1])))
        return nn.Sequential(*layers).eval().requires_grad_(False)

    def _upscale(self, x: Tensor) -> Tensor:
        factors = STAGES[self.scale]
        *first, last = list(self.upsample)
        for conv, factor in zip(first, factors, strict=False):
            x = F.pixel_shuffle(conv(x), factor)
        # The convolution after the last shuffle is computed before it, so that no map of C channels has the full size.
        weight, bias = fuse_conv_after_shuffle(self.conv_last, factors[-1])
        return F.pixel_shuffle(F.conv2d(last(x), weight, bias, padding=1), factors[-1])


class ResidualBlock(nn.Module):
    """x + residual_scale * conv-ReLU-conv(x), all (B, C, h, w)."""

    def __init__(self, channels: int, residual_scale: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.residual_scale = residual_scale

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        y: Tensor = self.conv2(F.relu(self.conv1(x)))
        return x + y if self.residual_scale == 1 else torch.add(x, y, alpha=self.residual_scale)

    def scaled(self) -> tuple[nn.Conv2d, nn.ReLU, nn.Conv2d]:
        """Return a copy of the branch's layers that includes `residual_scale`."""
        last = copy.deepcopy(self.conv2)
        assert last.bias is not None
        last.weight.mul_(self.residual_scale)
        last.bias.mul_(self.residual_scale)
        return copy.deepcopy(self.conv1), nn.ReLU(), last


@torch.no_grad()
def init_as_upsampler(net: EDSR) -> None:
    """Initialise the network as an interpolating upsampler.

    - The first three channels carry RGB from head to tail. Head and tail have identity kernels, the body adds nothing,
      and every upsampling stage interpolates (`upsampling.carry_colours`). The other weights of the tail are random and
      near zero.
    - The last convolution of every residual branch is scaled by 0.1, as in ESRGAN (Wang et al. 2018, arXiv:1809.00219,
      section 3.1).
    - All other weights follow He et al. 2015 (arXiv:1502.01852), normal, fan-in.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    for block in net.body:
        assert isinstance(block, ResidualBlock)
        block.conv2.weight.mul_(0.1)
    net.conv_body.weight.mul_(0.1)

    rgb = torch.arange(3)
    net.conv_body.weight[rgb] = 0
    net.conv_first.weight[rgb] = 0
    net.conv_first.weight[rgb, rgb, 1, 1] = 1
    for conv, factor in zip(net.upsample, STAGES[net.scale], strict=True):
        assert isinstance(conv, nn.Conv2d)
        carry_colours(conv, factor)
    net.conv_last.weight.mul_(0.01)
    net.conv_last.weight[:, rgb] = 0
    net.conv_last.weight[rgb, rgb, 1, 1] = 1


def build(scale: int, settings: EDSRSettings) -> EDSR:
    """Build the network that settings describe; random numbers come from torch's generator."""
    return EDSR(scale, settings.channels, settings.blocks, settings.residual_scale, settings.init)


def infer(weights: Mapping[str, Tensor]) -> tuple[int, EDSRSettings]:
    """Read scale and settings off a state dict.

    Raises:
        KeyError, IndexError, ValueError, ZeroDivisionError: if the weights belong to another network.
    """
    scale, channels, blocks = trunk.measure(weights, "weight")
    settings = EDSRSettings(
        channels=channels,
        blocks=blocks,
        residual_scale=weights["residual_scale"].item() if "residual_scale" in weights else 1.0,
        init="paper",  # the weights do not tell, and replace it anyway
    )
    return scale, settings
