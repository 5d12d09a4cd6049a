"""Score one enlarged image against its ground truth; used by validation during training and by the evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from pipeline.data import sources
from pipeline.data.images import decode
from pipeline.data.locations import Location
from pipeline.data.patchset import HeldOutImage
from pipeline.data.rejection import RejectedImageError, RejectionKind
from pipeline.networks import features
from sr_model.degrade import downscale, upscale_bicubic
from sr_model.metrics import SMALLEST, Score, score
from sr_model.pixels import Pixels, to_unit


def load_pair(hr: Location, lr: Location | None, scale: int, max_pixels: int) -> tuple[Pixels, Pixels, str]:
    """Read a benchmark image, crop it to a multiple of the scale, and read or make its LR version.

    Args:
        hr: the place of the HR file.
        lr: the place of the LR file, or None to reduce the HR image with MATLAB's bicubic.
        scale: HR pixels per LR pixel along an axis.
        max_pixels: largest number of pixels of an image that is decoded.

    Returns:
        HR (H, W, C) uint8 with C = 1 or 3 as stored, LR (H/scale, W/scale, C) uint8, and the LR image's origin.

    Raises:
        RejectedImageError: if a file cannot be used or the two do not fit each other.
        OSError: if a file cannot be read.
    """
    hr_image = decode(sources.read_bytes(hr, sources.byte_limit(max_pixels)), max_pixels, as_stored=True)
    hr_image = hr_image[: hr_image.shape[0] // scale * scale, : hr_image.shape[1] // scale * scale]
    if min(hr_image.shape[:2]) < 2 * scale + SMALLEST:
        raise RejectedImageError(
            RejectionKind.TOO_SMALL,
            f"is {hr_image.shape[1]}x{hr_image.shape[0]}, expected at least {SMALLEST} pixels along each axis inside a "
            f"border of {scale}",
        )
    if lr is None:
        made = downscale(channels_first(hr_image), scale).permute(1, 2, 0).numpy()
        return hr_image, made, "made by this pipeline with MATLAB's bicubic"
    lr_image = decode(sources.read_bytes(lr, sources.byte_limit(max_pixels)), max_pixels, as_stored=True)
    if (lr_image.shape[0] * scale, lr_image.shape[1] * scale, lr_image.shape[2]) != hr_image.shape:
        raise RejectedImageError(
            RejectionKind.MISMATCHED,
            f"has an LR file of shape {lr_image.shape}, which does not fit the HR shape {hr_image.shape} at x{scale}",
        )
    return hr_image, lr_image, "files of the set"


def score_image(sr: Pixels, hr: Pixels, scale: int) -> Score:
    """Score (H, W, C) uint8 images, without a border as wide as the scale."""
    return score(channels_first(sr), channels_first(hr), border=scale)


def feature_distance(squeezenet: str, sr: Pixels, hr: Pixels) -> float:
    """Return the SqueezeNet feature distance of two images; the single channel of a grey image is repeated.

    Args:
        squeezenet: URL of the weights, from `features.prepare_distance`.
        sr: the enlarged image, (H, W, C) uint8.
        hr: the ground truth, of the same shape.
    """
    net = features.load_distance(squeezenet)
    rgb = [np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3))) for image in (sr, hr)]
    a, b = (to_unit(image[None], torch.device("cpu")) for image in rgb)
    return float(net(a, b))


def mean_scores(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of each metric, summed in the given order in float64; empty for no scores."""
    return {key: float(np.mean([s[key] for s in scores], dtype=np.float64)) for key in (scores[0] if scores else {})}


def bicubic_image(lr: Pixels, scale: int) -> Pixels:
    """Enlarge a (h, w, C) uint8 image with MATLAB's bicubic."""
    enlarged: Pixels = upscale_bicubic(channels_first(lr), scale).permute(1, 2, 0).numpy()
    return enlarged


def busiest_crop(hr: Pixels, side: int) -> tuple[int, int]:
    """Return the origin (y, x) of the most detailed square of `side` pixels: the one with the largest gradients.

    Squares are tried every 8 pixels. The detail is the sum of absolute differences between neighbouring grey values.
    """
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
    """Return the same crop of the bicubic, SR and HR image side by side, each 160 pixels wide."""
    side = 160
    y, x = busiest_crop(image.hr, side)
    crops = [p[y : y + side, x : x + side] for p in (bicubic_image(image.lr, scale), sr, image.hr)]
    return Image.fromarray(np.concatenate(crops, axis=1))


def channels_first(image: Pixels) -> torch.Tensor:
    """Convert a (H, W, C) array to a (C, H, W) tensor."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
