"""Upsampling by PixelShuffle (Shi et al. 2016, arXiv:1609.05158): initial kernels, a fast last layer, and bicubic."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sr_model.cubic import keys_kernel


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


class Bicubic(nn.Module):
    """MATLAB's bicubic interpolation as a layer without parameters, which equals `sr_model.degrade.imresize`.

    It is a fixed convolution with a kernel for each of the s*s sub-pixels, and a pixel shuffle. It computes in float32
    under autocast, because bfloat16 has too few grey levels for an image.

    Args:
        scale: integer factor s.
    """

    reach = 2
    """LR pixels to each side that an interpolated pixel depends on."""

    kernel: Tensor

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale
        # Offsets of the sub-pixels from the centre of the LR pixel, in LR pixels. The CPU is named, because networks
        # are also built on the device "meta", where a constant that no state dict has would be lost.
        offsets = (torch.arange(scale, device="cpu", dtype=torch.float64) + 0.5) / scale - 0.5
        taps = keys_kernel(offsets[:, None] - torch.arange(-self.reach, self.reach + 1, device="cpu"))
        taps = taps / taps.sum(dim=1, keepdim=True)  # (s, 5)
        kernels = torch.einsum("iy,jx->ijyx", taps, taps).flatten(0, 1)[:, None]  # (s*s, 1, 5, 5)
        self.register_buffer("kernel", kernels.repeat(3, 1, 1, 1).float(), persistent=False)

    def forward(self, lr: Tensor) -> Tensor:
        """Enlarge `lr` (B, 3, h, w) to (B, 3, s*h, s*w)."""
        if torch.is_autocast_enabled(lr.device.type):
            with torch.autocast(lr.device.type, enabled=False):
                return self._interpolate(lr.to(self.kernel.dtype))
        return self._interpolate(lr)

    def _interpolate(self, x: Tensor) -> Tensor:
        for axis in (-2, -1):
            positions = torch.arange(-self.reach, x.shape[axis] + self.reach, device=x.device)
            last = positions[-self.reach - 1]  # a tensor, because the size is not known when a model is exported
            for _ in range(self.reach):  # an image of one pixel is mirrored twice
                positions = torch.where(positions < 0, -1 - positions, positions)
                positions = torch.where(positions > last, 2 * last + 1 - positions, positions)
            x = x.index_select(axis, positions)
        return F.pixel_shuffle(F.conv2d(x, self.kernel, groups=3), self.scale)
