"""Upscale 8-bit images with a network, score them, put crops side by side; for validation and evaluation alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from pipeline.data import sources
from pipeline.data.images import RejectedImageError, decode
from pipeline.data.patchset import HeldOutImage
from pipeline.networks import features
from sr_model.degrade import downscale, upscale_bicubic
from sr_model.metrics import SMALLEST, Score, score
from sr_model.pixels import Pixels, to_unit


def load_pair(hr: str, lr: str | None, scale: int, max_pixels: int) -> tuple[Pixels, Pixels, str]:
    """Read a benchmark image, cut to a multiple of the scale, and its LR file, or make that.

    Returns:
        HR (H, W, C) uint8, C 1 or 3 as stored; LR; and where the LR image is from.

    Raises:
        RejectedImageError: if a file cannot be used or the two don't fit.
    """
    hr_image = decode(sources.read_bytes(hr), max_pixels, as_stored=True)
    hr_image = hr_image[: hr_image.shape[0] // scale * scale, : hr_image.shape[1] // scale * scale]
    if min(hr_image.shape[:2]) < 2 * scale + SMALLEST:
        raise RejectedImageError(
            f"is {hr_image.shape[1]}x{hr_image.shape[0]}, expected {SMALLEST} pixels inside a border of {scale}"
        )
    if lr is None:
        made = downscale(channels_first(hr_image), scale).permute(1, 2, 0).numpy()
        return hr_image, made, "made here, MATLAB's bicubic"
    lr_image = decode(sources.read_bytes(lr), max_pixels, as_stored=True)
    if (lr_image.shape[0] * scale, lr_image.shape[1] * scale, lr_image.shape[2]) != hr_image.shape:
        raise RejectedImageError(
            f"has an LR file of {lr_image.shape}, which doesn't fit HR {hr_image.shape} at x{scale}"
        )
    return hr_image, lr_image, "the set's own files"


def score_image(sr: Pixels, hr: Pixels, scale: int) -> Score:
    """Score (H, W, C) uint8 images by the protocol."""
    return score(channels_first(sr), channels_first(hr), border=scale)


def feature_distance(squeezenet: str, sr: Pixels, hr: Pixels) -> float:
    """SqueezeNet feature distance of (H, W, C) uint8 images; one channel is fed as three equal ones.

    Args:
        squeezenet: URL of the weights, from `features.prepare_distance`.
        sr: what was made.
        hr: the ground truth.
    """
    net = features.load_distance(squeezenet)
    rgb = [np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3))) for image in (sr, hr)]
    a, b = (to_unit(image[None], torch.device("cpu")) for image in rgb)
    return float(net(a, b))


def mean_scores(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric in the given order, in float64; nothing for no scores."""
    return {key: float(np.mean([s[key] for s in scores], dtype=np.float64)) for key in (scores[0] if scores else {})}


def bicubic_image(lr: Pixels, scale: int) -> Pixels:
    """Enlarge (h, w, C) uint8 by MATLAB's bicubic."""
    enlarged: Pixels = upscale_bicubic(channels_first(lr), scale).permute(1, 2, 0).numpy()
    return enlarged


def busiest_crop(hr: Pixels, side: int) -> tuple[int, int]:
    """Origin (y, x) of the square of `side` pixels with the most detail: the largest sum of its grey form's slopes."""
    grey = hr.astype(np.float32).mean(axis=2)
    slope = np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]
    total = np.pad(slope.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    h, w = max(slope.shape[0] - side, 0), max(slope.shape[1] - side, 0)
    ys, xs = np.arange(0, h + 1, 8), np.arange(0, w + 1, 8)
    y1, x1 = np.minimum(ys + side, slope.shape[0]), np.minimum(xs + side, slope.shape[1])
    sums = total[y1][:, x1] - total[ys][:, x1] - total[y1][:, xs] + total[ys][:, xs]
    best = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(ys[best[0]]), int(xs[best[1]])


def comparison_strip(image: HeldOutImage, sr: Pixels, scale: int) -> Image.Image:
    """The same crop of bicubic, SR and HR, 160 pixels a side, beside each other."""
    side = 160
    y, x = busiest_crop(image.hr, side)
    crops = [p[y : y + side, x : x + side] for p in (bicubic_image(image.lr, scale), sr, image.hr)]
    return Image.fromarray(np.concatenate(crops, axis=1))


def channels_first(image: Pixels) -> torch.Tensor:
    """(H, W, C) array to (C, H, W) tensor."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
