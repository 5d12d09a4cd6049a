"""Shards as Parquet files: their columns, and how they are written and read.

A row of a training shard is one tile: `image_id`, `y` and `x` (its origin in HR pixels), and `hr` and `lr` as raw bytes
(uint8 RGB, row-major HWC). A row of a held-out shard is one whole image: `image_id`, `height`, `width` (HR pixels),
`hr` and `lr`. The Parquet metadata states tile size, scale, degradation and format version, so a shard can be read
without the manifest.
"""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.data.manifest import FORMAT, ImageRecord, Shard
from pipeline.settings import Preprocess
from sr_model.pixels import Pixels

T = TypeVar("T")

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

    Raises:
        ValueError: if a row is missing or has another size.
    """
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0)
    size = side * side * 3
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int32, array.offset + len(array) + 1)[array.offset :].astype(np.int64)
    if array.null_count or (np.diff(ends) != size).any():
        raise ValueError(f"rows are not all images of {side}x{side} pixels")
    return np.frombuffer(data, np.uint8, len(array) * size, int(ends[0])).reshape(len(array), side, side, 3)


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
        groups = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
    except Exception:  # pyarrow raises exceptions of many classes for a damaged file
        return None
    return Shard(name, groups, file.stat().st_size, storage.sha256(file), images)


class DamagedShardError(storage.DamagedFileError):
    """A shard is missing or damaged. The text is one sentence."""

    def __init__(self, url: str, problem: str) -> None:
        self.url, self.problem = url, problem
        folder, _, file = url.rpartition("/")
        remove = f"delete {file} and " if problem.startswith("is damaged") else ""
        super().__init__(
            f"the shard {url} {problem}: {remove}rerun the command, which makes it again; "
            f"python -m pipeline.patchset verify {shlex.quote(folder)} checks all shards"
        )

    def __reduce__(self) -> tuple[type[DamagedShardError], tuple[str, str]]:
        return DamagedShardError, (self.url, self.problem)


_DAMAGE = (pa.ArrowException, ArithmeticError, LookupError, TypeError, ValueError)
"""Exceptions that pyarrow and numpy raise for a damaged file, beside `OSError` without a number."""


def read_tiles(url: str, group: int, rows: int, sides: Sequence[int]) -> tuple[Pixels, Pixels]:
    """Read a row group of a training shard at any path or URL.

    The first read of a row group in this process compares its pages with their checksums, which takes as long as the
    read itself. The file stays open for further calls from the same thread.

    Args:
        url: path or URL of the shard.
        group: number of the row group.
        rows: expected number of rows.
        sides: side of an HR tile and of an LR tile.

    Returns:
        HR (rows, side, side, 3) and LR tiles, uint8 and read-only.

    Raises:
        DamagedShardError: if the shard is missing or damaged.
        OSError: if it cannot be read.
    """

    def read(file: pq.ParquetFile) -> tuple[Pixels, Pixels]:
        table = file.read_row_group(group, columns=["hr", "lr"])
        if table.num_rows != rows:
            raise ValueError(f"row group {group} has {table.num_rows} rows instead of {rows}")
        return unpack(table["hr"], sides[0]), unpack(table["lr"], sides[1])

    return _read(url, group, read)


def read_image(url: str, group: int, scale: int) -> tuple[str, Pixels, Pixels]:
    """Read the image of a row group of a held-out shard; the arguments and errors are those of `read_tiles`.

    Returns:
        Name, HR (H, W, 3) and LR (H/scale, W/scale, 3), uint8 and read-only.
    """

    def read(file: pq.ParquetFile) -> tuple[str, Pixels, Pixels]:
        (row,) = file.read_row_group(group).to_pylist()
        height, width = row["height"], row["width"]
        if min(height, width) < scale:
            raise ValueError(f"an image has {width}x{height} pixels")
        hr = np.frombuffer(row["hr"], np.uint8).reshape(height, width, 3)
        lr = np.frombuffer(row["lr"], np.uint8).reshape(height // scale, width // scale, 3)
        return str(row["image_id"]), hr, lr

    return _read(url, group, read)


_compared: set[tuple[str, int]] = set()
"""Shards and row groups whose pages agreed with their checksums."""


def _read(url: str, group: int, read: Callable[[pq.ParquetFile], T]) -> T:
    thread = threading.get_ident()  # threads share no open file, because they would share its position
    compare = (url, group) not in _compared

    def attempt() -> T:
        try:
            return read(_open(url, compare, thread))
        except _DAMAGE as error:
            raise DamagedShardError(url, f"is damaged ({storage.one_line(error, 200)})") from None
        except OSError as error:
            if type(error) is OSError and error.errno is None:  # it is pyarrow's, not the file system's
                raise DamagedShardError(url, f"is damaged ({storage.one_line(error, 200)})") from None
            raise

    try:
        result = storage.with_retries(url, attempt, expected=(DamagedShardError,))
    except FileNotFoundError:
        raise DamagedShardError(url, "is missing") from None
    _compared.add((url, group))
    return result


@lru_cache(maxsize=128)
def _open(url: str, compare: bool, _thread: int) -> pq.ParquetFile:
    fs, path = storage.locate(url)
    if storage.is_local(fs):
        return pq.ParquetFile(path, memory_map=True, page_checksum_verification=compare)
    # Request exactly the columns of one row group from an object store; the default would read 50 MB ahead.
    opened = fs.open(path, "rb", cache_type="none")
    return pq.ParquetFile(opened, pre_buffer=True, page_checksum_verification=compare)
