"""Upscale 8-bit pictures with a network, score them, put crops side by side; for validation and evaluation alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from pipeline import features, sources
from pipeline.learner import to_eight_bit, to_unit
from pipeline.patchset import Bytes, HoldoutPicture
from pipeline.pictures import RejectedPictureError, decode
from sr_model.degrade import downscale, upscale_bicubic
from sr_model.metrics import SMALLEST, Score, score
from sr_model.srresnet import SRResNet
from sr_model.tiling import tiles


def upscale_picture(net: SRResNet, lr: Bytes, tile: int = 256, progress: bool = False) -> Bytes:
    """Upscale an 8-bit picture in tiles; beside the result, memory depends on these alone: about a GB for 256.

    Args:
        net: in eval mode, on any device.
        lr: (h, w, 3) uint8; or (h, w, 1), which is fed as three equal channels and averaged back to one.
        tile: LR pixels, side of a tile.
        progress: whether to show it on a terminal.

    Returns:
        (s*h, s*w, C) uint8.
    """
    height, width, channels = lr.shape
    device = next(net.parameters()).device

    def read(rows: slice, columns: slice) -> torch.Tensor:
        return to_unit(np.repeat(lr[rows, columns], 3 // channels, axis=2)[None], device)

    out = np.empty((height * net.scale, width * net.scale, channels), np.uint8)
    count = -(-height // tile) * -(-width // tile)
    parts = tiles(net, height, width, read, tile)
    for top, left, sr in tqdm(parts, total=count, unit="tile", disable=None if progress else True):
        part = to_eight_bit(sr[0].mean(dim=0, keepdim=True) if channels == 1 else sr[0])
        out[top : top + part.shape[0], left : left + part.shape[1]] = part
    return out


def load_pair(hr: str, lr: str | None, scale: int, max_pixels: int) -> tuple[Bytes, Bytes, str]:
    """Read a benchmark picture, cut to a multiple of the scale, and its LR file, or make that.

    Returns:
        HR (H, W, C) uint8, C 1 or 3 as stored; LR; and where the LR picture is from.

    Raises:
        RejectedPictureError: if a file cannot be used or the two don't fit.
    """
    hr_picture = decode(sources.read_bytes(hr), max_pixels, as_stored=True)
    hr_picture = hr_picture[: hr_picture.shape[0] // scale * scale, : hr_picture.shape[1] // scale * scale]
    if min(hr_picture.shape[:2]) < 2 * scale + SMALLEST:
        raise RejectedPictureError(
            f"is {hr_picture.shape[1]}x{hr_picture.shape[0]}, expected {SMALLEST} pixels inside a border of {scale}"
        )
    if lr is None:
        made = downscale(channels_first(hr_picture), scale).permute(1, 2, 0).numpy()
        return hr_picture, made, "made here, MATLAB's bicubic"
    lr_picture = decode(sources.read_bytes(lr), max_pixels, as_stored=True)
    if (lr_picture.shape[0] * scale, lr_picture.shape[1] * scale, lr_picture.shape[2]) != hr_picture.shape:
        raise RejectedPictureError(
            f"has an LR file of {lr_picture.shape}, which doesn't fit HR {hr_picture.shape} at x{scale}"
        )
    return hr_picture, lr_picture, "the set's own files"


def score_picture(sr: Bytes, hr: Bytes, scale: int) -> Score:
    """Score (H, W, C) uint8 pictures by the protocol."""
    return score(channels_first(sr), channels_first(hr), border=scale)


def feature_distance(squeezenet: str, sr: Bytes, hr: Bytes) -> float:
    """SqueezeNet feature distance of (H, W, C) uint8 pictures; one channel is fed as three equal ones.

    Args:
        squeezenet: URL of the weights, from `features.prepare_distance`.
        sr: what was made.
        hr: the ground truth.
    """
    net = features.load_distance(squeezenet)
    rgb = [np.ascontiguousarray(np.broadcast_to(picture, (*picture.shape[:2], 3))) for picture in (sr, hr)]
    a, b = (to_unit(picture[None], torch.device("cpu")) for picture in rgb)
    return float(net(a, b))


def mean_scores(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric in the given order, in float64; nothing for no scores."""
    return {key: float(np.mean([s[key] for s in scores], dtype=np.float64)) for key in (scores[0] if scores else {})}


def bicubic_picture(lr: Bytes, scale: int) -> Bytes:
    """Enlarge (h, w, C) uint8 by MATLAB's bicubic."""
    enlarged: Bytes = upscale_bicubic(channels_first(lr), scale).permute(1, 2, 0).numpy()
    return enlarged


def busiest_crop(hr: Bytes, side: int) -> tuple[int, int]:
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


def comparison_strip(picture: HoldoutPicture, sr: Bytes, scale: int) -> Image.Image:
    """The same crop of bicubic, SR and HR, 160 pixels a side, beside each other."""
    side = 160
    y, x = busiest_crop(picture.hr, side)
    crops = [p[y : y + side, x : x + side] for p in (bicubic_picture(picture.lr, scale), sr, picture.hr)]
    return Image.fromarray(np.concatenate(crops, axis=1))


def channels_first(picture: Bytes) -> torch.Tensor:
    """(H, W, C) array to (C, H, W) tensor."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)
