"""Shards as Parquet files: their columns, and how they are written and read.

A row of a training shard is one tile: `image_id`, `y` and `x` (its origin in HR pixels), and `hr` and `lr` as raw bytes
(uint8 RGB, row-major HWC). A row of a held-out shard is one whole image: `image_id`, `height`, `width` (HR pixels),
`hr` and `lr`. The Parquet metadata states tile size, scale, degradation and format version, so a shard can be read
without the manifest.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.data.manifest import FORMAT, ImageRecord, Shard
from pipeline.settings import Preprocess
from sr_model.pixels import Pixels

TILE_SCHEMA = pa.schema(
    [("image_id", pa.string()), ("y", pa.int32()), ("x", pa.int32()), ("hr", pa.binary()), ("lr", pa.binary())]
)
"""Columns of a training shard."""
HOLDOUT_SCHEMA = pa.schema(
    [("image_id", pa.string()), ("height", pa.int32()), ("width", pa.int32()), ("hr", pa.binary()), ("lr", pa.binary())]
)
"""Columns of a held-out shard."""


def create_shard(file: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a Parquet file for writing; each table that is written becomes a row group."""
    return pq.ParquetWriter(
        file,
        schema,
        compression="none",
        use_dictionary=["image_id"],
        write_statistics=["image_id"],
        write_page_checksum=True,
    )


def shard_metadata(scale: int, settings: Preprocess, images: Sequence[ImageRecord]) -> dict[str, str]:
    """Return the entries of a shard's Parquet metadata."""
    return {
        "format": str(FORMAT),
        "scale": str(scale),
        "tile": str(settings.tile),
        "degradation": settings.degradation.model_dump_json(),
        "images": json.dumps([asdict(record) for record in images]),
    }


def pack(images: Sequence[Pixels]) -> pa.Array:
    """Return images of any sizes as one Arrow array of raw bytes; each is copied once, even from a strided view."""
    ends = np.cumsum([0, *(image.size for image in images)])
    data = np.empty(int(ends[-1]), np.uint8)
    for image, start, end in zip(images, ends, ends[1:], strict=False):
        data[start:end].reshape(image.shape)[...] = image
    offsets = ends.astype(np.int32)
    return pa.Array.from_buffers(pa.binary(), len(images), [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def unpack(column: pa.ChunkedArray, side: int) -> Pixels:
    """Return a column of square images as one array (n, side, side, 3), uint8 and read-only.

    Rows of equal size are adjacent in Arrow's data buffer, so nothing is copied and there is no loop over rows.
    """
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0)
    size = side * side * 3
    data = np.frombuffer(array.buffers()[2], np.uint8, count=(array.offset + len(array)) * size)
    return data[array.offset * size :].reshape(len(array), side, side, 3)


def read_shard(file: Path, name: str, check: bool) -> Shard | None:
    """Return a shard's entry in the manifest, or None if the file is damaged or incomplete.

    Args:
        file: local file.
        name: its name in the set.
        check: read the whole file and compare it with its own checksums.
    """
    try:
        parquet = pq.ParquetFile(file, page_checksum_verification=check)
        for group in range(parquet.num_row_groups if check else 0):
            parquet.read_row_group(group)
        images = storage.parse_document(parquet.metadata.metadata[b"images"], list[ImageRecord], str(file))
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return None
    groups = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
    return Shard(name, groups, file.stat().st_size, storage.sha256(file), images)


def read_row_group(url: str, group: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a row group of a shard at any path or URL; the file stays open for further calls from the same thread.

    Raises:
        OSError: if it cannot be read.
    """
    thread = threading.get_ident()  # threads share no open file, because they would share its position
    return storage.with_retries(url, lambda: _open(url, thread).read_row_group(group, columns=columns))


@lru_cache(maxsize=128)
def _open(url: str, _thread: int) -> pq.ParquetFile:
    fs, path = fsspec.url_to_fs(url)
    if "file" in fs.protocol:
        return pq.ParquetFile(path, memory_map=True)
    # Request exactly the columns of one row group from an object store; the default would read 50 MB ahead.
    return pq.ParquetFile(fs.open(path, "rb", cache_type="none"), pre_buffer=True)
