"""Score one enlarged image against its ground truth; used by validation during training and by the evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.data import degradation, sources
from pipeline.data.images import decode
from pipeline.data.locations import Location
from pipeline.data.patchset import HeldOutImage
from pipeline.data.rejection import RejectedImageError, RejectionKind
from pipeline.evaluation.scores import Metrics
from pipeline.networks import features
from pipeline.networks.devices import tf32
from pipeline.settings import Degradation
from sr_model.degrade import upscale_bicubic
from sr_model.metrics import SMALLEST, Score, consistency, phase_energy, score, ssim_rgb
from sr_model.pixels import Pixels, to_input, to_pixels, to_tensor

_NO_DEGRADATION = Degradation()


def load_pair(
    hr: Location, lr: Location | None, scale: int, max_pixels: int, further: Degradation = _NO_DEGRADATION
) -> tuple[Pixels, Pixels, str]:
    """Read a benchmark image, crop it to a multiple of the scale, and read or make its LR version.

    Args:
        hr: the place of the HR file.
        lr: the place of the LR file, or None to reduce the HR image with MATLAB's bicubic.
        scale: HR pixels per LR pixel along an axis.
        max_pixels: largest number of pixels of an image that is decoded.
        further: what is done to the LR image; with blur, it is made from the HR image in any case.

    Returns:
        HR (H, W, C) uint8 with C = 1 or 3 as stored, LR (H/scale, W/scale, C) uint8, and the LR image's origin.

    Raises:
        RejectedImageError: if a file cannot be used or the two do not fit each other.
        OSError: if a file cannot be read.
    """
    content = sources.read_bytes(hr, sources.byte_limit(max_pixels))
    drawn = further.drawn(key := hashlib.sha256(content).hexdigest())
    done = f", with {' and '.join(further.words)}" if further.words else ""
    hr_image = decode(content, max_pixels, as_stored=True)
    hr_image = hr_image[: hr_image.shape[0] // scale * scale, : hr_image.shape[1] // scale * scale]
    if min(hr_image.shape[:2]) < 2 * scale + SMALLEST:
        raise RejectedImageError(
            RejectionKind.TOO_SMALL,
            f"is {hr_image.shape[1]}x{hr_image.shape[0]}, expected at least {SMALLEST} pixels along each axis inside a "
            f"border of {scale}",
        )
    if lr is None or further.blur:  # even if this image is drawn clean, so that all images of a set are made alike
        made = degradation.degrade(hr_image, scale, drawn, key)
        kind = "MATLAB's" if drawn.bicubic == "matlab" else "legacy"
        return hr_image, made, f"made by this pipeline with {kind} bicubic{done}"
    lr_image = decode(sources.read_bytes(lr, sources.byte_limit(max_pixels)), max_pixels, as_stored=True)
    if (lr_image.shape[0] * scale, lr_image.shape[1] * scale, lr_image.shape[2]) != hr_image.shape:
        raise RejectedImageError(
            RejectionKind.MISMATCHED,
            f"has an LR file of shape {lr_image.shape}, which does not fit the HR shape {hr_image.shape} at x{scale}",
        )
    return hr_image, degradation.spoil(lr_image, drawn, key), f"files of the set{done}"


def score_image(sr: Pixels, hr: Pixels, scale: int) -> Score:
    """Score (H, W, C) uint8 images, without a border as wide as the scale."""
    return score(to_tensor(sr), to_tensor(hr), border=scale)


@tf32(False)
def measure(
    enlarged: Mapping[str, Tensor], lr: Tensor, hr: Tensor, squeezenet: str = "", st_lpips: bool = True
) -> dict[str, Metrics]:
    """Measure several enlarged versions of an image with all metrics.

    Args:
        enlarged: the versions by name, (C, H, W) uint8.
        lr: the image that was enlarged, (C, H/s, W/s) uint8; PSNR and SSIM leave out a border of s pixels.
        hr: the ground truth, with the shape of the versions. All images are on one device.
        squeezenet: URL of the weights, from `features.prepare_distance`; "" to leave out this distance.
        st_lpips: false to leave out ST-LPIPS.

    Returns:
        Metrics by the name of the version, in the order of `METRICS`.
    """
    scale, measured = hr.shape[-1] // lr.shape[-1], {}
    perceptual = _st_lpips(enlarged, hr) if st_lpips else {}
    for name, sr in enlarged.items():
        metrics: Metrics = {**asdict(score(sr, hr, border=scale)), "ssim_rgb": ssim_rgb(sr, hr, border=scale)}
        if st_lpips:
            metrics["st_lpips"] = perceptual[name]
        if squeezenet:
            metrics["distance"] = feature_distance(squeezenet, sr, hr)
        measured[name] = {**metrics, "lr_psnr": consistency(sr, lr)}
    return measured


def _st_lpips(enlarged: Mapping[str, Tensor], hr: Tensor) -> dict[str, float]:
    """Return ST-LPIPS of each version in fp32, computed on their device."""
    if not enlarged:
        return {}
    inputs = torch.cat([to_input(sr) for sr in enlarged.values()])
    distances = features.load_st_lpips(hr.device)(inputs, to_input(hr)).tolist()
    return dict(zip(enlarged, distances, strict=True))


@tf32(False)
def feature_distance(squeezenet: str, sr: Tensor, hr: Tensor) -> float:
    """Return the SqueezeNet feature distance of two images in fp32, computed on their device.

    Args:
        squeezenet: URL of the weights, from `features.prepare_distance`.
        sr: the enlarged image, (C, H, W) uint8; the single channel of a grey image is repeated.
        hr: the ground truth, of the same shape and on the same device.
    """
    return float(features.load_distance(squeezenet, hr.device)(to_input(sr), to_input(hr)))


FURTHER: dict[str, Callable[[Tensor, Tensor, Tensor, str], Metrics]] = {
    "st_lpips": lambda sr, _, hr, __: {"st_lpips": _st_lpips({"sr": sr}, hr)["sr"]},
    "distance": lambda sr, _, hr, squeezenet: {"distance": feature_distance(squeezenet, sr, hr)},
    "lr_psnr": lambda sr, lr, _, __: {"lr_psnr": consistency(sr, lr)},
    "phase_energy": lambda sr, lr, hr, _: {
        "phase_energy": phase_energy(sr, hr.shape[-1] // lr.shape[-1]),
        "true_phase_energy": phase_energy(hr, hr.shape[-1] // lr.shape[-1]),
    },
}
"""Metrics beside PSNR and SSIM that validations measure where a method of training asks for them. Each is computed from
the enlarged image, the LR image, the ground truth, and the URL of SqueezeNet's weights."""


