"""Upscale a picture of any size in bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sr_model.srresnet import SRResNet


def receptive_radius(net: SRResNet) -> int:
    """LR pixels that an output pixel sees to each side."""
    blocks = len(net.body)
    # 9x9 head: 4; two 3x3 a block; one 3x3 before the long skip; then the 3x3 of the stages and the 9x9 tail, whose
    # pixels are already smaller: less than 1 + 1 for the stages and 2 for the tail.
    return 4 + 2 * blocks + 1 + 2 + 2


@torch.no_grad()
def upscale(net: SRResNet, lr: Tensor, tile: int = 256) -> Tensor:
    """Upscale (B, 3, h, w) to (B, 3, s*h, s*w), tile by tile where a side exceeds `tile` LR pixels.

    Tiles overlap by the receptive field, so that the result equals the untiled one up to rounding; BatchNorm must be
    in eval mode for that. Values as in `SRResNet.forward`.
    """
    height, width = lr.shape[-2:]
    if height <= tile and width <= tile:
        return _forward(net, lr)
    scale, margin = net.scale, receptive_radius(net)
    out = torch.empty((*lr.shape[:-2], height * scale, width * scale), dtype=torch.float32, device=lr.device)
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            bottom, right = min(top + tile, height), min(left + tile, width)
            y0, x0 = max(top - margin, 0), max(left - margin, 0)
            sr = _forward(net, lr[..., y0 : bottom + margin, x0 : right + margin])
            y, x = (top - y0) * scale, (left - x0) * scale
            out[..., top * scale : bottom * scale, left * scale : right * scale] = sr[
                ..., y : y + (bottom - top) * scale, x : x + (right - left) * scale
            ]
    return out


def _forward(net: nn.Module, lr: Tensor) -> Tensor:
    sr: Tensor = net(lr)
    return sr.float()
