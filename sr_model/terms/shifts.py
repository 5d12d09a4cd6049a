"""Random shifts of images before they are compared, so that a network with a grid of its own meets all phases of it."""

from __future__ import annotations

import torch
from torch import Tensor

from sr_model.noise import hashed, uniform

_ROWS, _COLUMNS = -1, -2
"""Axes among what is hashed; the noise of samples has indices from 0 on."""


def shift_together(sr: Tensor, hr: Tensor, most: int, seed: int, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Shift both images of each sample by the same random number of pixels along each axis.

    The shifts depend on the seed and the positions alone, so they are the same after a resume and on any number of
    ranks.

    Args:
        sr: (B, C, H, W), larger than `most` along each axis.
        hr: the same shape.
        most: largest shift in pixels.
        seed: seed of the training.
        positions: (B,) int64, positions of the samples in the order of the whole training.

    Returns:
        Parts of both images, (B, C, H - most, W - most), that begin 0 to `most` pixels from the top and the left.
    """
    height, width = sr.shape[-2] - most, sr.shape[-1] - most
    device = positions.device

    def begin(axis: int) -> Tensor:
        return (uniform(hashed(seed, positions, axis, device=device)) * (most + 1)).long()[:, None]

    rows = (begin(_ROWS) + torch.arange(height, device=device))[:, None, :, None]
    columns = (begin(_COLUMNS) + torch.arange(width, device=device))[:, None, None, :]
    sample = torch.arange(len(sr), device=device)[:, None, None, None]
    channel = torch.arange(sr.shape[1], device=device)[None, :, None, None]
    part = (sample, channel, rows, columns)
    return sr[part], hr[part]
