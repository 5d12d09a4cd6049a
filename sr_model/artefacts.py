"""The artefact loss of LDL (Liang et al. 2022, "Details or Artifacts", arXiv:2203.09195)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_WINDOW = 7
"""Side of the window in which errors vary, in pixels."""
_POWER = 1 / 5
"""Exponent of the variance of a whole patch."""


def artefact_loss(sr: Tensor, averaged: Tensor, hr: Tensor) -> Tensor:
    """Absolute error of each image, (B,), weighted by how likely each pixel is an artefact (equations 2 to 6).

    A texture that is wrong by a little everywhere and an artefact differ in how the error varies: the weight is the
    variance of the error in a window, times a power of that in the patch. It is zero where the network errs less than
    the moving average of its weights does, because there the network is on its way to the truth. No gradient flows
    through the weights.

    Args:
        sr: output of the network, (B, 3, H, W), nominally in [0, 1].
        averaged: output of the moving average of the network, of the same shape.
        hr: ground truth of the same shape.
    """
    with torch.no_grad():
        error = (hr - sr).abs().sum(1, keepdim=True)
        weights = _local_variance(error) * error.flatten(1).var(1)[:, None, None, None] ** _POWER
        weights *= error >= (hr - averaged).abs().sum(1, keepdim=True)
    return (weights * (sr - hr).abs()).flatten(1).mean(1)


def _local_variance(x: Tensor) -> Tensor:
    """Unbiased variance of (B, 1, H, W) in the window around each pixel, with mirrored borders."""
    edge = _WINDOW // 2
    padded = F.pad(x, (edge, edge, edge, edge), mode="reflect")
    mean = F.avg_pool2d(padded, _WINDOW, stride=1)
    count = _WINDOW**2
    variance: Tensor = (F.avg_pool2d(padded.square(), _WINDOW, stride=1) - mean.square()) * (count / (count - 1))
    return variance.clamp_(min=0)
