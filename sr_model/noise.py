"""Random numbers as pure functions of where they are used.

A number depends on integers alone, such as a seed and the place of a pixel. So tiles of an image agree about its noise,
and a sample of a training gets the same noise on any number of ranks. Integers are hashed with SplitMix64 (Steele, Lea
and Flood, OOPSLA 2014).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """Return the 64-bit integer of the same bits that PyTorch, which has no arithmetic for uint64, can take."""
    return value - 2**64 if value >= 2**63 else value


_GAMMA, _FIRST, _SECOND = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def hashed(*parts: int | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Hash integers to one of 64 bits, elementwise.

    Args:
        *parts: integers in [-2^63, 2^63), or int64 tensors on one device whose shapes can be broadcast.
        device: the device of the result, and of the tensors.
    """
    state = torch.zeros((), dtype=torch.int64, device=device)
    for part in parts:
        state = _mix(state ^ part)
    return state


def uniform(bits: Tensor) -> Tensor:
    """Turn hashed integers of any shape into float32 numbers that are uniform in (0, 1)."""
    return (_shifted(bits, 41).float() + 0.5) / 2**23


def normal(bits: Tensor) -> Tensor:
    """Turn hashed integers of any shape into float32 numbers of a standard normal distribution.

    The method is that of Box and Muller 1958, with 32 bits for the radius and 32 for the angle.
    """
    radius = ((_shifted(bits, 32).float() + 0.5) / 2**32).log_().mul_(-2).sqrt_()
    return ((bits & (2**32 - 1)).float() * (2 * math.pi / 2**32)).cos_().mul_(radius)


def noise_of_image(seed: int, channels: int, rows: slice, columns: slice, device: torch.device | str = "cpu") -> Tensor:
    """Return a part of the noise of an image.

    Args:
        seed: names the noise; any integer of 64 bits.
        channels: number of values of each pixel.
        rows: rows of the image, as a slice with both ends.
        columns: columns of the image, likewise.
        device: the device of the result.

    Returns:
        (1, channels, rows, columns) float32, standard normal, in channels_last layout.
    """
    row = torch.arange(rows.start, rows.stop, device=device)[:, None, None]
    column = torch.arange(columns.start, columns.stop, device=device)[:, None]
    channel = torch.arange(channels, device=device)
    return normal(hashed(seed, row, column, channel, device=device))[None].permute(0, 3, 1, 2)


def beside_noise(lr: Tensor, seed: int, channels: int, rows: slice, columns: slice) -> Tensor:
    """Return a part of an image with its noise as further channels.

    Args:
        lr: (B, C, rows, columns) of a floating-point type.
        seed: see `noise_of_image`, whose noise all images of the batch get.
        channels: number of values of noise for each pixel; 0 for none.
        rows: place of the part in the image.
        columns: place of the part in the image.

    Returns:
        (B, C + channels, rows, columns) of the same type.
    """
    if channels == 0:
        return lr
    noise = noise_of_image(seed, channels, rows, columns, lr.device).to(lr.dtype)
    return torch.cat([lr, noise.expand(len(lr), -1, -1, -1)], dim=1)


def noise_of_samples(seed: int, positions: Tensor, shape: torch.Size) -> Tensor:
    """Return the noise of samples of a training.

    Args:
        seed: seed of the training.
        positions: (B,) int64, positions of the samples in the order of the whole training.
        shape: (B, C, h, w) of the result.

    Returns:
        Float32 of this shape on the device of the positions, standard normal, in channels_last layout.
    """
    count, channels, height, width = shape
    index = torch.arange(height * width * channels, device=positions.device).view(height, width, channels)
    bits = hashed(seed, positions.view(count, 1, 1, 1), index, device=positions.device)
    return normal(bits).permute(0, 3, 1, 2)


def _mix(z: Tensor) -> Tensor:
    """Apply one step of SplitMix64; products and sums wrap."""
    z = z + _GAMMA
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, by: int) -> Tensor:
    """Shift to the right and fill with zeros; PyTorch's own shift fills with the sign."""
    shifted: Tensor = (z >> by) & (2 ** (64 - by) - 1)
    return shifted
