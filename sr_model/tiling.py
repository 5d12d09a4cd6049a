"""Upscale an image of any size in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sr_model.srresnet import SRResNet


@torch.no_grad()
def tiles(
    net: SRResNet, height: int, width: int, read: Callable[[slice, slice], Tensor], tile: int = 256
) -> Iterator[tuple[int, int, Tensor]]:
    """Upscale an image in tiles that overlap by the receptive field, so that no seam shows.

    Args:
        net: with BatchNorm in eval mode.
        height: LR pixels.
        width: LR pixels.
        read: gives (B, 3, rows, columns) of the LR image.
        tile: LR pixels, side of a tile without its overlap.

    Yields:
        Row and column in the upscaled image, and what belongs there; together they equal the untiled image up to
        rounding.
    """
    scale, margin = net.scale, receptive_radius(net)
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            bottom, right = min(top + tile, height), min(left + tile, width)
            y0, x0 = max(top - margin, 0), max(left - margin, 0)
            rows, columns = slice(y0, min(bottom + margin, height)), slice(x0, min(right + margin, width))
            y, x = (top - y0) * scale, (left - x0) * scale
            sr = net(read(rows, columns)).float()
            yield top * scale, left * scale, sr[..., y : y + (bottom - top) * scale, x : x + (right - left) * scale]


def receptive_radius(net: SRResNet) -> int:
    """LR pixels that an output pixel sees to each side."""
    blocks = len(net.body)
    # 9x9 head: 4; two 3x3 a block; one 3x3 before the long skip; then the 3x3 of the stages and the 9x9 tail, whose
    # pixels are already smaller: less than 1 + 1 for the stages and 2 for the tail.
    return 4 + 2 * blocks + 1 + 2 + 2
