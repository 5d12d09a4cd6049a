"""The form of a network that only computes: a row of plain layers.

A network for inference is an `nn.Sequential` of `nn.Conv2d`, `nn.ReLU`, `nn.PReLU`, `nn.PixelShuffle` and `Residual`.
Exporters write these layers as they are, and `sr_model.streaming` computes them in strips of rows. Networks that sample
also have `nn.PixelUnshuffle`, `Step`, `Beside` and `Select`.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class Residual(nn.Module):
    """x + body(x), all (B, C, h, w).

    Args:
        *layers: the layers of the body.
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        y: Tensor = x + self.body(x)
        return y


class Step(nn.Module):
    """gain * x + body(x) in the first channels, and x in the others.

    Args:
        gain: factor of the first channels.
        *layers: the layers of the body, which map (B, C, h, w) to (B, D, h, w) with D at most C.
    """

    def __init__(self, gain: float, *layers: nn.Module) -> None:
        super().__init__()
        self.gain = gain
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        y: Tensor = self.body(x)
        count = y.shape[1]
        return torch.cat([torch.add(y, x[:, :count], alpha=self.gain), x[:, count:]], dim=1)


class Beside(nn.Module):
    """x, and behind its channels those of body(x).

    Args:
        *layers: the layers of the body, which map (B, C, h, w) to (B, D, h, w).
    """

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C + D, h, w)."""
        return torch.cat([x, self.body(x)], dim=1)


class Select(nn.Module):
    """Some channels, in another order.

    Args:
        *parts: the channels to keep.
    """

    def __init__(self, *parts: slice) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, D, h, w)."""
        return torch.cat([x[:, part] for part in self.parts], dim=1)


def fold_norm(conv: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    """Return one convolution that equals a convolution and the BatchNorm behind it in eval mode, up to rounding.

    Args:
        conv: the convolution; it stays as it is.
        norm: `nn.BatchNorm2d`, or `nn.Identity`.
    """
    if isinstance(norm, nn.BatchNorm2d):
        exact = copy.deepcopy(conv).double().eval()  # so that rounding happens once
        return fuse_conv_bn_eval(exact, copy.deepcopy(norm).double().eval()).to(conv.weight.dtype)
    return copy.deepcopy(conv).eval()


def convolution(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """Make a convolution of a weight (D, C, k, k) with odd k and a bias (D,), which keeps the size of images."""
    side = weight.shape[-1]
    with torch.device("meta"):
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], side, padding=side // 2)
    conv.weight, conv.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
    return conv
