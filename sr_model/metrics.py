"""PSNR and SSIM as the super-resolution papers measure them: on the luma Y of BT.601, without the border.

Both take 8-bit images. Y has the values of MATLAB's `rgb2ycbcr`: studio range, 16 to 235, rounded to integers.
Without rounding, bicubic on Set5 reads 28.430 dB / 0.8111 instead of the published 28.42 / 0.810.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from skimage.metrics import structural_similarity
from torch import Tensor

# Y of ITU-R BT.601 for R, G, B in 0..255, as in MATLAB's rgb2ycbcr: 16 + (65.481 R + 128.553 G + 24.966 B) / 255
_LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)
_PEAK = 255.0

LARGEST_PSNR = 100.0
"""Upper limit of PSNR in dB, and its value for equal images, such as black ones, so that means are finite."""

SMALLEST = 11
"""Pixels that an image needs inside the border along both axes, because SSIM's window has this side."""


@dataclass(frozen=True)
class Score:
    """Similarity of an image to its ground truth."""

    psnr_y: float
    """PSNR on BT.601 Y in dB, at most 100; 100 for equal images."""
    ssim_y: float
    """SSIM of Wang et al. 2004 on BT.601 Y: Gaussian window 11x11, sigma 1.5, K1 0.01, K2 0.03, windows inside the
    image."""
    psnr_rgb: float
    """PSNR over all three channels in dB, at most 100."""


def score(sr: Tensor, hr: Tensor, border: int) -> Score:
    """Compare two images, both (3, H, W) or (1, H, W) uint8; one channel is compared on its values in 0..255.

    Args:
        sr: the image to score.
        hr: the ground truth.
        border: pixels ignored at each side; papers use the scale.

    Raises:
        ValueError: if shapes or dtypes differ, or nothing is left inside the border.
    """
    if sr.shape != hr.shape or sr.dtype != torch.uint8 or hr.dtype != torch.uint8:
        raise ValueError(
            f"compared {tuple(sr.shape)} {sr.dtype} with {tuple(hr.shape)} {hr.dtype}, expected equal shapes of uint8"
        )
    if min(hr.shape[-2:]) - 2 * border < SMALLEST:
        raise ValueError(f"an image of {tuple(hr.shape)} has less than {SMALLEST} pixels inside a border of {border}")
    inside = (slice(None), slice(border, -border or None), slice(border, -border or None))
    sr, hr = sr[inside], hr[inside]
    sr_y, hr_y = luma(sr), luma(hr)
    return Score(psnr_y=psnr(sr_y, hr_y), ssim_y=ssim(sr_y, hr_y), psnr_rgb=psnr(sr.double(), hr.double()))


def luma(rgb: Tensor) -> Tensor:
    """BT.601 luma of (3, H, W) uint8 as (H, W) float64 integers in 16..235; one channel keeps its values."""
    x = rgb.double()
    if x.shape[0] == 1:
        return x[0]
    return torch.floor(16.5 + _LUMA[0] * x[0] + _LUMA[1] * x[1] + _LUMA[2] * x[2])


def psnr(a: Tensor, b: Tensor) -> float:
    """PSNR in dB, min(100, 10 log10(255^2 / MSE)), of values in 0..255; 100 if all are equal."""
    mse = (a - b).square().mean().item()
    decibels = 10 * math.log10(_PEAK**2 / mse) if mse else LARGEST_PSNR
    return LARGEST_PSNR if decibels > LARGEST_PSNR else decibels  # keeps a NaN, which min() would hide


def ssim(a: Tensor, b: Tensor) -> float:
    """Mean SSIM of two (H, W) images with values in 0..255."""
    value = structural_similarity(
        a.numpy(),
        b.numpy(),
        data_range=_PEAK,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    return float(value)
