"""Split the images of an inventory into training images, held-out images and rejected ones."""

from __future__ import annotations

import fnmatch
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.inspected import InspectedImages
from pipeline.data.manifest import ImageRecord
from pipeline.data.random_numbers import Ints
from pipeline.data.rejection import Rejection, RejectionKind
from pipeline.data.shard_plan import hash_order, reduced_size, reduced_sizes
from pipeline.settings import Config, Preprocess, UserError

_SMALLEST_HOLDOUT = 48
"""HR pixels; a held-out image with a shorter side has too few pixels inside the ignored border to be measured."""

_ROWS = 2**16
"""Images whose names or hashes are copied at the same time."""

Flags = npt.NDArray[np.bool_]


class Split(NamedTuple):
    """A division of all images; no two images in `train` and `holdout` have the same content."""

    train: Ints
    """Rows of the inventory, in the order of the images' names, as in `holdout`."""
    holdout: Ints
    rejected: list[ImageRecord]
    """Sorted by name."""


def split_images(config: Config, images: InspectedImages) -> Split:
    """Decide for each image if it is trained on, held out or rejected.

    If images have the same content, a held-out one takes precedence, then the first by name; the others are rejected.

    Raises:
        UserError: if a pattern in `preprocess.holdout` matches no image.
    """
    settings = config.preprocess
    images = images.combined()
    width, height = images.numbers("width"), images.numbers("height")
    large = ~images.rejected & (width.astype(np.float64) * height > settings.max_pixels)
    usable = np.flatnonzero(~images.rejected & ~large)
    held_out = np.zeros(len(images), np.bool_)
    held_out[_held_out(settings, images, usable)] = True

    names = images.names
    if len(names) > 1 and not pc.all(pc.less_equal(names[:-1], names[1:])).as_py():
        usable = usable[pc.sort_indices(names.take(usable)).to_numpy()]
    rows = np.concatenate([usable[held_out[usable]], usable[~held_out[usable]]])  # by precedence
    smallest = np.where(held_out[rows], _SMALLEST_HOLDOUT, settings.tile)
    shorter = np.minimum(*reduced_sizes(settings, width[rows], height[rows]))
    suits = shorter // config.scale * config.scale >= smallest
    keeper = _first_of_equals(images, rows, suits)
    position = np.arange(len(rows))
    kept, duplicate = keeper == position, keeper < position

    reasons: dict[int, Rejection | None] = dict.fromkeys(np.flatnonzero(images.rejected).tolist())
    for row in np.flatnonzero(large).tolist():
        detail = f"{width[row]}x{height[row]} is more than {settings.max_pixels} pixels"
        reasons[row] = Rejection(RejectionKind.TOO_LARGE, detail)
    firsts = names.take(rows[keeper[duplicate]]).to_pylist()
    for row, first in zip(rows[duplicate].tolist(), firsts, strict=True):
        reasons[row] = Rejection(RejectionKind.DUPLICATE, f"has the same content as {first}")
    for row in rows[~kept & ~duplicate].tolist():
        sides = "x".join(map(str, reduced_size(settings, int(width[row]), int(height[row]))))
        least = _SMALLEST_HOLDOUT if held_out[row] else settings.tile
        detail = f"{sides} is too small, expected at least {least} pixels a side"
        reasons[row] = Rejection(RejectionKind.TOO_SMALL, detail)
    rejected = [
        image.record(held_out=bool(held_out[row]), rejected=reasons[row])
        for row, image in zip(reasons, images.take(np.array([*reasons], np.int64)), strict=True)
    ]
    chosen = rows[kept]
    return Split(chosen[~held_out[chosen]], chosen[held_out[chosen]], sorted(rejected, key=lambda record: record.name))


def _first_of_equals(images: InspectedImages, rows: Ints, suits: Flags) -> Ints:
    """Return for each position in `rows` the first one of the same content that suits, `len(rows)` if none does."""
    count = len(rows)
    digests = images.digests
    order = hash_order(digests, rows)
    by_hash = rows[order]
    first = np.ones(count, np.bool_)  # of its content
    for start in range(1, count, _ROWS):
        some = digests[by_hash[start - 1 : start + _ROWS]]
        first[start : start + _ROWS] = (some[1:] != some[:-1])[:_ROWS].any(1)
    content = np.cumsum(first) - 1
    suitable = np.where(suits[order], order, count)
    keepers = np.minimum.reduceat(suitable, np.flatnonzero(first)) if count else suitable
    keeper = np.empty(count, np.int64)
    keeper[order] = keepers[content]
    return keeper


def _held_out(settings: Preprocess, images: InspectedImages, usable: Ints) -> Ints:
    """Return the rows of the usable images that are held out."""
    if not settings.holdout:
        return usable[hash_order(images.digests, usable)[: settings.holdout_count]]
    names = images.names.take(usable)
    held_out = np.zeros(len(usable), np.bool_)
    for pattern in settings.holdout:
        matching = np.fromiter(map(_matcher(pattern), _texts(names)), np.bool_, len(names))
        if not matching.any():
            raise UserError(f"preprocess.holdout has {pattern!r}, expected a pattern that matches an image's name")
        held_out |= matching
    return usable[held_out]


def _texts(names: pa.ChunkedArray) -> Iterator[str]:
    for start in range(0, len(names), _ROWS):
        yield from names.slice(start, _ROWS).to_pylist()


def _matcher(pattern: str) -> Callable[[str], bool]:
    """Return a function that tells whether a pattern is, or matches, an image's path or its name without extension.

    Two forms of the same letter, such as one and two code points for "é", are equal: file systems differ in them.
    """
    pattern = unicodedata.normalize("NFC", pattern)
    match = re.compile(fnmatch.translate(pattern)).match

    def matches(name: str) -> bool:
        forms = [unicodedata.normalize("NFC", form) for form in (name, PurePosixPath(name).stem)]
        return pattern in forms or any(map(match, forms))

    return matches
