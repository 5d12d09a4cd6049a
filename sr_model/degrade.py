"""I_LR = D(I_HR): MATLAB's antialiased bicubic resize, in the two forms that super-resolution data come in.

Follows the published description of `imresize(…, 'bicubic')`: Keys' cubic kernel with a = -0.5 (IEEE TASSP 1981),
stretched by the scale when shrinking, weights normalised to sum 1, vertical axis first.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

Form = Literal["matlab", "legacy"]


def downscale(hr: Tensor, scale: int, form: Form = "matlab") -> Tensor:
    """Make the LR picture of an HR one.

    Args:
        hr: (..., H, W) uint8; H and W multiples of `scale`.
        scale: integer factor.
        form: "matlab" is today's MATLAB (double precision, borders mirrored, rounded once at the end); "legacy" is
            the 8-bit form that made the published LR files of Set5, Set14 and their like (borders clamped, rounded
            after each axis).

    Returns:
        (..., H/scale, W/scale) uint8.

    Raises:
        ValueError: if a side isn't a multiple of `scale`.
    """
    height, width = hr.shape[-2:]
    if height % scale or width % scale:
        raise ValueError(f"picture is {width}x{height}, expected multiples of the scale {scale}: crop it first")
    return _to_uint8(imresize(hr, (height // scale, width // scale), form))


def upscale_bicubic(lr: Tensor, scale: int, form: Form = "matlab") -> Tensor:
    """Enlarge (..., h, w) uint8 to (..., scale*h, scale*w) uint8 by MATLAB's bicubic: the usual baseline."""
    height, width = lr.shape[-2:]
    return _to_uint8(imresize(lr, (height * scale, width * scale), form))


def imresize(x: Tensor, size: tuple[int, int], form: Form = "matlab") -> Tensor:
    """Resize (..., H, W) of any real dtype to (..., *size), float64, in the range of `x`, neither clamped nor rounded.

    The exception is `form="legacy"`: it rounds to [0, 255] integers after each axis, as 8-bit arithmetic did.
    """
    y = x.to(torch.float64)
    for axis, out_size in ((-2, size[0]), (-1, size[1])):
        y = _resize_axis(y, axis, out_size, mirror=form == "matlab")
        if form == "legacy":
            y = _round_half_up(y)
    return y


def _resize_axis(x: Tensor, axis: int, out_size: int, mirror: bool) -> Tensor:
    # A sum over the few taps that are not zero, each one gather: the dense matrix product does 100x the work.
    weights, indices = _taps(x.shape[axis], out_size, mirror)
    shape = [1] * x.dim()
    shape[axis] = out_size
    y = torch.zeros((), dtype=x.dtype)
    for tap in range(weights.shape[1]):
        y = y + x.index_select(axis, indices[:, tap]) * weights[:, tap].view(shape)
    return y


@lru_cache(maxsize=64)
def _taps(in_size: int, out_size: int, mirror: bool) -> tuple[Tensor, Tensor]:
    """Weights and source indices, both (out_size, taps), of one axis."""
    ratio = out_size / in_size
    stretch = min(ratio, 1.0)  # antialiasing: only when shrinking
    width = 4 / stretch
    centre = (torch.arange(out_size, dtype=torch.float64) + 0.5) / ratio - 0.5
    left = torch.floor(centre - width / 2).to(torch.int64)
    positions = left[:, None] + torch.arange(math.ceil(width) + 2)
    weights = _cubic((centre[:, None] - positions) * stretch)
    weights = weights / weights.sum(dim=1, keepdim=True)
    used = (weights != 0).any(dim=0)
    weights, positions = weights[:, used], positions[:, used]
    if mirror:  # the edge pixel itself is repeated: ... 1 0 | 0 1 2 ...
        wrapped = positions % (2 * in_size)
        indices = torch.minimum(wrapped, 2 * in_size - 1 - wrapped)
    else:
        indices = positions.clamp(0, in_size - 1)
    return weights, indices


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel, a = -0.5; zero beyond |x| = 2."""
    x = x.abs()
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, inner, torch.where(x <= 2, outer, torch.zeros_like(x)))


def _round_half_up(x: Tensor) -> Tensor:
    return torch.floor(x + 0.5).clamp_(0, 255)


def _to_uint8(x: Tensor) -> Tensor:
    return _round_half_up(x).to(torch.uint8)
