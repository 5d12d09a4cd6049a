"""Split the images of an inventory into training images, held-out images and rejected ones."""

from __future__ import annotations

import fnmatch
import unicodedata
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from pipeline.data.inventory import InspectedImage
from pipeline.data.manifest import ImageRecord
from pipeline.data.rejection import Rejection, RejectionKind
from pipeline.data.shard_plan import reduced_size
from pipeline.settings import Config, Preprocess, UserError

_SMALLEST_HOLDOUT = 48
"""HR pixels; a held-out image with a shorter side has too few pixels inside the ignored border to be measured."""


class Split(NamedTuple):
    """A division of all images; no two images in `train` and `holdout` have the same content."""

    train: list[InspectedImage]
    holdout: list[InspectedImage]
    rejected: list[ImageRecord]
    """Sorted by name."""


def split_images(config: Config, images: Sequence[InspectedImage]) -> Split:
    """Decide for each image if it is trained on, held out or rejected.

    If images have the same content, a held-out one takes precedence, then the first by name; the others are rejected.

    Raises:
        UserError: if a pattern in `preprocess.holdout` matches no image.
    """
    settings = config.preprocess
    split = Split([], [], [])
    usable: list[InspectedImage] = []
    for image in images:
        if image.rejected:
            split.rejected.append(image.record())
        elif image.width * image.height > settings.max_pixels:
            detail = f"{image.width}x{image.height} is more than {settings.max_pixels} pixels"
            split.rejected.append(image.record(rejected=Rejection(RejectionKind.TOO_LARGE, detail)))
        else:
            usable.append(image)

    held_out_names = _held_out_names(settings, usable)
    first_name: dict[str, str] = {}  # by content
    for image in sorted(usable, key=lambda p: (p.name not in held_out_names, p.name)):
        held_out = image.name in held_out_names
        width, height = reduced_size(settings, image.width, image.height)
        smallest = _SMALLEST_HOLDOUT if held_out else settings.tile
        if image.sha256 in first_name:
            rejection = Rejection(RejectionKind.DUPLICATE, f"has the same content as {first_name[image.sha256]}")
            split.rejected.append(image.record(held_out=held_out, rejected=rejection))
        elif min(width, height) // config.scale * config.scale < smallest:
            detail = f"{width}x{height} is too small, expected at least {smallest} pixels a side"
            rejection = Rejection(RejectionKind.TOO_SMALL, detail)
            split.rejected.append(image.record(held_out=held_out, rejected=rejection))
        else:
            first_name[image.sha256] = image.name
            (split.holdout if held_out else split.train).append(image)
    split.rejected.sort(key=lambda record: record.name)
    return split


def _held_out_names(settings: Preprocess, usable: Sequence[InspectedImage]) -> set[str]:
    if not settings.holdout:
        return {p.name for p in sorted(usable, key=lambda p: p.sha256)[: settings.holdout_count]}
    names: set[str] = set()
    for pattern in settings.holdout:
        matching = {p.name for p in usable if _matches(p.name, pattern)}
        if not matching:
            raise UserError(f"preprocess.holdout has {pattern!r}, expected a pattern that matches an image's name")
        names |= matching
    return names


def _matches(name: str, pattern: str) -> bool:
    """Tell whether a pattern is, or matches, an image's path or its name without extension.

    Two forms of the same letter, such as one and two code points for "é", are equal: file systems differ in them.
    """
    pattern = unicodedata.normalize("NFC", pattern)
    forms = [unicodedata.normalize("NFC", form) for form in (name, PurePosixPath(name).stem)]
    return pattern in forms or any(fnmatch.fnmatch(form, pattern) for form in forms)
