"""Upsampling by PixelShuffle (Shi et al. 2016, arXiv:1609.05158): its initial kernels and a fast last layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def fuse_conv_after_shuffle(conv: nn.Conv2d, factor: int) -> tuple[Tensor, Tensor]:
    """Rewrite "pixel shuffle by r, then a convolution" as a convolution that is followed by the shuffle.

    The result is equal up to rounding, and faster: three output channels leave matrix units idle, 3*r*r channels less
    so. For each offset (a, b), output pixel (r*y + a, r*x + b) of the convolution uses the same kernel, shifted by
    (a, b). On the unshuffled grid, that is `pixel_unshuffle` of the shifted kernel.

    Args:
        conv: a convolution C to O channels with a kernel of odd side k and a padding that keeps the size.
        factor: r.

    Returns:
        Weight (O*r*r, C*r*r, K, K) and bias (O*r*r,), differentiable with respect to the parameters of `conv`. K is
        2*ceil((k // 2) / r) + 1, and the new convolution needs a padding of K // 2.
    """
    side, radius = conv.kernel_size[0], conv.kernel_size[0] // 2
    assert conv.kernel_size == (side, side)
    assert conv.padding == (radius, radius)
    assert conv.bias is not None
    reach = -(-radius // factor)
    canvas, margin = (2 * reach + 1) * factor, reach * factor - radius
    shifted = []
    for a in range(factor):
        for b in range(factor):
            top, left = a + margin, b + margin
            shifted.append(F.pad(conv.weight, (left, canvas - side - left, top, canvas - side - top)))
    kernels = F.pixel_unshuffle(torch.stack(shifted, dim=1).flatten(0, 1), factor)
    assert kernels.shape[0] == conv.out_channels * factor**2
    return kernels, conv.bias.repeat_interleave(factor**2)


@torch.no_grad()
def carry_colours(conv: nn.Conv2d, factor: int) -> None:
    """Initialise the convolution before a pixel shuffle by r so that the first three channels carry an image.

    They interpolate the sub-pixel positions quadratically (three-point Lagrange). All other kernels become equal over
    the r*r sub-pixels, which avoids checkerboards (ICNR; Aitken et al. 2017, arXiv:1707.02937).

    Args:
        conv: a 3x3 convolution C to C*r*r channels, whose random weights are changed in place.
        factor: r.
    """
    r, weight = factor, conv.weight
    weight.copy_(weight[:: r * r].repeat_interleave(r * r, dim=0))
    # Offsets of the r sub-pixels from the centre of the LR pixel, in LR pixels
    t = (torch.arange(r) + 0.5) / r - 0.5
    taps = torch.stack([t * (t - 1) / 2, 1 - t * t, t * (t + 1) / 2], dim=1)  # (r, 3)
    kernels = torch.einsum("iy,jx->ijyx", taps, taps).reshape(r * r, 3, 3)
    for c in range(3):
        carried = slice(c * r * r, (c + 1) * r * r)
        weight[carried] = 0
        weight[carried, c] = kernels
