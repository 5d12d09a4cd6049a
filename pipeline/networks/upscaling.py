"""Upscale 8-bit images with a network, in tiles."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch

from pipeline import terminal
from sr_model.networks.super_resolver import SuperResolver
from sr_model.pixels import Pixels, to_eight_bit, to_unit
from sr_model.tiling import tiles


def upscale_image(net: SuperResolver, lr: Pixels, tile: int = 256, progress: bool = False) -> Pixels:
    """Upscale an 8-bit image in tiles. Beside the result, memory depends on the tile alone: about 1 GB for 256.

    Args:
        net: network in eval mode, on any device.
        lr: (h, w, 3) uint8 RGB; or (h, w, 1) uint8 grey, which enters as three equal channels and is averaged back.
        tile: LR pixels, side of a tile.
        progress: whether to show how many tiles are done, if there are several.

    Returns:
        (s*h, s*w, C) uint8 with the channels of `lr`.
    """
    height, width, channels = lr.shape
    device = next(net.parameters()).device

    def read(rows: slice, columns: slice) -> torch.Tensor:
        return to_unit(np.repeat(lr[rows, columns], 3 // channels, axis=2)[None], device)

    out = np.empty((height * net.scale, width * net.scale, channels), np.uint8)
    count = -(-height // tile) * -(-width // tile)
    parts = tiles(net, height, width, read, tile)
    shown = terminal.stage("upscale", total=count, unit="tiles") if progress and count > 1 else nullcontext()
    with shown as stage:
        for done, (top, left, sr) in enumerate(parts, start=1):
            part = to_eight_bit(sr[0].mean(dim=0, keepdim=True) if channels == 1 else sr[0])
            out[top : top + part.shape[0], left : left + part.shape[1]] = part
            if stage:
                stage.update(done)
    return out
