"""SRResNet, the residual super-resolution network of Ledig et al. 2017 (arXiv:1609.04802).

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
from sr_model.networks.inference import Residual, convolution, fold_norm
from sr_model.networks.prelu import SharedPReLU
from sr_model.networks.settings import SCALES, STAGES, Init, SRResNetSettings
from sr_model.networks.super_resolver import TrunkNetwork
from sr_model.networks.upsampling import carry_colours, fuse_conv_after_shuffle


class SRResNet(TrunkNetwork):
    """9x9 head, residual blocks, a long skip, PixelShuffle stages, 9x9 tail; 1.55 M parameters by default.

    Args:
        scale: upscaling factor, one of 2, 3, 4, 8.
        channels: feature channels C.
        blocks: residual blocks.
        batch_norm: whether BatchNorm follows the convolutions of the body.
        init: "paper" keeps PyTorch's default initialisation, because the paper names none; "upsampler" is
            `init_as_upsampler`, which trains faster and stays stable without BatchNorm.

    Raises:
        ValueError: for a scale without a stage layout.
    """

    def __init__(
        self,
        scale: int = 4,
        channels: int = 64,
        blocks: int = 16,
        batch_norm: bool = True,
        init: Init = "upsampler",
    ) -> None:
        super().__init__()
        if scale not in STAGES:
            raise ValueError(f"scale is {scale}, expected one of {SCALES}")
        self.scale, self.channels = scale, channels
        self.conv_first = nn.Conv2d(3, channels, 9, padding=4)
        self.act_first = SharedPReLU()
        self.body = nn.Sequential(*(ResidualBlock(channels, batch_norm) for _ in range(blocks)))
        self.conv_body = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn_body = nn.BatchNorm2d(channels) if batch_norm else nn.Identity()
        self.upsample = nn.ModuleList(UpsampleStage(channels, r) for r in STAGES[scale])
        self.conv_last = nn.Conv2d(channels, 3, 9, padding=4)
        if init == "upsampler":
            init_as_upsampler(self)

    def features(self, lr: Tensor) -> Tensor:
        """Compute the features (B, C, h, w) behind the long skip; see `TrunkNetwork.features`."""
        y = x = self.act_first(self.conv_first(lr))  # (B, C, h, w)
        for block in self.body:
            y = trunk.run(block, y, self.recompute)
        features: Tensor = x + self.bn_body(self.conv_body(y))
        return features

    def upsample_features(self, features: Tensor) -> Tensor:
        """Compute the image of features; see `TrunkNetwork.upsample_features`."""
        return trunk.run(self._upscale, features, self.recompute)

    def muon_weights(self) -> list[nn.Parameter]:
        """Weights of the 3x3 convolutions: all but the first and the last layer."""
        convolutions = (module for module in self.modules() if isinstance(module, nn.Conv2d))
        return [cast("nn.Parameter", conv.weight) for conv in convolutions if conv.kernel_size == (3, 3)]

    @property
    def receptive_radius(self) -> int:
        """LR pixels to each side that an output pixel depends on."""
        # The 9x9 head sees 4; each block has two 3x3 convolutions; one more 3x3 comes before the long skip. The stages
        # and the 9x9 tail work on smaller pixels: less than 1 + 1 for the stages and 2 for the tail.
        return 4 + 2 * len(self.body) + 1 + 2 + 2

    @torch.no_grad()
    def for_inference(self) -> nn.Sequential:
        """Return plain layers: BatchNorm is folded into convolutions, and the last shuffle comes last."""
        blocks = cast("list[ResidualBlock]", list(self.body))
        branches = [
            Residual(fold_norm(block.conv1, block.bn1), copy.deepcopy(block.act), fold_norm(block.conv2, block.bn2))
            for block in blocks
        ]
        layers = [copy.deepcopy(self.conv_first), copy.deepcopy(self.act_first)]
        layers.append(Residual(*branches, fold_norm(self.conv_body, self.bn_body)))
        *first, last = cast("list[UpsampleStage]", list(self.upsample))
        for stage in first:
            layers += [copy.deepcopy(stage.conv), copy.deepcopy(stage.act), nn.PixelShuffle(stage.factor)]
        tail = convolution(*fuse_conv_after_shuffle(self.conv_last, last.factor))
        layers += [copy.deepcopy(last.conv), copy.deepcopy(last.act), tail, nn.PixelShuffle(last.factor)]
        return nn.Sequential(*layers).eval().requires_grad_(False)

    def _upscale(self, x: Tensor) -> Tensor:
        *first, last = cast("list[UpsampleStage]", list(self.upsample))
        for stage in first:
            x = F.pixel_shuffle(stage(x), stage.factor)
        x = last(x)  # (B, C*r*r, s/r*h, s/r*w)
        weight, bias = fuse_conv_after_shuffle(self.conv_last, last.factor)
        return F.pixel_shuffle(F.conv2d(x, weight, bias, padding=2), last.factor)


class ResidualBlock(nn.Module):
    """x + conv-[BN]-PReLU-conv-[BN](x), all (B, C, h, w)."""

    def __init__(self, channels: int, batch_norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels) if batch_norm else nn.Identity()
        self.act = SharedPReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels) if batch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        y: Tensor = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        return x + y


class UpsampleStage(nn.Module):
    """Convolution and PReLU, (B, C, h, w) to (B, C*r*r, h, w), before a pixel shuffle by r.

    The paper puts PReLU after the shuffle. With one shared slope the two commute, and in this order the output of the
    last stage can feed the output convolution directly.
    """

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.conv = nn.Conv2d(channels, channels * factor * factor, 3, padding=1)
        self.act = SharedPReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C*r*r, h, w)."""
        y: Tensor = self.act(self.conv(x))
        return y


