"""Degradation of HR images to LR images: MATLAB's bicubic resize in its two published forms, blur and noise.

The resize follows the published description of `imresize(…, 'bicubic')`: Keys' cubic kernel with a = -0.5 (IEEE TASSP
1981), stretched by the scale when shrinking, weights normalised to sum 1, vertical axis first.
"""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sr_model.cubic import keys_kernel

Form = Literal["matlab", "legacy"]


def downscale(hr: Tensor, scale: int, form: Form = "matlab") -> Tensor:
    """Reduce an image by an integer factor, in exact integer arithmetic, about as fast as Pillow's bicubic.

    Args:
        hr: (..., H, W) uint8; H and W are multiples of `scale`. A (3, H, W) view of a contiguous (H, W, 3) is fastest.
        scale: integer factor.
        form: "matlab" is current MATLAB (double precision, mirrored borders, rounded once at the end); "legacy" is
            the 8-bit form of the published LR files of Set5, Set14 and similar sets (clamped borders, rounded after
            each axis). Halves are rounded up.

    Returns:
        (..., H/scale, W/scale) uint8, with the memory layout of the input.

    Raises:
        ValueError: if a side isn't a multiple of `scale`.
    """
    height, width = hr.shape[-2:]
    if height % scale or width % scale:
        raise ValueError(f"image is {width}x{height}, expected multiples of the scale {scale}: crop it first")
    if hr.dim() == 2:
        return downscale(hr[None], scale, form)[0]
    if hr.dim() > 3:
        return torch.stack([downscale(image, scale, form) for image in hr])
    return _downscale_hwc(hr.permute(1, 2, 0).contiguous(), scale, form).permute(2, 0, 1)


def add_noise(image: Tensor, sigma: float, seed: bytes) -> Tensor:
    """Add Gaussian noise of standard deviation `sigma`, in grey levels, to an 8-bit image of any shape.

    The noise depends on `seed` alone. It comes from NumPy's frozen generator (NEP 19), which gives the same numbers on
    every machine and version.
    """
    words = np.frombuffer(hashlib.sha256(seed).digest(), np.uint32)
    noise = np.random.RandomState(words).standard_normal(tuple(image.shape))
    return _to_uint8(image.double() + sigma * torch.from_numpy(noise))


def blur(hr: Tensor, sigma: float) -> Tensor:
    """Convolve (C, H, W) uint8 with a Gaussian of standard deviation `sigma` pixels, cut off at 4 sigma.

    Borders are mirrored as in `downscale`, and values are rounded once at the end. Beside the result, memory holds a
    few hundred rows.
    """
    from scipy.ndimage import gaussian_filter  # here, because it takes half a second that upscaling does without

    image = hr.permute(1, 2, 0).numpy()
    blurred = np.empty_like(image, order="C")
    radius = int(4 * sigma + 0.5)
    for start in range(0, len(image), _STRIP):
        stop = min(start + _STRIP, len(image))
        first, last = max(start - radius, 0), min(stop + radius, len(image))
        strip = gaussian_filter(
            image[first:last], (sigma, sigma, 0), mode="reflect", radius=(radius, radius, 0), output=np.float32
        )
        blurred[start:stop] = (strip[start - first : stop - first] + 0.5).astype(np.uint8)
    return torch.from_numpy(blurred).permute(2, 0, 1)


def upscale_bicubic(lr: Tensor, scale: int, form: Form = "matlab") -> Tensor:
    """Enlarge (..., h, w) uint8 to (..., scale*h, scale*w) uint8 with MATLAB's bicubic, the usual baseline."""
    height, width = lr.shape[-2:]
    return _to_uint8(imresize(lr, (height * scale, width * scale), form))


def imresize(x: Tensor, size: tuple[int, int], form: Form = "matlab") -> Tensor:
    """Resize (..., H, W) of any real dtype to (..., *size), float64, in the range of `x`, without clamping or rounding.

    Only `form="legacy"` rounds: to integers in [0, 255] after each axis, as 8-bit arithmetic did.
    """
    y = x.to(torch.float64)
    for axis, out_size in ((-2, size[0]), (-1, size[1])):
        y = _resize_axis(y, axis, out_size, mirror=form == "matlab")
        if form == "legacy":
            y = _round_half_up(y)
    return y


_STRIP = 256
"""Rows that are blurred at a time."""
_ROWS, _COLUMNS = 8, 4
"""Output pixels of one product along each axis. A third of its matrix is not zero, and the inputs stay in the cache."""


