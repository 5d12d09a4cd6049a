"""Promises that networks of several kinds keep."""

import torch
from skimage import data
from torch import Tensor

from sr_model.degrade import downscale, upscale_bicubic
from sr_model.metrics import luma, psnr
from sr_model.networks.super_resolver import SuperResolver


def check_radius(net: SuperResolver) -> Tensor:
    """Check that an output pixel of a float64 network depends on no LR pixel beyond `receptive_radius`.

    Returns:
        The gradient (1, 3, n, n) of an LR pixel's part of the output, with a border of one pixel beyond the radius.
    """
    radius, scale = net.receptive_radius, net.scale
    side = 2 * radius + 3
    lr = torch.rand(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    middle = slice(scale * (radius + 1), scale * (radius + 2))
    (gradient,) = torch.autograd.grad(net(lr)[..., middle, middle].abs().sum(), lr)
    assert gradient[..., 0, :].abs().max() == gradient[..., -1].abs().max() == 0
    return gradient


def check_untrained(net: SuperResolver) -> None:
    """Check that an untrained network enlarges a photograph about as well as bicubic interpolation."""
    hr = torch.from_numpy(data.chelsea()[:288, :432]).permute(2, 0, 1)
    lr = downscale(hr, net.scale)
    with torch.no_grad():
        sr = net(lr[None] / 255)[0].mul(255).round().clamp(0, 255)
    inside = (..., slice(16, -16), slice(16, -16))
    untrained = psnr(luma(sr)[inside], luma(hr)[inside])
    bicubic = psnr(luma(upscale_bicubic(lr, net.scale))[inside], luma(hr)[inside])
    assert untrained > bicubic - 0.5
