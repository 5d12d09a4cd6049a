"""SRResNet with the upsampling of ESPCN: one convolution computes all sub-pixels of the image from the features.

Shape legend: B images, C feature channels, (h, w) LR pixels, s scale.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sr_model.networks import trunk
from sr_model.networks.inference import Residual
from sr_model.networks.prelu import SharedPReLU
from sr_model.networks.settings import SCALES, SRResNetDirectSettings
from sr_model.networks.srresnet import ResidualBlock
from sr_model.networks.super_resolver import TrunkNetwork
from sr_model.networks.upsampling import carry_colours


class SRResNetDirect(TrunkNetwork):
    """SRResNet without BatchNorm whose features become the image in one 3x3 convolution and one pixel shuffle.

    At x4, the upsampling stages and the 9x9 tail make up almost half of SRResNet's multiplications. With as many
    blocks, this network needs 57 % of them, and has 1.26 M instead of 1.55 M parameters. Its tail is that of ESPCN (Shi
    et al. 2016, arXiv:1609.05158).

    Args:
        scale: upscaling factor, one of 2, 3, 4, 8.
        channels: feature channels C.
        blocks: residual blocks.

    Raises:
        ValueError: for another scale.
    """

    def __init__(self, scale: int = 4, channels: int = 64, blocks: int = 16) -> None:
        super().__init__()
        if scale not in SCALES:
            raise ValueError(f"scale is {scale}, expected one of {SCALES}")
        self.scale, self.channels = scale, channels
        self.conv_first = nn.Conv2d(3, channels, 9, padding=4)
        self.act_first = SharedPReLU()
        self.body = nn.Sequential(*(ResidualBlock(channels, batch_norm=False) for _ in range(blocks)))
        self.conv_body = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_last = nn.Conv2d(channels, 3 * scale**2, 3, padding=1)
        self._init_as_upsampler()

    def features(self, lr: Tensor) -> Tensor:
        """Compute the features (B, C, h, w) behind the long skip; see `TrunkNetwork.features`."""
        y = x = self.act_first(self.conv_first(lr))  # (B, C, h, w)
        for block in self.body:
            y = trunk.run(block, y, self.recompute)
        features: Tensor = x + self.conv_body(y)
        return features

    def upsample_features(self, features: Tensor) -> Tensor:
        """Compute the image of features; see `TrunkNetwork.upsample_features`."""
        return F.pixel_shuffle(self.conv_last(features), self.scale)

    def muon_weights(self) -> list[nn.Parameter]:
        """Weights of all convolutions but the first and the last one."""
        blocks = cast("list[ResidualBlock]", list(self.body))
        hidden = [conv for block in blocks for conv in (block.conv1, block.conv2)]
        return [cast("nn.Parameter", conv.weight) for conv in (*hidden, self.conv_body)]

    @property
    def receptive_radius(self) -> int:
        """LR pixels to each side that an output pixel depends on."""
        return 4 + 2 * len(self.body) + 1 + 1  # head, blocks, the convolution before the long skip, tail

    @torch.no_grad()
    def for_inference(self) -> nn.Sequential:
        """Return plain layers."""
        blocks = cast("list[ResidualBlock]", list(self.body))
        branches = [Residual(*map(copy.deepcopy, (block.conv1, block.act, block.conv2))) for block in blocks]
        trunk_layers = Residual(*branches, copy.deepcopy(self.conv_body))
        head = copy.deepcopy(self.conv_first), copy.deepcopy(self.act_first)
        layers = nn.Sequential(*head, trunk_layers, copy.deepcopy(self.conv_last), nn.PixelShuffle(self.scale))
        return layers.eval().requires_grad_(False)

    @torch.no_grad()
    def _init_as_upsampler(self) -> None:
        """Initialise the network as an interpolating upsampler, as `srresnet.init_as_upsampler` does.

        The first three channels carry RGB to the tail, which interpolates them (`upsampling.carry_colours`). The other
        weights of the tail are random and near zero.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=0.25)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        rgb = torch.arange(3)
        for block in cast("list[ResidualBlock]", list(self.body)):
            block.conv2.weight.mul_(0.1)
        self.conv_body.weight.mul_(0.1)
        self.conv_body.weight[rgb] = 0
        self.conv_first.weight[rgb] = 0
        self.conv_first.weight[rgb, rgb, 4, 4] = 1
        near_zero = 0.01 * self.conv_last.weight
        near_zero[:, rgb] = 0
        carry_colours(self.conv_last, self.scale)
        self.conv_last.weight.add_(near_zero)


def build(scale: int, settings: SRResNetDirectSettings) -> SRResNetDirect:
    """Build the network that settings describe; random numbers come from torch's generator."""
    return SRResNetDirect(scale, settings.channels, settings.blocks)


def infer(weights: Mapping[str, Tensor]) -> tuple[int, SRResNetDirectSettings]:
    """Read scale and settings off a state dict.

    Raises:
        KeyError, IndexError, ValueError, ZeroDivisionError: if the weights belong to another network.
    """
    scale = math.isqrt(weights["conv_last.weight"].shape[0] // 3)
    channels, blocks = trunk.measure_body(weights)
    return scale, SRResNetDirectSettings(channels=channels, blocks=blocks)
