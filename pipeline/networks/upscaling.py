"""Upscale 8-bit images with a network as it is, in tiles."""

from __future__ import annotations

from torch import Tensor

from pipeline.networks.devices import tf32
from sr_model.networks.super_resolver import SuperResolver
from sr_model.noise import beside_noise
from sr_model.pixels import Pixels, to_eight_bit, to_input, to_pixels, to_tensor
from sr_model.tiling import TILE, affordable_side, tiles

_SMALLEST_TILE = 32


def tile_within(net: SuperResolver, memory_mb: float | None) -> int:
    """Return the side of the tile, in LR pixels, for which so much memory suffices; `TILE` if it is not limited."""
    if memory_mb is None:
        return TILE
    return max(min(affordable_side(memory_mb, net.receptive_radius), TILE), _SMALLEST_TILE)


def upscale_image(net: SuperResolver, lr: Pixels, tile: int = TILE) -> Pixels:
    """Upscale an image on the network's device, as `upscale` does, with arrays in the memory of the CPU.

    Args:
        net: network in eval mode, on any device.
        lr: (h, w, C) uint8, RGB or grey.
        tile: LR pixels, side of a tile.

    Returns:
        (s*h, s*w, C) uint8 with the channels of `lr`.
    """
    return to_pixels(upscale(net, to_tensor(lr), tile))


@tf32(False)
def upscale(net: SuperResolver, lr: Tensor, tile: int = TILE) -> Tensor:
    """Upscale an 8-bit image in tiles, in fp32.

    Validation uses it with a network in training. `upscalers.NetworkUpscaler` is faster and serves everything else. The
    network's device needs memory for one tile, and the device of `lr` holds the result.

    Args:
        net: network in eval mode, on any device.
        lr: (3, h, w) uint8 RGB; or (1, h, w) uint8 grey, which enters as three equal channels and is averaged back. It
            may be on another device than the network.
        tile: LR pixels, side of a tile.

    Returns:
        (C, s*h, s*w) uint8 with the channels of `lr` and on its device; in memory, the channels of a pixel are
        neighbours.
    """
    channels, height, width = lr.shape
    device, seed = next(net.parameters()).device, net.sampling.seed if net.sampling else 0

    def read(rows: slice, columns: slice) -> Tensor:
        return beside_noise(to_input(lr[:, rows, columns].to(device)), seed, net.noise_channels, rows, columns)

    out = lr.new_empty(height * net.scale, width * net.scale, channels).permute(2, 0, 1)
    for top, left, sr in tiles(net, height, width, read, tile):
        part = to_eight_bit(sr[0].mean(dim=0, keepdim=True) if channels == 1 else sr[0])
        out[:, top : top + part.shape[1], left : left + part.shape[2]] = part
    return out
