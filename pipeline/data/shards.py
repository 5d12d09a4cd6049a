"""One shard from its images: decode, degrade, cut, write. Runs in Ray Data tasks, and knows nothing of Ray.

Memory follows the largest image, about 10 bytes a pixel, whatever the number of images in the shard.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from pipeline import storage
from pipeline.data import patchset, sources
from pipeline.data.images import RejectedImageError, decode
from pipeline.data.patchset import ImageRecord, Shard
from pipeline.settings import Degradation, Preprocess
from pipeline.storage import fingerprint
from sr_model.degrade import add_noise, blur, downscale
from sr_model.pixels import Pixels

ALGORITHM = 2
"""Version of what a shard holds for the same inputs; part of its name."""


@dataclass(frozen=True)
class InspectedImage:
    """An image of the inventory: what its bytes are, and what its header says."""

    name: str
    url: str
    sha256: str
    width: int
    """Pixels, before the orientation is applied."""
    height: int
    bytes: int
    rejected: str | None

    def record(self, *, held_out: bool = False, tiles: int = 0, rejected: str | None = None) -> ImageRecord:
        """What the manifest says of the image."""
        return ImageRecord(self.name, self.sha256, self.width, self.height, tiles, held_out, rejected or self.rejected)


@dataclass(frozen=True)
class ShardSpec:
    """A shard to be written; its name follows from all that shapes its bytes."""

    held_out: bool
    scale: int
    settings: Preprocess
    images: list[InspectedImage]

    @cached_property
    def file(self) -> str:
        """Name of the file."""
        shaping = {"degradation", "max_side", *(() if self.held_out else ("tile", "stride", "row_group", "min_detail"))}
        identity = {
            "format": patchset.FORMAT,
            "algorithm": ALGORITHM,
            "held_out": self.held_out,
            "scale": self.scale,
            **self.settings.model_dump(include=shaping),
            "images": [[p.name, p.sha256] for p in self.images],
        }
        return f"{'holdout' if self.held_out else 'train'}-{fingerprint(identity)}.parquet"


def make(spec: ShardSpec, url: str, finished: str | None) -> Shard:
    """Write a shard to `url`, or take over a finished one, if it is whole.

    Args:
        spec: what to write.
        url: where to.
        finished: where a shard of that name was seen; `url` itself, or in another patch set.

    Raises:
        OSError: if it cannot be stored, or an image cannot be read any more: a reject would stay one, since a shard's
            name says nothing of it.
    """
    if finished:
        try:
            with storage.local_copy(finished) as file:
                shard = patchset.read_shard(file, spec.file, check=True)
                if shard and finished != url:
                    storage.copy(file, url)
            if shard:
                return shard
        except FileNotFoundError:  # removed meanwhile
            pass
    with storage.create(url, sync=False) as part:  # `save` of the manifest flushes what it names
        _write(spec, part)
        shard = patchset.read_shard(part, spec.file, check=False)
    assert shard is not None
    return shard


def _write(spec: ShardSpec, file: Path) -> None:
    settings = spec.settings
    metadata = {
        "format": str(patchset.FORMAT),
        "scale": str(spec.scale),
        "tile": str(settings.tile),
        "degradation": settings.degradation.model_dump_json(),
    }
    records: list[ImageRecord] = []

    def groups() -> Iterator[pa.Table]:
        size = 1 if spec.held_out else settings.row_group
        waiting: list[_Row] = []
        for image in spec.images:
            try:
                hr = _load(image, settings, spec.scale)
            except RejectedImageError as error:
                records.append(image.record(held_out=spec.held_out, rejected=str(error)))
                continue
            lr = _degrade(hr, spec.scale, settings.degradation, image.sha256)
            if spec.held_out:
                rows, flat = [_Row(image.name, hr.shape[0], hr.shape[1], hr, lr)], 0
            else:
                rows, flat = _cut(image.name, hr, lr, settings, spec.scale)
            records.append(
                replace(
                    image.record(held_out=spec.held_out, tiles=0 if spec.held_out else len(rows)),
                    width=hr.shape[1],
                    height=hr.shape[0],
                    flat=flat,
                )
            )
            waiting += rows
            while len(waiting) >= size:
                yield _table(waiting[:size], schema)
                waiting = waiting[size:]
        if waiting:
            yield _table(waiting, schema)
        metadata["images"] = json.dumps([asdict(record) for record in records])

    schema = patchset.HOLDOUT_SCHEMA if spec.held_out else patchset.TILE_SCHEMA
    patchset.write_shard(file, schema, groups(), metadata)


class _Row(NamedTuple):
    """A row of either schema: a tile with its origin, or a whole image with its size."""

    image_id: str
    y_or_height: int
    x_or_width: int
    hr: Pixels
    lr: Pixels


def _table(rows: list[_Row], schema: pa.Schema) -> pa.Table:
    names, first, second, hr, lr = zip(*rows, strict=True)
    numbers = (pa.array(values, pa.int32()) for values in (first, second))
    return pa.Table.from_arrays([pa.array(names), *numbers, patchset.pack(hr), patchset.pack(lr)], schema=schema)


def _load(image: InspectedImage, settings: Preprocess, scale: int) -> Pixels:
    """Decode an image, reduce it to `max_side`, crop it to a multiple of the scale."""
    content = sources.read_bytes(image.url)
    if hashlib.sha256(content).hexdigest() != image.sha256:
        raise OSError(f"{image.name} changed while the patch set was being made")
    rgb = decode(content, settings.max_pixels)
    width, height = reduced_size(settings, rgb.shape[1], rgb.shape[0])
    if (height, width) != rgb.shape[:2]:
        rgb = np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC))
    return rgb[: height // scale * scale, : width // scale * scale]


def _degrade(hr: Pixels, scale: int, settings: Degradation, content: str) -> Pixels:
    """The LR image: blur, bicubic reduction, noise, JPEG, each if it is asked for."""
    x = as_tensor(hr).permute(2, 0, 1)
    if settings.blur:
        x = blur(x, settings.blur)
    x = downscale(x, scale, settings.bicubic)
    lr = x.permute(1, 2, 0)
    if settings.noise:
        lr = add_noise(lr, settings.noise, f"{settings.seed} {content}".encode())
    if settings.jpeg:
        sink = io.BytesIO()
        Image.fromarray(lr.numpy()).save(sink, "JPEG", quality=settings.jpeg)
        return decode(sink.getvalue(), lr.shape[0] * lr.shape[1])
    return lr.numpy()


def as_tensor(image: Pixels) -> torch.Tensor:
    """The same memory as a tensor, which is only read: decoded images are immutable, what torch warns of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(image)


