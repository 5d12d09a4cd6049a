"""The patch set: a folder of Parquet shards and a manifest, which is written last and makes it one.

A row of a training shard is one tile: `image_id`, `y`, `x` (HR pixel origin), `hr` and `lr` as raw bytes (uint8 RGB,
row-major HWC). A row of a held-out shard is one whole image: `image_id`, `height`, `width` (HR pixels), `hr`, `lr`.
Shape, scale, degradation and format version stand in the Parquet metadata, so that a shard explains itself.

`python -m pipeline.patchset show URL` tells what is in a patch set, `verify URL` whether it is still as it was made.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.settings import UserError
from sr_model.pixels import Pixels

FORMAT = 3
"""Version of the layout; part of every patch set's and shard's name."""

TILE_SCHEMA = pa.schema(
    [("image_id", pa.string()), ("y", pa.int32()), ("x", pa.int32()), ("hr", pa.binary()), ("lr", pa.binary())]
)
HOLDOUT_SCHEMA = pa.schema(
    [("image_id", pa.string()), ("height", pa.int32()), ("width", pa.int32()), ("hr", pa.binary()), ("lr", pa.binary())]
)


@dataclass(frozen=True)
class ImageRecord:
    """What became of a source image."""

    name: str
    sha256: str
    width: int
    height: int
    tiles: int
    """Tiles in the training shards; 0 if held out or rejected."""
    held_out: bool
    rejected: str | None = None
    """Why it isn't in the set."""
    flat: int = 0
    """Tiles dropped for lack of detail."""


@dataclass(frozen=True)
class Shard:
    """One Parquet file of the set."""

    file: str
    row_groups: list[int]
    """Rows of each row group."""
    bytes: int
    sha256: str
    images: list[ImageRecord]


