"""PSNR and SSIM as the super-resolution papers measure them: on the luma Y of BT.601, without the border.

Both take 8-bit images. Y has the values of MATLAB's `rgb2ycbcr`: studio range, 16 to 235, rounded to integers.
Without rounding, bicubic on Set5 reads 28.430 dB / 0.8111 instead of the published 28.42 / 0.810.

Scores are computed in float64 on the device of the images. All sums of squares are sums of integers, so PSNR is the
same number on every device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sr_model.degrade import downscale

# Y of ITU-R BT.601 for R, G, B in 0..255, as in MATLAB's rgb2ycbcr: 16 + (65.481 R + 128.553 G + 24.966 B) / 255
_LUMA = (65.481 / 255, 128.553 / 255, 24.966 / 255)
_PEAK = 255.0

LARGEST_PSNR = 100.0
"""Upper limit of PSNR in dB, and its value for equal images, such as black ones, so that means are finite."""

SMALLEST = 11
"""Pixels that an image needs inside the border along both axes, because SSIM's window has this side."""

# SSIM: a Gaussian of sigma 1.5 along each axis of the window, K1 = 0.01, K2 = 0.03.
_GAUSSIAN = [math.exp(-((i - SMALLEST // 2) ** 2) / (2 * 1.5**2)) for i in range(SMALLEST)]
_WINDOW = [weight / sum(_GAUSSIAN) for weight in _GAUSSIAN]
_C1, _C2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2


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


@dataclass(frozen=True)
class Comparison:
    """Two compared images. Their numbers are still on the device, which may not have computed them yet."""

    sums: Tensor
    """(3,) float64: the squared errors of Y, the SSIM of Y of all windows, and the squared errors of all channels."""
    counts: tuple[int, int, int]
    """Number of values in each sum."""

    def score(self) -> Score:
        """Wait for the device, and return the score."""
        error_y, similarity, error = (sum / n for sum, n in zip(self.sums.tolist(), self.counts, strict=True))
        return Score(psnr_y=_decibels(error_y), ssim_y=similarity, psnr_rgb=_decibels(error))


def score(sr: Tensor, hr: Tensor, border: int) -> Score:
    """Compare two images as `compare` does, and return the score."""
    return compare(sr, hr, border).score()


def compare(sr: Tensor, hr: Tensor, border: int) -> Comparison:
    """Compare two images on their device, both (3, H, W) or (1, H, W) uint8; one channel is compared on its values.

    Blocks of the images are compared in turn. So memory beside the images stays below 10 MB on a CPU and below 150 MB
    on a GPU, whatever their size. This function does not wait for a GPU.

    Args:
        sr: the image to score.
        hr: the ground truth, on the same device.
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
    channels, height, width = hr.shape
    sums = torch.zeros(3, dtype=torch.float64, device=hr.device)
    for rows, own_rows in _blocks(height, hr.device):
        for columns, own_columns in _blocks(width, hr.device):
            a, b = sr[:, rows, columns], hr[:, rows, columns]
            y, y_true = luma(a), luma(b)
            own = (..., slice(own_rows), slice(own_columns))
            sums[0] += (y - y_true)[own].square_().sum()
            sums[1] += _similarities(y, y_true).sum()
            for channel, channel_true in zip(a[own], b[own], strict=True):
                sums[2] += (channel.double() - channel_true).square_().sum()
    windows = (height - SMALLEST + 1) * (width - SMALLEST + 1)
    return Comparison(sums, (height * width, windows, channels * height * width))


def luma(rgb: Tensor) -> Tensor:
    """BT.601 luma of (3, H, W) uint8 as (H, W) float64 integers in 16..235; one channel keeps its values."""
    if rgb.shape[0] == 1:
        return rgb[0].double()
    red, green, blue = (channel.double().mul_(weight) for channel, weight in zip(rgb, _LUMA, strict=True))
    y: Tensor = red.add_(16.5).add_(green).add_(blue)
    return y.byte().double()  # rounds down; PyTorch's floor divides even small blocks between threads


def psnr(a: Tensor, b: Tensor) -> float:
    """PSNR in dB, min(100, 10 log10(255^2 / MSE)), of values in 0..255; 100 if all are equal."""
    return _decibels((a - b).square().mean().item())


def ssim_rgb(sr: Tensor, hr: Tensor, border: int) -> float:
    """Mean over the channels of the SSIM of each channel.

    Args:
        sr: the image to score, (C, H, W) uint8.
        hr: the ground truth, of the same shape and on the same device.
        border: pixels ignored at each side, after which 11 pixels remain along both axes.
    """
    inside = (slice(border, -border or None), slice(border, -border or None))
    values = [ssim(a[inside], b[inside]) for a, b in zip(sr, hr, strict=True)]
    return sum(values) / len(values)


def consistency(sr: Tensor, lr: Tensor) -> float:
    """LR-PSNR: PSNR over all channels in dB, at most 100, of an enlarged image that is reduced again against its input.

    The image is reduced with MATLAB's bicubic and rounded to 8 bits, and no border is left out (Lugmayr et al. 2020,
    SRFlow, arXiv:2006.14200, section 5.1).

    Args:
        sr: the enlarged image, (C, s*H, s*W) uint8 with an integer s.
        lr: the image that was enlarged, (C, H, W) uint8 on the same device.
    """
    reduced = downscale(sr.cpu(), sr.shape[-1] // lr.shape[-1])
    return psnr(reduced.double(), lr.cpu().double())


def phase_energy(image: Tensor, period: int = 4) -> float:
    """Energy of patterns that repeat every `period` pixels, such as a checkerboard, in squared grey levels.

    Transposed or strided convolutions leave such patterns (Odena et al. 2016, doi:10.23915/distill.00003). The local
    mean over `period` x `period` pixels is taken from the luma, which removes slopes and keeps every pattern of this
    period. In each block of 8 x 8 periods, the pixels at each of the period^2 positions are averaged; the energy is the
    variance of these averages, as a mean over the blocks. Textures have some energy too, so a value means something
    only beside that of the true image: up to about 1.2 times as much is no visible pattern.

    Args:
        image: (3, H, W) or (1, H, W) uint8. Rows and columns beyond whole blocks are left out.
        period: period of the pattern in pixels, usually the factor by which the image was enlarged.

    Returns:
        The energy; 0 for an image with less than a block.
    """
    y = luma(image)[None, None]
    block = 8 * period
    if min(y.shape[-2:]) < block + period:
        return 0.0
    residual = y[..., : 1 - period, : 1 - period] - F.avg_pool2d(y, period, stride=1)
    rows, columns = (size // block for size in residual.shape[-2:])
    inside = residual[0, 0, : rows * block, : columns * block]
    means = inside.reshape(rows, 8, period, columns, 8, period).mean((1, 4))
    return float(means.var((1, 3), correction=0).mean())


def ssim(a: Tensor, b: Tensor) -> float:
    """Mean SSIM of two (H, W) images with values in 0..255, at least 11 pixels along each axis."""
    rows, columns = (list(_blocks(size, a.device)) for size in a.shape)
    blocks = [(part, other) for part, _ in rows for other, _ in columns]
    total = sum(_similarities(a[block].double(), b[block].double()).sum() for block in blocks)
    return float(total) / ((a.shape[0] - SMALLEST + 1) * (a.shape[1] - SMALLEST + 1))


def _decibels(mse: float) -> float:
    decibels = 10 * math.log10(_PEAK**2 / mse) if mse else LARGEST_PSNR
    return LARGEST_PSNR if decibels > LARGEST_PSNR else decibels  # keeps a NaN, which min() would hide


def _blocks(size: int, device: torch.device) -> Iterator[tuple[slice, int]]:
    """Divide the windows along an axis of `size` pixels into blocks.

    On a CPU, a block fits into the cache, and PyTorch divides no operation on less than 32768 values between threads,
    which would wait for each other at each operation. On a GPU, starting an operation takes as long as a small block.

    Yields:
        The pixels that the windows of a block cover, and the number of these, from the first on, that belong to no
        other block.
    """
    windows, block = size - SMALLEST + 1, 170 if device.type == "cpu" else 1024
    for start in range(0, windows, block):
        last = start + block >= windows
        yield slice(start, min(start + block, windows) + SMALLEST - 1), size - start if last else block


def _similarities(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of every window inside two (H, W) float64 images, (H - 10, W - 10): Wang et al. 2004, equation 13."""
    mean_a, mean_b = _average(a), _average(b)
    means, squared_means = mean_a * mean_b, mean_a.square_().add_(mean_b.square_())
    covariance = _average(a * b).sub_(means)
    variances = _average(a * a + b * b).sub_(squared_means)
    return (2 * means + _C1) * (2 * covariance + _C2) / ((squared_means + _C1) * (variances + _C2))


def _average(image: Tensor) -> Tensor:
    """Weighted mean over every window inside an image (H, W), (H - 10, W - 10)."""
    for axis in (0, 1):
        size = image.shape[axis] - SMALLEST + 1
        mean = image.narrow(axis, 0, size) * _WINDOW[0]
        for i, weight in enumerate(_WINDOW[1:], start=1):
            mean.add_(image.narrow(axis, i, size), alpha=weight)
        image = mean
    return image