@torch.no_grad()
def init_as_upsampler(net: SRResNet) -> None:
    """Initialise the network as an interpolating upsampler.

    - The first three channels carry RGB from head to tail. Head and tail have identity kernels, the body adds nothing,
      and every upsampling stage interpolates the sub-pixel positions quadratically (three-point Lagrange). The other
      weights of the tail are random and near zero.
    - The other upsampling kernels are equal over the r*r sub-pixels, which avoids checkerboards (ICNR; Aitken et al.
      2017, arXiv:1707.02937).
    - The last convolution of every residual branch is scaled by 0.1, as in ESRGAN (Wang et al. 2018, arXiv:1809.00219,
      section 3.1). BatchNorm would undo that, so its gain is scaled instead, as Goyal et al. 2017 (arXiv:1706.02677)
      do with zero.
    - All other weights follow He et al. 2015 (arXiv:1502.01852), normal, fan-in.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, a=0.25)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    for block in net.body:
        assert isinstance(block, ResidualBlock)
        _scale_branch(block.conv2, block.bn2)
    _scale_branch(net.conv_body, net.bn_body)

    rgb = torch.arange(3)
    (net.bn_body if isinstance(net.bn_body, nn.BatchNorm2d) else net.conv_body).weight[rgb] = 0
    net.conv_first.weight[rgb] = 0
    net.conv_first.weight[rgb, rgb, 4, 4] = 1
    for stage in net.upsample:
        assert isinstance(stage, UpsampleStage)
        carry_colours(stage.conv, stage.factor)
    net.conv_last.weight.mul_(0.01)
    net.conv_last.weight[:, rgb] = 0
    net.conv_last.weight[rgb, rgb, 4, 4] = 1


def _scale_branch(conv: nn.Conv2d, norm: nn.Module) -> None:
    target = norm if isinstance(norm, nn.BatchNorm2d) else conv
    target.weight.mul_(0.1)


def build(scale: int, settings: SRResNetSettings) -> SRResNet:
    """Build the network that settings describe; random numbers come from torch's generator."""
    return SRResNet(scale, settings.channels, settings.blocks, settings.batch_norm, settings.init)


def infer(weights: Mapping[str, Tensor]) -> tuple[int, SRResNetSettings]:
    """Read scale and settings off a state dict.

    Raises:
        KeyError, IndexError, ValueError, ZeroDivisionError: if the weights belong to another network.
    """
    scale, channels, blocks = trunk.measure(weights, "conv.weight")
    settings = SRResNetSettings(
        channels=channels,
        blocks=blocks,
        batch_norm="bn_body.weight" in weights,
        init="paper",  # the weights do not tell, and replace it anyway
    )
    return scale, settings