@tf32(False)
def measure_further(names: Sequence[str], sr: Tensor, lr: Tensor, hr: Tensor, squeezenet: str = "") -> Metrics:
    """Measure metrics of `FURTHER`.

    Args:
        names: the metrics.
        sr: the enlarged image, (C, H, W) uint8.
        lr: the image that was enlarged, (C, H/s, W/s) uint8.
        hr: the ground truth, with the shape of `sr`. All images are on one device.
        squeezenet: URL of the weights, from `features.prepare_distance`, if "distance" is measured.
    """
    return {key: value for name in names for key, value in FURTHER[name](sr, lr, hr, squeezenet).items()}


def mean_scores(scores: Sequence[Metrics]) -> Metrics:
    """Return the mean of each metric, summed in the given order in float64; empty for no scores."""
    return {key: float(np.mean([s[key] for s in scores], dtype=np.float64)) for key in (scores[0] if scores else {})}


def bicubic_image(lr: Pixels, scale: int) -> Pixels:
    """Enlarge a (h, w, C) uint8 image with MATLAB's bicubic."""
    return to_pixels(upscale_bicubic(to_tensor(lr), scale))


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


def comparison_strip(image: HeldOutImage, sr: Tensor, scale: int) -> Image.Image:
    """Return the same crop of the bicubic, SR and HR image side by side, each 160 pixels wide.

    Args:
        image: the HR and LR image.
        sr: the SR image, (3, H, W) uint8; the bicubic image is made on its device.
        scale: HR pixels per LR pixel along an axis.
    """
    side = 160
    y, x = busiest_crop(image.hr, side)
    crop = (slice(None), slice(y, y + side), slice(x, x + side))
    bicubic = upscale_bicubic(to_tensor(image.lr, sr.device), scale)
    crops = [to_pixels(bicubic[crop]), to_pixels(sr[crop]), image.hr[y : y + side, x : x + side]]
    return Image.fromarray(np.concatenate(crops, axis=1))
