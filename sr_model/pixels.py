"""Images as 8-bit arrays, and as tensors of a network."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Pixels = npt.NDArray[np.uint8]
"""(H, W, C) or (n, H, W, C) uint8, C channels last: 3 for RGB, 1 for grey."""


def to_unit(images: Pixels | Tensor, device: torch.device, orientation: Tensor | None = None) -> Tensor:
    """Convert images to a tensor for a network. Nothing waits for the device.

    Args:
        images: (n, h, w, 3) uint8.
        device: the device of the result.
        orientation: (n,) int64, bits that mirror and turn square images: 1 swaps left and right, then 2 swaps top and
            bottom, then 4 swaps the axes.

    Returns:
        (n, 3, h, w) in [0, 1] of torch's default dtype, in channels_last layout.
    """
    x = torch.as_tensor(images).to(device, non_blocking=True)
    if orientation is not None and (orientation.device.type != "cpu" or orientation.any()):
        count, side = x.shape[:2]
        source = _turned_pixels(side, device)[orientation.to(device, non_blocking=True)]
        source += torch.arange(0, count * side * side, side * side, device=device)[:, None]
        x = x.flatten(0, 2).index_select(0, source.flatten()).view_as(x)
    return x.permute(0, 3, 1, 2).to(torch.get_default_dtype()).div_(255)


@lru_cache(maxsize=16)
def _turned_pixels(side: int, device: torch.device) -> Tensor:
    """Number of the pixel that each pixel of a square image comes from in each orientation, (8, side * side)."""
    turned = []
    for orientation in range(8):
        pixels = np.arange(side * side).reshape(side, side)
        pixels = pixels[:, ::-1] if orientation & 1 else pixels
        pixels = pixels[::-1] if orientation & 2 else pixels
        turned.append(pixels.T if orientation & 4 else pixels)
    return torch.from_numpy(np.stack(turned).reshape(8, -1)).to(device)


def to_tensor(image: Pixels, device: torch.device | str = "cpu") -> Tensor:
    """Convert an image (h, w, C) uint8 to a tensor (C, h, w) uint8 on a device."""
    return torch.from_numpy(np.require(image, requirements=["C", "W"])).to(device).permute(2, 0, 1)


def to_pixels(image: Tensor) -> Pixels:
    """Convert a tensor (C, h, w) uint8 on any device to an image (h, w, C) uint8."""
    pixels: Pixels = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
    return pixels


def to_input(image: Tensor) -> Tensor:
    """Convert an image (C, h, w) uint8 to the input of a network on the same device.

    Returns:
        (1, 3, h, w) in [0, 1] of torch's default dtype, in channels_last layout; a single channel is repeated.
    """
    return to_unit(image.permute(1, 2, 0).expand(-1, -1, 3)[None].contiguous(), image.device)


def to_eight_bit(image: Tensor) -> Tensor:
    """Round and clamp an image of any shape, nominally in [0, 1], to uint8 on its device."""
    return image.mul(255).round_().clamp_(0, 255).to(torch.uint8)