@dataclass(frozen=True)
class PatchSet:
    """A finished patch set; open one with `load`."""

    url: str
    name: str
    scale: int
    tile: int
    """HR pixels, side of a tile."""
    settings: dict[str, Any]
    """The preprocessing settings that made it."""
    shards: list[Shard]
    holdout: list[Shard]
    rejected: list[ImageRecord] = field(default_factory=list)
    """Images that were rejected before they reached a shard."""
    format: int = FORMAT

    @property
    def all_shards(self) -> list[Shard]:
        """Training shards, then held-out ones."""
        return [*self.shards, *self.holdout]

    @property
    def images(self) -> list[ImageRecord]:
        """Every source image, rejected ones included, sorted by name."""
        records = [record for shard in self.all_shards for record in shard.images]
        return sorted(records + self.rejected, key=lambda record: record.name)

    @cached_property
    def row_groups(self) -> tuple[int, ...]:
        """Rows of each row group, over all training shards in order."""
        return tuple(rows for shard in self.shards for rows in shard.row_groups)

    @cached_property
    def _places(self) -> list[tuple[str, int]]:
        return [(shard.file, i) for shard in self.shards for i in range(len(shard.row_groups))]

    def read_group(self, number: int) -> tuple[Pixels, Pixels]:
        """Tiles of a row group: HR (n, tile, tile, 3) and LR (n, tile/scale, tile/scale, 3), uint8, read-only."""
        file, group = self._places[number]
        table = _read_group(f"{self.url}/{file}", group, ["hr", "lr"])
        return _unpack(table["hr"], self.tile), _unpack(table["lr"], self.tile // self.scale)

    @cached_property
    def holdout_names(self) -> list[str]:
        """Names of the held-out images, in the order of `read_holdout`'s number."""
        return [record.name for shard in self.holdout for record in shard.images if not record.rejected]

    def read_holdout(self, number: int) -> HeldOutImage:
        """A held-out image; each is a row group of its own."""
        places = [(shard.file, group) for shard in self.holdout for group in range(len(shard.row_groups))]
        file, group = places[number]
        (row,) = _read_group(f"{self.url}/{file}", group).to_pylist()
        height, width, s = row["height"], row["width"], self.scale
        hr = np.frombuffer(row["hr"], np.uint8).reshape(height, width, 3)
        lr = np.frombuffer(row["lr"], np.uint8).reshape(height // s, width // s, 3)
        return HeldOutImage(row["image_id"], hr, lr)

    def save(self) -> None:
        """Write the manifest: from now on the folder is a patch set."""
        for shard in self.all_shards:
            storage.flush(f"{self.url}/{shard.file}")
        manifest = asdict(self)
        del manifest["url"]
        storage.write_json(f"{self.url}/manifest.json", manifest)


class HeldOutImage(NamedTuple):
    """A whole image that isn't trained on."""

    name: str
    hr: Pixels
    """(H, W, 3)"""
    lr: Pixels
    """(H/scale, W/scale, 3)"""


def load(url: str) -> PatchSet:
    """Open a patch set.

    Raises:
        UserError: if there is no manifest, or one of another format.
    """
    try:
        manifest = storage.read_json(f"{url}/manifest.json")
    except ValueError as error:
        raise UserError(f"{url}/manifest.json is damaged: {error}") from None
    if manifest is None:
        raise UserError(f"{url} has no manifest.json, so it is no (finished) patch set: run pipeline.preprocess")
    if manifest["format"] != FORMAT:
        raise UserError(f"{url} has the format {manifest['format']}, expected {FORMAT}: run pipeline.preprocess again")
    for key in ("shards", "holdout"):
        manifest[key] = [_shard(record) for record in manifest[key]]
    manifest["rejected"] = [ImageRecord(**record) for record in manifest["rejected"]]
    return PatchSet(url=url, **manifest)


def _shard(record: dict[str, Any]) -> Shard:
    images = [ImageRecord(**image) for image in record.pop("images")]
    return Shard(images=images, **record)


def describe(patch_set: PatchSet) -> str:
    """Counts of a patch set in a line."""
    records = patch_set.images
    held_out = sum(record.held_out and not record.rejected for record in records)
    rejected = sum(record.rejected is not None for record in records)
    megabytes = sum(shard.bytes for shard in patch_set.all_shards) / 1e6
    return (
        f"{len(records)} images ({held_out} held out, {rejected} left out), "
        f"{sum(patch_set.row_groups)} tiles of {patch_set.tile}, {megabytes:.0f} MB"
    )


def write_shard(file: Path, schema: pa.Schema, row_groups: Iterable[pa.Table], metadata: dict[str, str]) -> None:
    """Write a Parquet file of row groups; `metadata` may be filled until the last one was taken."""
    with pq.ParquetWriter(
        file,
        schema,
        compression="none",
        use_dictionary=["image_id"],
        write_statistics=["image_id"],
        write_page_checksum=True,
    ) as writer:
        for table in row_groups:
            writer.write_table(table)
        writer.add_key_value_metadata(metadata)


def pack(images: Sequence[Pixels]) -> pa.Array:
    """Images of any sizes as one Arrow array of raw bytes; a single copy, from strided views, too."""
    ends = np.cumsum([0, *(image.size for image in images)])
    data = np.empty(int(ends[-1]), np.uint8)
    for image, start, end in zip(images, ends, ends[1:], strict=False):
        data[start:end].reshape(image.shape)[...] = image
    offsets = ends.astype(np.int32)
    return pa.Array.from_buffers(pa.binary(), len(images), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def read_shard(file: Path, name: str, check: bool) -> Shard | None:
    """What the manifest will say of a shard; None if it isn't whole.

    Args:
        file: local file.
        name: its name in the set.
        check: whether to read all of it against its own checksums.
    """
    try:
        parquet = pq.ParquetFile(file, page_checksum_verification=check)
        for group in range(parquet.num_row_groups if check else 0):
            parquet.read_row_group(group)
        images = [ImageRecord(**record) for record in json.loads(parquet.metadata.metadata[b"images"])]
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return None
    groups = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
    return Shard(name, groups, file.stat().st_size, storage.sha256(file), images)


def _unpack(column: pa.ChunkedArray, side: int) -> Pixels:
    # Rows of equal size lie one behind the other in the data buffer: no copy, no per-row work.
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0)
    size = side * side * 3
    data = np.frombuffer(array.buffers()[2], np.uint8, count=(array.offset + len(array)) * size)
    return data[array.offset * size :].reshape(len(array), side, side, 3)


def _read_group(url: str, group: int, columns: Sequence[str] | None = None) -> pa.Table:
    reader = threading.get_ident()  # readers share no open file: its position would be shared, too
    return storage.patiently(url, lambda: _open(url, reader).read_row_group(group, columns=columns))


@lru_cache(maxsize=128)
def _open(url: str, _reader: int) -> pq.ParquetFile:
    fs, path = fsspec.url_to_fs(url)
    if "file" in fs.protocol:
        return pq.ParquetFile(path, memory_map=True)
    # Of an object store, a row group's columns in one request, and nothing else: by default it reads 50 MB ahead.
    return pq.ParquetFile(fs.open(path, "rb", cache_type="none"), pre_buffer=True)
