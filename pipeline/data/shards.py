"""Make one shard from its images: decode, degrade, cut into tiles, write. It runs in Ray Data tasks.

Memory is proportional to the largest image and independent of the number of images; docs/guides/data.md says how much
each format takes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from pipeline import storage
from pipeline.data import degradation, parquet, sources
from pipeline.data.images import decode
from pipeline.data.inspected import InspectedImage
from pipeline.data.manifest import ImageRecord, Shard
from pipeline.data.rejection import RejectedImageError, RejectionKind
from pipeline.data.reuse import FinishedShard, reuse_shard
from pipeline.data.shard_plan import ShardSpec, reduced_size, tile_origins
from pipeline.settings import Preprocess
from pipeline.storage import printable
from sr_model.pixels import Pixels


def make_shard(spec: ShardSpec, url: str, finished: FinishedShard | None) -> Shard:
    """Write a shard, or reuse a finished one if it is undamaged.

    Args:
        spec: what to write.
        url: path or URL of the new file.
        finished: a shard of this name that already exists, at `url` itself or in another patch set.

    Raises:
        OSError: if the shard cannot be stored, an image can no longer be read, or there is not enough memory to decode
            it. Such an image is not rejected, because the shard's name does not depend on rejections, so the rejection
            would become permanent.
    """
    if finished and (shard := reuse_shard(spec.file, url, finished)):
        return shard
    with storage.create(url, sync=False) as part:  # saving the manifest syncs the shards that it names
        _write(spec, part)
        shard = parquet.read_shard(part, spec.file, check=False)
    assert shard is not None
    return shard


def _write(spec: ShardSpec, file: Path) -> None:
    schema = parquet.HOLDOUT_SCHEMA if spec.held_out else parquet.TILE_SCHEMA
    group_size = 1 if spec.held_out else spec.settings.row_group
    records: list[ImageRecord] = []
    waiting: list[_Row] = []
    with parquet.create_shard(file, schema) as writer:
        for record, rows in _images(spec):
            records.append(record)
            waiting += rows
            while len(waiting) >= group_size:
                writer.write_table(_table(waiting[:group_size], schema))
                waiting = waiting[group_size:]
        if waiting:
            writer.write_table(_table(waiting, schema))
        writer.add_key_value_metadata(parquet.shard_metadata(spec.scale, spec.settings, records))


class _Row(NamedTuple):
    """A row of either schema: a tile with its origin, or a whole image with its size."""

    image_id: str
    y_or_height: int
    x_or_width: int
    hr: Pixels
    lr: Pixels


def _images(spec: ShardSpec) -> Iterator[tuple[ImageRecord, list[_Row]]]:
    """Yield the record and the rows of each image; a rejected image has no rows."""
    settings = spec.settings
    for image in spec.images:
        try:
            hr = _load(image, settings, spec.scale)
        except RejectedImageError as error:
            if error.rejection.kind is RejectionKind.UNREADABLE:
                raise OSError(f"{printable(image.name)} {error}") from None
            yield image.record(held_out=spec.held_out, rejected=error.rejection), []
            continue
        except Exception as error:
            error.add_note(f"the image is {printable(image.name)}")
            raise
        height, width = hr.shape[:2]
        if spec.held_out:
            lr = degradation.degrade(hr, spec.scale, settings.degradation, image.sha256)
            rows, flat = [_Row(image.name, height, width, hr, lr)], 0
        else:
            rows, flat = _cut(image, hr, settings, spec.scale)
        record = image.record(held_out=spec.held_out, tiles=0 if spec.held_out else len(rows))
        yield replace(record, width=width, height=height, flat=flat), rows


def _table(rows: list[_Row], schema: pa.Schema) -> pa.Table:
    names, first, second, hr, lr = zip(*rows, strict=True)
    numbers = (pa.array(values, pa.int32()) for values in (first, second))
    return pa.Table.from_arrays([pa.array(names), *numbers, parquet.pack(hr), parquet.pack(lr)], schema=schema)


def _load(image: InspectedImage, settings: Preprocess, scale: int) -> Pixels:
    """Decode an image, reduce it to `max_side`, and crop it to a multiple of the scale; (H, W, 3)."""
    content = sources.read_bytes(image.location)
    unchanged = sources.is_unchanged(image.location, image.version)
    if not unchanged and hashlib.sha256(content).hexdigest() != image.sha256:
        raise OSError(f"{image.name} changed while the patch set was being made")
    rgb = decode(content, settings.max_pixels)
    width, height = reduced_size(settings, rgb.shape[1], rgb.shape[0])
    if (height, width) != rgb.shape[:2]:
        rgb = np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC))
    return rgb[: height // scale * scale, : width // scale * scale]


def _cut(image: InspectedImage, hr: Pixels, settings: Preprocess, scale: int) -> tuple[list[_Row], int]:
    """Return an image's tiles, those of HR as views, and the number of flat tiles that were dropped."""
    tile = settings.tile
    cut_lr = degradation.tile_cutter(hr, scale, tile, settings.degradation, image.sha256)
    rows, flat = [], 0
    for y in tile_origins(hr.shape[0], settings):
        for x in tile_origins(hr.shape[1], settings):
            square = hr[y : y + tile, x : x + tile]
            if settings.min_detail and square.mean(axis=2).std() < settings.min_detail:
                flat += 1
                continue
            rows.append(_Row(image.name, y, x, square, cut_lr(y, x)))
    return rows, flat
