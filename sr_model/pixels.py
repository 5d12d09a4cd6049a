"""Images as 8-bit arrays, and as tensors of a network."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Pixels = npt.NDArray[np.uint8]
"""(H, W, C) or (n, H, W, C) uint8, C channels last: 3 for RGB, 1 for grey."""


def to_unit(images: Pixels, device: torch.device, orientation: npt.NDArray[np.uint8] | None = None) -> Tensor:
    """Convert images to a tensor for a network.

    Args:
        images: (n, h, w, 3) uint8.
        device: the device of the result.
        orientation: (n,) uint8, bits that mirror and turn square images: 1 swaps left and right, then 2 swaps top and
            bottom, then 4 swaps the axes.

    Returns:
        (n, 3, h, w) in [0, 1] of torch's default dtype, in channels_last layout.
    """
    x = torch.from_numpy(images).to(device, non_blocking=True)
    if orientation is not None and orientation.any():
        how = torch.from_numpy(orientation).to(device, non_blocking=True)[:, None, None, None]
        x = torch.where((how & 1).bool(), x.flip(2), x)
        x = torch.where((how & 2).bool(), x.flip(1), x)
        x = torch.where((how & 4).bool(), x.transpose(1, 2), x)
    return x.permute(0, 3, 1, 2).to(torch.get_default_dtype()).div_(255)


def to_eight_bit(image: Tensor) -> Pixels:
    """Round and clamp an image (C, h, w), nominally in [0, 1], to (h, w, C) uint8."""
    eight_bit: Pixels = image.mul(255).round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return eight_bit
