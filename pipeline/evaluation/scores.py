"""Scores of enlarged images: their types, their labels, and the file that keeps them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Annotated

from pydantic import ConfigDict, Field

from pipeline import storage

PROTOCOL_VERSION = 2
"""Version of how images are scored; part of the identity of scores."""

PROTOCOL = (
    "PSNR and SSIM on the luma Y of BT.601 (MATLAB's rgb2ycbcr, 8 bits), without a border as wide as the scale; "
    "SSIM of Wang et al. 2004; PSNR (RGB) and SSIM (RGB, the mean of three channels) without the same border. Smaller "
    "distances are better: ST-LPIPS and the SqueezeNet distance compare features of whole images. LR-PSNR compares the "
    "enlarged image, reduced with MATLAB's bicubic, with the LR image. Scores of a set are means over its images."
)
"""How images are scored, for people."""

HELD_OUT = "held-out"
"""Name of the set of held-out images."""

BICUBIC = "bicubic"
"""The method of bicubic interpolation."""

METHODS = {BICUBIC: "bicubic", "untrained": "untrained network", "trained": "trained network"}
"""Label of each method that enlarges images in the evaluation of a training."""

METRICS = {
    "psnr_y": "PSNR (Y), dB",
    "ssim_y": "SSIM (Y)",
    "psnr_rgb": "PSNR (RGB), dB",
    "ssim_rgb": "SSIM (RGB)",
    "st_lpips": "ST-LPIPS",
    "distance": "SqueezeNet distance",
    "lr_psnr": "LR-PSNR, dB",
}
"""Label of each metric. ST-LPIPS and the SqueezeNet distance are measured only where they are configured, and scores of
earlier versions have no SSIM (RGB), ST-LPIPS and LR-PSNR."""

_LOWER_IS_BETTER = frozenset({"st_lpips", "distance"})


def higher_is_better(metric: str) -> bool:
    """Tell whether a higher value of a metric, a key of `METRICS`, means a better image."""
    return metric not in _LOWER_IS_BETTER


def is_better(metric: str, value: float, other: float | None) -> bool:
    """Tell whether a value of a metric is better than another one, if there is another; NaN never is."""
    if other is None or math.isnan(value):
        return not math.isnan(value)
    return value > other if higher_is_better(metric) else value < other


Metrics = dict[str, float]
"""Values by the name of their metric, a key of `METRICS`."""

_JSON = ConfigDict(ser_json_inf_nan="constants")  # older files may have an infinite PSNR


@dataclass(frozen=True)
class ImageScores:
    """The scores of one image."""

    __pydantic_config__ = _JSON

    name: str
    scores: dict[str, Metrics]
    """Metrics by method."""
    shown: dict[str, Annotated[str, Field(pattern=r"^images/[^./\\][^/\\]*/[^./\\][^/\\]*$")]]
    """Place of each version of the image that a report shows, by method, of the HR image as "hr" and perhaps of the LR
    image as "lr": in scores.json below its folder, otherwise a path or URL."""


@dataclass(frozen=True)
class SetScores:
    """The scores of a set of images."""

    __pydantic_config__ = _JSON

    lr: str
    """Origin of the LR images, in words."""
    images: list[ImageScores]
    mean: dict[str, Metrics]
    """Mean over the images of each metric, by method."""

    def count(self, method: str) -> int:
        """Return the number of images that a method has scores of."""
        return sum(method in image.scores for image in self.images)


@dataclass(frozen=True)
class Scores:
    """All scores of an evaluation: the content of scores.json."""

    identity: str
    """Fingerprint of the content of models and images, the methods and the protocol; it names no place."""
    protocol: str
    sets: dict[str, SetScores]
    """Scores by the name of the set."""
    problems: list[str] = field(default_factory=list)
    """A sentence for each file of another tool that could not be scored."""


def read_scores(folder: str, identity: str) -> Scores | None:
    """Return the scores in a folder, or None unless they have this identity and all images that they show."""
    scores = storage.read_expendable(f"{folder}/scores.json", Scores, "the images are scored again")
    if scores is None or scores.identity != identity or not _has_shown_images(scores, folder):
        return None
    return _located(scores, folder)


def write_scores(folder: str, scores: Scores) -> Scores:
    """Write scores.json to a folder, and return the scores with the places of the images that they show."""
    storage.write_document(f"{folder}/scores.json", scores)
    return _located(scores, folder)


def comparison_file(name: str) -> str:
    """Return the file name of the comparison of a set."""
    return f"comparison-{storage.plain_name(name)}.png"


def discard_scores(folder: str) -> None:
    """Remove the comparisons and scores.json of a folder before the images that they are about are replaced."""
    url = f"{folder}/scores.json"
    known = storage.read_expendable(url, Scores)
    for name in known.sets if known else []:
        storage.remove(f"{folder}/{comparison_file(name)}")
    storage.remove(url)


def _has_shown_images(scores: Scores, folder: str) -> bool:
    shown = {name for entry in scores.sets.values() for image in entry.images for name in image.shown.values()}
    folders = {name.rpartition("/")[0] for name in shown}
    there = {f"{part}/{name}" for part in folders for name, size in storage.sizes(f"{folder}/{part}").items() if size}
    return shown <= there


def _located(scores: Scores, folder: str) -> Scores:
    """Turn the names of shown images, which are relative in the file, into paths or URLs."""

    def located(image: ImageScores) -> ImageScores:
        return replace(image, shown={kind: f"{folder}/{name}" for kind, name in image.shown.items()})

    sets = {
        name: replace(entry, images=[located(image) for image in entry.images]) for name, entry in scores.sets.items()
    }
    return replace(scores, sets=sets)
