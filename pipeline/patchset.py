"""The patch set: a folder of Parquet shards and a manifest, which is written last and makes it one.

A row of a training shard is one tile: `image_id`, `y`, `x` (HR pixel origin), `hr` and `lr` as raw bytes (uint8 RGB,
row-major HWC). A row of a held-out shard is one whole picture: `image_id`, `height`, `width` (HR pixels), `hr`, `lr`.
Shape, scale, degradation and format version stand in the Parquet metadata, so that a shard explains itself.
"""

from __future__ import annotations

import io
import queue
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.config import UserError
from pipeline.sampler import SampleOrder, Window, augmentations

FORMAT = 1
"""Version of the layout; part of every patch set's and shard's name."""

TILE_SCHEMA = pa.schema(
    [("image_id", pa.string()), ("y", pa.int32()), ("x", pa.int32()), ("hr", pa.binary()), ("lr", pa.binary())]
)
HOLDOUT_SCHEMA = pa.schema(
    [("image_id", pa.string()), ("height", pa.int32()), ("width", pa.int32()), ("hr", pa.binary()), ("lr", pa.binary())]
)

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PictureRecord:
    """What became of a source picture."""

    name: str
    sha256: str
    width: int
    height: int
    tiles: int
    """Tiles in the training shards; 0 if held out or rejected."""
    held_out: bool
    rejected: str | None = None
    """Why it isn't in the set."""


