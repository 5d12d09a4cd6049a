"""Upscale an image of any size in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sr_model.networks.super_resolver import SuperResolver


@torch.no_grad()
def tiles(
    net: SuperResolver, height: int, width: int, read: Callable[[slice, slice], Tensor], tile: int = 256
) -> Iterator[tuple[int, int, Tensor]]:
    """Upscale an image in tiles that overlap by the receptive field, so no seam shows.

    Args:
        net: network with BatchNorm in eval mode.
        height: LR pixels.
        width: LR pixels.
        read: returns a part of the LR image, (B, 3, rows, columns).
        tile: LR pixels, side of a tile without its overlap.

    Yields:
        Row and column in the upscaled image, and the pixels (B, 3, rows, columns) that start there, float32. Together
        the tiles equal the untiled image up to rounding.
    """
    scale, margin = net.scale, net.receptive_radius
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            bottom, right = min(top + tile, height), min(left + tile, width)
            y0, x0 = max(top - margin, 0), max(left - margin, 0)
            rows, columns = slice(y0, min(bottom + margin, height)), slice(x0, min(right + margin, width))
            y, x = (top - y0) * scale, (left - x0) * scale
            sr = net(read(rows, columns)).float()
            yield top * scale, left * scale, sr[..., y : y + (bottom - top) * scale, x : x + (right - left) * scale]
