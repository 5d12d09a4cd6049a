"""Divide images into parts that are computed one after the other, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from sr_model.networks.super_resolver import SuperResolver

TILE = 256
"""Side of a tile in LR pixels, without its overlap."""
_TILE_MB = 1100
"""Memory that the full-size SRResNet at x4 needs for such a tile in fp32."""


class Span(NamedTuple):
    """LR rows or columns that are computed together."""

    own: slice
    """Those whose result is kept."""
    seen: slice
    """Those that the result depends on: `own`, and a margin at each end."""

    def kept(self, scale: int) -> slice:
        """Return the part of the enlarged `seen` that belongs to `own`."""
        return slice((self.own.start - self.seen.start) * scale, (self.own.stop - self.seen.start) * scale)


def spans(length: int, side: int, margin: int) -> list[Span]:
    """Divide an axis of `length` pixels into parts of `side` pixels, which see `margin` pixels more at each end."""
    ends = [(start, min(start + side, length)) for start in range(0, length, side)]
    return [Span(slice(a, b), slice(max(a - margin, 0), min(b + margin, length))) for a, b in ends]


def affordable_side(memory_mb: float, margin: int) -> int:
    """Return the side of a tile, in LR pixels without its overlap, for which so much memory suffices.

    Args:
        memory_mb: MB that a network of the size of SRResNet may use.
        margin: LR pixels by which the tile overlaps its neighbours. The result is negative if they need more memory.
    """
    return int((TILE + 2 * margin) * math.sqrt(memory_mb / _TILE_MB)) - 2 * margin


@torch.no_grad()
def tiles(
    net: SuperResolver, height: int, width: int, read: Callable[[slice, slice], Tensor], tile: int = TILE
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
    for rows, columns in product(spans(height, tile, margin), spans(width, tile, margin)):
        sr = net(read(rows.seen, columns.seen)).float()
        top, left = rows.own.start * scale, columns.own.start * scale
        yield top, left, sr[..., rows.kept(scale), columns.kept(scale)]