@dataclass(frozen=True)
class Shard:
    """One Parquet file of the set."""

    file: str
    row_groups: list[int]
    """Rows of each row group."""
    bytes: int
    sha256: str
    pictures: list[PictureRecord]


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
    rejected: list[PictureRecord] = field(default_factory=list)
    """Pictures that were rejected before they reached a shard."""
    format: int = FORMAT

    @property
    def pictures(self) -> list[PictureRecord]:
        """Every source picture, rejected ones included, sorted by name."""
        records = [record for shard in (*self.shards, *self.holdout) for record in shard.pictures]
        return sorted(records + self.rejected, key=lambda record: record.name)

    @cached_property
    def row_groups(self) -> tuple[int, ...]:
        """Rows of each row group, over all training shards in order."""
        return tuple(rows for shard in self.shards for rows in shard.row_groups)

    @cached_property
    def _places(self) -> list[tuple[str, int]]:
        return [(shard.file, i) for shard in self.shards for i in range(len(shard.row_groups))]

    def read_group(self, number: int) -> tuple[Bytes, Bytes]:
        """Tiles of a row group: HR (n, tile, tile, 3) and LR (n, tile/scale, tile/scale, 3), uint8, read-only."""
        file, group = self._places[number]
        table = _open(f"{self.url}/{file}").read_row_group(group, columns=["hr", "lr"])
        return _unpack(table["hr"], self.tile), _unpack(table["lr"], self.tile // self.scale)

    @cached_property
    def holdout_names(self) -> list[str]:
        """Names of the held-out pictures, in the order of `read_holdout`'s number."""
        return [record.name for shard in self.holdout for record in shard.pictures if not record.rejected]

    def read_holdout(self, number: int) -> HoldoutPicture:
        """A held-out picture; each is a row group of its own."""
        places = [(shard.file, group) for shard in self.holdout for group in range(len(shard.row_groups))]
        file, group = places[number]
        (row,) = _open(f"{self.url}/{file}").read_row_group(group).to_pylist()
        height, width, s = row["height"], row["width"], self.scale
        hr = np.frombuffer(row["hr"], np.uint8).reshape(height, width, 3)
        lr = np.frombuffer(row["lr"], np.uint8).reshape(height // s, width // s, 3)
        return HoldoutPicture(row["image_id"], hr, lr)

    def save(self) -> None:
        """Write the manifest: from now on the folder is a patch set."""
        manifest = asdict(self)
        del manifest["url"]
        storage.write_json(f"{self.url}/manifest.json", manifest)


class HoldoutPicture(NamedTuple):
    """A whole picture that isn't trained on."""

    name: str
    hr: Bytes
    """(H, W, 3)"""
    lr: Bytes
    """(H/scale, W/scale, 3)"""


def load(url: str) -> PatchSet:
    """Open a patch set.

    Raises:
        UserError: if there is no manifest, or one of another format.
    """
    manifest = storage.read_json(f"{url}/manifest.json")
    if manifest is None:
        raise UserError(f"{url} has no manifest.json, so it is no (finished) patch set: run pipeline.preprocess")
    if manifest["format"] != FORMAT:
        raise UserError(f"{url} has the format {manifest['format']}, expected {FORMAT}: run pipeline.preprocess again")
    for key in ("shards", "holdout"):
        manifest[key] = [_shard(record) for record in manifest[key]]
    manifest["rejected"] = [PictureRecord(**record) for record in manifest["rejected"]]
    return PatchSet(url=url, **manifest)


def _shard(record: dict[str, Any]) -> Shard:
    pictures = [PictureRecord(**picture) for picture in record.pop("pictures")]
    return Shard(pictures=pictures, **record)


class Batch(NamedTuple):
    """A rank's samples of one optimizer step."""

    step: int
    lr: Bytes
    """(n, crop/scale, crop/scale, 3)"""
    hr: Bytes
    """(n, crop, crop, 3)"""


class BatchReader:
    """Reads a rank's samples of one step after the other, ahead of time, in a thread.

    Memory: for each lane of the rank the row groups of one window, and `ahead` batches.

    Args:
        patch_set: what to read.
        order: which samples make a step.
        batch: global batch size.
        crop: HR pixels, side of a training patch.
        augment: whether to flip and turn.
        rank: this worker.
        world: number of workers.
        ahead: batches to have ready.
    """

    def __init__(
        self,
        patch_set: PatchSet,
        order: SampleOrder,
        *,
        batch: int,
        crop: int,
        augment: bool,
        rank: int,
        world: int,
        ahead: int = 4,
    ) -> None:
        self._set = patch_set
        self._order = order
        self._batch, self._crop, self._augment = batch, crop, augment
        self._rank, self._world, self._ahead = rank, world, ahead
        self._first_tile = np.cumsum([0, *patch_set.row_groups])
        self._held: dict[int, tuple[Window, dict[int, tuple[Bytes, Bytes]]]] = {}  # lane -> its row groups

    def read(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps [start, stop)."""
        ready: queue.Queue[Batch | Exception] = queue.Queue(self._ahead)
        closed = threading.Event()

        def put(item: Batch | Exception) -> None:
            while not closed.is_set():
                try:
                    ready.put(item, timeout=0.2)
                    return
                except queue.Full:
                    continue

        def produce() -> None:
            try:
                for step in range(start, stop):
                    if closed.is_set():
                        return
                    put(self.step(step))
            except Exception as error:  # handed to the consumer, whose thread raises it
                put(error)

        thread = threading.Thread(target=produce, name="batch-reader", daemon=True)
        thread.start()
        try:
            for _ in range(start, stop):
                item = ready.get()
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            closed.set()
            thread.join()

    def step(self, step: int) -> Batch:
        """The samples of one step, read now."""
        order, scale = self._order, self._set.scale
        positions = order.share(step, self._batch, self._rank, self._world)
        samples = [order.sample(position) for position in positions]
        side = self._crop // scale
        hr = np.empty((len(samples), self._crop, self._crop, 3), np.uint8)
        lr = np.empty((len(samples), side, side, 3), np.uint8)
        room = self._set.tile // scale - side
        how = augmentations(samples, order.seed, room, self._augment)
        for i, (position, sample) in enumerate(zip(positions, samples, strict=True)):
            tile_hr, tile_lr = self._tile(order.window_of(position), sample.tile)
            y, x, flip, turns = how[i]
            for out, tile, s in ((hr, tile_hr, scale), (lr, tile_lr, 1)):
                patch = tile[y * s : (y + side) * s, x * s : (x + side) * s]
                out[i] = np.rot90(patch[:, ::-1] if flip else patch, turns)
        return Batch(step, lr, hr)

    def _tile(self, window: Window, tile: int) -> tuple[Bytes, Bytes]:
        current, groups = self._held.get(window.lane, (None, {}))
        if current != window:
            needed = sorted(self._order.window_groups(window))
            groups = {g: groups.get(g) or self._set.read_group(g) for g in needed}
            self._held[window.lane] = window, groups
        group = int(np.searchsorted(self._first_tile, tile, side="right")) - 1
        hr, lr = groups[group]
        row = tile - int(self._first_tile[group])
        return hr[row], lr[row]


def write_rows(schema: pa.Schema, row_groups: Iterator[list[dict[str, Any]]], metadata: dict[str, str]) -> bytes:
    """A shard's bytes: one row group per list of rows; `metadata` may be filled until the last list was taken."""
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, schema, compression="none", use_dictionary=["image_id"]) as writer:
        for rows in row_groups:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
        writer.add_key_value_metadata(metadata)
    return sink.getvalue()


def read_metadata(content: bytes) -> tuple[dict[str, str], list[int]]:
    """Metadata and rows of each row group of a shard's bytes.

    Raises:
        pyarrow.ArrowInvalid: if the bytes are no whole Parquet file.
    """
    footer = pq.ParquetFile(io.BytesIO(content)).metadata
    metadata = {key.decode(): value.decode() for key, value in (footer.metadata or {}).items()}
    return metadata, [footer.row_group(i).num_rows for i in range(footer.num_row_groups)]


def _unpack(column: pa.ChunkedArray, side: int) -> Bytes:
    # Rows of equal size lie one behind the other in the data buffer: no copy, no per-row work.
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0)
    size = side * side * 3
    data = np.frombuffer(array.buffers()[2], np.uint8, count=(array.offset + len(array)) * size)
    return data[array.offset * size :].reshape(len(array), side, side, 3)


@lru_cache(maxsize=32)
def _open(url: str) -> pq.ParquetFile:
    fs, path = fsspec.url_to_fs(url)
    return pq.ParquetFile(fs.open(path, "rb"))
