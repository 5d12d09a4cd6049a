"""Group images into shards and name each shard by its content."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import overload

import numpy as np
import numpy.typing as npt

from pipeline.data.inspected import InspectedImages
from pipeline.data.manifest import FORMAT, ImageRecord
from pipeline.data.random_numbers import Ints
from pipeline.settings import Config, Preprocess
from pipeline.storage import fingerprint

ALGORITHM = 2
"""Version of how a shard's content follows from its inputs; part of its name."""
_BATCH = 1000
"""Shards whose images are taken from the table together."""

Digests = npt.NDArray[np.uint8]
"""Hashes, (n, 32)."""
Hashes = npt.NDArray[np.uint64]
"""The first 64 bits of hashes, (n,)."""


@dataclass(frozen=True)
class ShardSpec:
    """A shard to be written; its name is a hash of everything that determines its bytes."""

    held_out: bool
    scale: int
    settings: Preprocess
    images: InspectedImages

    @cached_property
    def file(self) -> str:
        """Name of the file."""
        contents = [[image.name, image.sha256] for image in self.images]
        return _name(contents, self.held_out, _identity(self.held_out, self.scale, self.settings))


def _identity(held_out: bool, scale: int, settings: Preprocess) -> dict[str, object]:
    """Return all that determines a shard's bytes beside its images."""
    shaping = {"degradation", "max_side", *(() if held_out else ("tile", "stride", "row_group", "min_detail"))}
    return {
        "format": FORMAT,
        "algorithm": ALGORITHM,
        "held_out": held_out,
        "scale": scale,
        **settings.model_dump(include=shaping),
    }


def _name(contents: list[list[str]], held_out: bool, identity: dict[str, object]) -> str:
    return f"{'holdout' if held_out else 'train'}-{fingerprint({**identity, 'images': contents})}.parquet"


class ShardPlan(Sequence[ShardSpec]):
    """The shards of a patch set: training shards, then held-out ones. A spec is made when it is asked for.

    Args:
        config: scale and preprocessing settings.
        images: all inspected images.
        train: rows of `images` to train on.
        holdout: rows of `images` to hold out. No two images in `train` and `holdout` have the same content.
    """

    def __init__(self, config: Config, images: InspectedImages, train: Ints, holdout: Ints) -> None:
        self._scale, self._settings = config.scale, config.preprocess
        self._images = images.combined()
        parts = [self._group(rows, held_out) for rows, held_out in ((train, False), (holdout, True))]
        self._rows = np.concatenate([rows for rows, _ in parts])
        self._ends = np.concatenate([parts[0][1], len(train) + parts[1][1]])
        self.trained = len(parts[0][1])
        """Number of training shards."""

    @property
    def images(self) -> int:
        """Number of images in all shards."""
        return len(self._rows)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, number: int) -> ShardSpec: ...
    @overload
    def __getitem__(self, number: slice) -> list[ShardSpec]: ...
    def __getitem__(self, number: int | slice) -> ShardSpec | list[ShardSpec]:
        """Return one spec or several."""
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        return next(self._specs(number, number + 1))

    def __iter__(self) -> Iterator[ShardSpec]:
        for start in range(0, len(self), _BATCH):
            yield from self._specs(start, min(start + _BATCH, len(self)))

    def _specs(self, start: int, stop: int) -> Iterator[ShardSpec]:
        begin = self._begin(start)
        images = self._images.take(self._rows[begin : self._ends[stop - 1]])
        for number in range(start, stop):
            part = images[self._begin(number) - begin : int(self._ends[number]) - begin]
            yield ShardSpec(number >= self.trained, self._scale, self._settings, part)

    def _begin(self, number: int) -> int:
        return int(self._ends[number - 1]) if number else 0

    @cached_property
    def files(self) -> list[str]:
        """Names of all shards."""
        identities = [_identity(held_out, self._scale, self._settings) for held_out in (False, True)]
        files = []
        for start in range(0, len(self), _BATCH):
            stop = min(start + _BATCH, len(self))
            begin = self._begin(start)
            rows = self._rows[begin : self._ends[stop - 1]]
            names = self._images.names.take(rows).to_pylist()
            text = self._images.digests[rows].tobytes().hex()
            contents = [[name, text[64 * i : 64 * i + 64]] for i, name in enumerate(names)]
            for number in range(start, stop):
                some = contents[self._begin(number) - begin : self._ends[number] - begin]
                files.append(_name(some, number >= self.trained, identities[number >= self.trained]))
        return files

    def name_patch_set(self, rejected: Sequence[ImageRecord]) -> str:
        """Name the patch set by its content.

        Args:
            rejected: the images that are already known to be unusable, sorted by name.
        """
        return f"x{self._scale}-{fingerprint([self.files, [asdict(record) for record in rejected]])}"

    def _group(self, rows: Ints, held_out: bool) -> tuple[Ints, Ints]:
        """Return the rows in the order of their shards, and the number of images up to the end of each shard."""
        images, settings = self._images, self._settings
        by_hash = settings.grouping == "hash"
        if by_hash:
            rows = rows[hash_order(images.digests, rows)]
        width, height = (images.numbers(side)[rows] for side in ("width", "height"))
        sizes = stored_bytes(width, height, settings, self._scale, held_out)
        group = group_by_hash if by_hash else group_in_order
        return rows, group(_leading_bits(images.digests)[rows], sizes, settings.shard_mb * 1e6)


