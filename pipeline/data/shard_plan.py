"""Group images into shards and name each shard by its content."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from pipeline.data.inventory import InspectedImage
from pipeline.data.manifest import FORMAT
from pipeline.settings import Config, Preprocess
from pipeline.storage import fingerprint

ALGORITHM = 2
"""Version of how a shard's content follows from its inputs; part of its name."""


@dataclass(frozen=True)
class ShardSpec:
    """A shard to be written; its name is a hash of everything that determines its bytes."""

    held_out: bool
    scale: int
    settings: Preprocess
    images: list[InspectedImage]

    @cached_property
    def file(self) -> str:
        """Name of the file."""
        shaping = {"degradation", "max_side", *(() if self.held_out else ("tile", "stride", "row_group", "min_detail"))}
        identity = {
            "format": FORMAT,
            "algorithm": ALGORITHM,
            "held_out": self.held_out,
            "scale": self.scale,
            **self.settings.model_dump(include=shaping),
            "images": [[p.name, p.sha256] for p in self.images],
        }
        return f"{'holdout' if self.held_out else 'train'}-{fingerprint(identity)}.parquet"


def plan_shards(config: Config, images: Sequence[InspectedImage], held_out: bool) -> Iterator[ShardSpec]:
    """Group consecutive images into shards of about the target size, `preprocess.shard_mb`.

    A shard has at least half of the target size. From there on it ends at an image whose hash says so, with a
    probability that gives the target size on average. An added or removed image therefore changes only the shards
    around it, and later shards start where they started before; with fixed sizes, all later shards would shift.

    Args:
        config: scale and preprocessing settings.
        images: the images of all shards, in order.
        held_out: whole images are stored instead of tiles.
    """
    settings = config.preprocess
    target = settings.shard_mb * 1e6
    group: list[InspectedImage] = []
    total = 0
    for image in images:
        size = _stored_bytes(image, settings, config.scale, held_out)
        group.append(image)
        total += size
        ends = int(image.sha256[:8], 16) < 2**32 * size / (target / 2)
        if total >= 2 * target or (total >= target / 2 and ends):
            yield ShardSpec(held_out, config.scale, settings, group)
            group, total = [], 0
    if group:
        yield ShardSpec(held_out, config.scale, settings, group)


def _stored_bytes(image: InspectedImage, settings: Preprocess, scale: int, held_out: bool) -> int:
    """Return the bytes of an image's HR pixels in a shard."""
    width, height = reduced_size(settings, image.width, image.height)
    if held_out:
        return width * height * 3
    columns, rows = (len(tile_origins(side // scale * scale, settings)) for side in (width, height))
    return columns * rows * settings.tile**2 * 3


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
    longer = max(width, height)
    if settings.max_side is None or longer <= settings.max_side:
        return width, height
    return max(width * settings.max_side // longer, 1), max(height * settings.max_side // longer, 1)