def _downscale_hwc(hr: Tensor, scale: int, form: Form) -> Tensor:
    """(H, W, C) to (H/scale, W/scale, C), a strip of output rows at a time: vertical axis, then horizontal.

    With an integer scale, every output pixel has the same taps, and their weights are fractions with one denominator.
    In these units all sums are integers that a float represents exactly. A product with a band matrix does a few times
    the work of the taps alone, but at the speed of the processor's matrix kernels.
    """
    height, width, channels = hr.shape
    rows, columns = height // scale, width // scale
    weights = _integer_taps(scale)
    norm, lead = sum(weights), (len(weights) - scale) // 2
    legacy = form == "legacy"
    vertical = _band(weights, scale, _ROWS, 1, _exact_dtype(weights, 255))
    largest = 255 if legacy else 255 * norm
    horizontal = _band(weights, scale, _COLUMNS, channels, _exact_dtype(weights, largest)).T
    above = _sources(rows, _ROWS, height, scale, len(weights), not legacy)
    along = _sources(columns, _COLUMNS, width, scale, len(weights), not legacy)
    left, right = along[:lead], along[lead + width :]
    lr = torch.empty(rows, columns, channels, dtype=torch.uint8)
    flat = hr.view(height, width * channels)
    for start in range(0, rows, _ROWS):
        taken = above[start * scale : start * scale + vertical.shape[1]]
        strip = torch.mm(vertical, flat.index_select(0, taken).to(vertical.dtype))
        if legacy:
            strip = _round_half_up(strip.div_(norm))
        strip = strip.view(_ROWS, width, channels)
        strip = torch.cat([strip.index_select(1, left), strip, strip.index_select(1, right)], dim=1)
        windows = strip.to(horizontal.dtype).view(_ROWS, -1).unfold(1, horizontal.shape[0], scale * _COLUMNS * channels)
        y = torch.mm(windows.reshape(-1, len(horizontal)), horizontal).view(_ROWS, -1, channels)
        y.div_(norm if legacy else norm * norm)
        count = min(_ROWS, rows - start)
        lr[start : start + count] = _round_half_up(y[:count, :columns])
    return lr


@lru_cache(maxsize=64)
def _integer_taps(scale: int) -> tuple[int, ...]:
    """Keys' kernel, stretched by `scale`, at the inputs of an output pixel, as integers without a common divisor."""
    q = 2 * scale if scale % 2 == 0 else scale  # distances are m / q
    taps = []
    for m in range(1 - 2 * q, 2 * q, 2) if scale % 2 == 0 else range(1 - 2 * q, 2 * q):
        d = abs(m)
        inner, outer = 3 * d**3 - 5 * d**2 * q + 2 * q**3, -(d**3) + 5 * d**2 * q - 8 * d * q**2 + 4 * q**3
        taps.append(inner if d <= q else outer)
    divisor = math.gcd(*taps)
    return tuple(tap // divisor for tap in taps)


def _exact_dtype(taps: tuple[int, ...], largest: int) -> torch.dtype:
    """The smallest type in which all sums of inputs up to `largest` are exact."""
    exact = largest * sum(map(abs, taps)) < 2**24 and torch.get_float32_matmul_precision() == "highest"
    return torch.float32 if exact else torch.float64


@lru_cache(maxsize=64)
def _band(taps: tuple[int, ...], scale: int, block: int, channels: int, dtype: torch.dtype) -> Tensor:
    """Matrix that maps the inputs of `block` output pixels to these pixels, both with interleaved channels."""
    band = torch.zeros(block, len(taps) + scale * (block - 1), dtype=dtype)
    for i in range(block):
        band[i, i * scale : i * scale + len(taps)] = torch.tensor(taps)
    return torch.kron(band, torch.eye(channels, dtype=band.dtype))


@lru_cache(maxsize=64)
def _sources(out_size: int, block: int, in_size: int, scale: int, taps: int, mirror: bool) -> Tensor:
    """Indices of the inputs that the windows of an axis read in turn, up to a whole number of blocks."""
    last = scale * (-(-out_size // block) * block - 1) + taps
    return _inside(torch.arange(last) - (taps - scale) // 2, in_size, mirror)


def _inside(positions: Tensor, size: int, mirror: bool) -> Tensor:
    """Indices for positions beyond the borders: mirrored (... 1 0 | 0 1 2 ...) or clamped."""
    if not mirror:
        return positions.clamp(0, size - 1)
    wrapped = positions % (2 * size)
    return torch.minimum(wrapped, 2 * size - 1 - wrapped)


def _resize_axis(x: Tensor, axis: int, out_size: int, mirror: bool) -> Tensor:
    # It sums over the few taps that are not zero, with one gather each; a dense matrix product does 100x the work.
    weights, indices = (part.to(x.device) for part in _taps(x.shape[axis], out_size, mirror))
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
    weights = keys_kernel((centre[:, None] - positions) * stretch)
    weights = weights / weights.sum(dim=1, keepdim=True)
    used = (weights != 0).any(dim=0)
    weights, positions = weights[:, used], positions[:, used]
    return weights, _inside(positions, in_size, mirror)


def _round_half_up(x: Tensor) -> Tensor:
    return (x + 0.5).floor_().clamp_(0, 255)


def _to_uint8(x: Tensor) -> Tensor:
    return _round_half_up(x).to(torch.uint8)