def group_in_order(hashes: Hashes, sizes: Ints, target: float) -> Ints:
    """Group consecutive images into shards of about the target size.

    A shard has at least half of the target size. From there on it ends at an image whose hash says so, with a
    probability that gives the target size on average. An added or removed image therefore changes only the shards
    around it, and later shards start where they started before; with fixed sizes, all later shards would shift.

    Args:
        hashes: (n,) leading bits of the images' hashes.
        sizes: (n,) bytes of the images in a shard.
        target: bytes.

    Returns:
        Number of images up to the end of each shard.
    """
    count, total = len(sizes), np.cumsum(sizes)
    ending = np.flatnonzero((hashes >> np.uint64(32)) < 2**32 * sizes.astype(np.float64) / (target / 2))
    before = total - sizes
    smallest, largest = (np.searchsorted(total, before + math.ceil(size)) for size in (target / 2, 2 * target))
    place = np.searchsorted(ending, smallest)
    chosen = np.minimum(np.append(ending, count)[place], largest)
    ends, start = [], 0
    while start < count:
        start = min(int(chosen[start]) + 1, count)
        ends.append(start)
    return np.array(ends, np.int64)


def group_by_hash(hashes: Hashes, sizes: Ints, target: float) -> Ints:
    """Group images by the leading bits of their hashes, as few bits as give shards of at most twice the target size.

    A shard is a node of a binary tree over these bits. Nothing but the content of its own images and of those next to
    it in the tree decides whether a node is divided. So a changed image changes the shard that it leaves and the one
    that it joins, and no other; if the latter becomes too large, it is divided in two.

    Args:
        hashes: (n,) leading bits of the images' hashes, ascending.
        sizes: as for `group_in_order`.
        target: likewise.

    Returns:
        Number of images up to the end of each shard.
    """
    total = np.concatenate([[0], np.cumsum(sizes)])
    begin, end = np.array([0]), np.array([len(sizes)])
    ends = []
    for bit in reversed(range(64)):
        begin, end = begin[begin < end], end[begin < end]
        large = (total[end] - total[begin] > 2 * target) & (end - begin > 1)
        ends.append(end[~large])
        begin, end = begin[large], end[large]
        parent = hashes[begin] & np.uint64(2**64 - 2 ** (bit + 1))
        middle = np.searchsorted(hashes, parent | np.uint64(2**bit))
        begin, end = np.concatenate([begin, middle]), np.concatenate([middle, end])
    ends.append(end[begin < end])
    return np.sort(np.concatenate(ends))


def hash_order(digests: Digests, rows: Ints) -> Ints:
    """Return the order in which some rows have ascending hashes; rows with equal hashes keep their order.

    Args:
        digests: hashes of all images.
        rows: (n,) rows of `digests`.

    Returns:
        (n,) positions in `rows`.
    """
    first = _leading_bits(digests)[rows]
    order = np.argsort(first, kind="stable")
    equal = np.flatnonzero(np.diff(first[order]) == 0)
    if (digests[rows[order[equal]]] != digests[rows[order[equal + 1]]]).any():  # different hashes begin alike
        words = np.ascontiguousarray(digests[rows]).view(">u8")
        order = np.lexsort(words.T[::-1])
    return order


def _leading_bits(digests: Digests) -> Hashes:
    """Return the first 64 bits of hashes."""
    return np.ascontiguousarray(digests[:, :8]).view(">u8").ravel().astype(np.uint64)


def stored_bytes(width: Ints, height: Ints, settings: Preprocess, scale: int, held_out: bool) -> Ints:
    """Return the bytes of images' HR pixels in shards.

    Args:
        width: (n,) pixels.
        height: likewise.
        settings: preprocessing settings.
        scale: HR pixels per LR pixel along an axis.
        held_out: whole images are stored instead of tiles.
    """
    width, height = reduced_sizes(settings, width, height)
    if held_out:
        return width * height * 3
    columns, rows = (_count_tiles(side // scale * scale, settings) for side in (width, height))
    return columns * rows * settings.tile**2 * 3


def _count_tiles(side: Ints, settings: Preprocess) -> Ints:
    """Return how many origins `tile_origins` returns for each side."""
    last, stride = side - settings.tile, settings.stride or settings.tile
    counts: Ints = np.where(last < 0, 0, -(-last // stride) + 1)
    return counts


def tile_origins(side: int, settings: Preprocess) -> list[int]:
    """Return the origins of tiles along an axis: one every stride, and one more that covers the remainder.

    Args:
        side: length of the axis in HR pixels.
        settings: tile size and stride.
    """
    last = side - settings.tile
    if last < 0:
        return []
    origins = list(range(0, last + 1, settings.stride or settings.tile))
    return origins if origins[-1] == last else [*origins, last]


def reduced_size(settings: Preprocess, width: int, height: int) -> tuple[int, int]:
    """Return width and height in pixels after the reduction to `preprocess.max_side`."""
    (reduced_width,), (reduced_height,) = reduced_sizes(settings, np.array([width]), np.array([height]))
    return int(reduced_width), int(reduced_height)


def reduced_sizes(settings: Preprocess, width: Ints, height: Ints) -> tuple[Ints, Ints]:
    """Return widths and heights as `reduced_size` does."""
    if settings.max_side is None:
        return width, height
    longer = np.maximum(width, height)
    fits = longer <= settings.max_side
    divisor = np.maximum(longer, 1)
    reduced = (np.where(fits, side, np.maximum(side * settings.max_side // divisor, 1)) for side in (width, height))
    return next(reduced), next(reduced)