def _cut(name: str, hr: Pixels, lr: Pixels, settings: Preprocess, scale: int) -> tuple[list[_Row], int]:
    """The tiles of an image, as views, and the number of flat ones that were left out."""
    tile, lr_tile = settings.tile, settings.tile // scale
    rows, flat = [], 0
    for y in tile_origins(hr.shape[0], settings):
        for x in tile_origins(hr.shape[1], settings):
            square = hr[y : y + tile, x : x + tile]
            if settings.min_detail and square.mean(axis=2).std() < settings.min_detail:
                flat += 1
                continue
            ly, lx = y // scale, x // scale
            rows.append(_Row(name, y, x, square, lr[ly : ly + lr_tile, lx : lx + lr_tile]))
    return rows, flat


def tile_origins(side: int, settings: Preprocess) -> list[int]:
    """Origins of tiles along an axis of `side` HR pixels: every stride, and one more that covers the remainder."""
    last = side - settings.tile
    if last < 0:
        return []
    origins = list(range(0, last + 1, settings.stride or settings.tile))
    return origins if origins[-1] == last else [*origins, last]


def reduced_size(settings: Preprocess, width: int, height: int) -> tuple[int, int]:
    """Size after the reduction to `max_side`."""
    longer = max(width, height)
    if settings.max_side is None or longer <= settings.max_side:
        return width, height
    return max(width * settings.max_side // longer, 1), max(height * settings.max_side // longer, 1)
