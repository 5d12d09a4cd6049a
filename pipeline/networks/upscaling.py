"""Enlarge images with a network."""

from __future__ import annotations

import numpy as np
import torch
from tqdm import tqdm

from sr_model.pixels import Pixels, to_eight_bit, to_unit
from sr_model.srresnet import SRResNet
from sr_model.tiling import tiles


def upscale_image(net: SRResNet, lr: Pixels, tile: int = 256, progress: bool = False) -> Pixels:
    """Upscale an 8-bit image in tiles; beside the result, memory depends on these alone: about a GB for 256.

    Args:
        net: in eval mode, on any device.
        lr: (h, w, 3) uint8; or (h, w, 1), which is fed as three equal channels and averaged back to one.
        tile: LR pixels, side of a tile.
        progress: whether to show it on a terminal.

    Returns:
        (s*h, s*w, C) uint8.
    """
    height, width, channels = lr.shape
    device = next(net.parameters()).device

    def read(rows: slice, columns: slice) -> torch.Tensor:
        return to_unit(np.repeat(lr[rows, columns], 3 // channels, axis=2)[None], device)

    out = np.empty((height * net.scale, width * net.scale, channels), np.uint8)
    count = -(-height // tile) * -(-width // tile)
    parts = tiles(net, height, width, read, tile)
    for top, left, sr in tqdm(parts, total=count, unit="tile", disable=None if progress else True):
        part = to_eight_bit(sr[0].mean(dim=0, keepdim=True) if channels == 1 else sr[0])
        out[top : top + part.shape[0], left : left + part.shape[1]] = part
    return out
