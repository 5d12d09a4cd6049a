"""Shards as Parquet files: their columns, and how they are written and read.

A row of a training shard is one tile: `image_id`, `y` and `x` (its origin in HR pixels), and `hr` and `lr` as raw bytes
(uint8 RGB, row-major HWC). A row of a held-out shard is one whole image: `image_id`, `height`, `width` (HR pixels),
`hr` and `lr`. The Parquet metadata states tile size, scale, degradation and format version, so a shard can be read
without the manifest.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import shlex
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.data.gathering import address
from pipeline.data.manifest import FORMAT, ImageRecord, Shard
from pipeline.data.pages import Pages, memory_of, metadata_length
from pipeline.data.recent import Recent
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

_NUMBERS = {name: TILE_SCHEMA.get_field_index(name) for name in ("hr", "lr")}
"""Numbers of a training shard's columns of images."""
_MOST_MAPS = 4096
"""Local shards that stay mapped into memory. A process can have 65,530 maps, and a map of 128 MB that was read takes
0.25 MB of the system's page tables."""
_PAGES_BYTES = 100_000_000
"""Memory for the places of tiles in shards of object stores: 31,000 shards of 128 MB, each of which would take a
request to find again. A footer is kept no longer, because it takes 30 times as much."""
_FOOTER = 2**18
"""Bytes at the end of a shard that are requested first; the metadata of a shard of 128 MB have about 70,000."""


def _find_madvise() -> Callable[[ctypes.c_void_p, ctypes.c_size_t, int], int] | None:
    """Return `madvise` of the C library; `mmap.madvise` works only on objects that keep their files open."""
    try:
        return ctypes.CDLL(None).madvise if hasattr(mmap, "MADV_WILLNEED") else None
    except (OSError, AttributeError, TypeError):  # there is no such library, as on Windows
        return None


_madvise = _find_madvise()


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


def read_tiles(url: str, size: int, group: int, rows: int, sides: Sequence[int]) -> tuple[Pixels, Pixels]:
    """Read a row group of a training shard at any path or URL.

    A local shard is mapped into memory, and its tiles are used in place. From an object store, a row group is read by
    one request. If pages are compressed or something is wrong, Arrow reads the shard. Pages are compared with their
    checksums whenever they are fetched, and when this process reads them for the first time in a mapped shard.

    Args:
        url: path or URL of the shard.
        size: bytes of the shard.
        group: number of the row group.
        rows: expected number of rows.
        sides: side of an HR tile and of an LR tile.

    Returns:
        HR (rows, side, side, 3) and LR tiles, uint8 and read-only. The pixels of a tile are adjacent.

    Raises:
        DamagedShardError: if the shard is missing or damaged.
        OSError: if it cannot be read.
    """
    by_column = dict(zip(_NUMBERS, sides, strict=True))
    if storage.is_local(storage.locate(url)[0]):
        shard = _maps.find(url, lambda: _map_shard(url))
        found = shard and (shard.tiles(group, rows, by_column) or shard.compare(group, rows, by_column))
    else:
        found = _view_fetched(url, size, group, rows, by_column)
    if found:
        return found[0], found[1]

    def read(file: pq.ParquetFile) -> tuple[Pixels, Pixels]:
        table = file.read_row_group(group, columns=list(_NUMBERS))
        if table.num_rows != rows:
            raise ValueError(f"row group {group} has {table.num_rows} rows instead of {rows}")
        return unpack(table["hr"], sides[0]), unpack(table["lr"], sides[1])

    return _read(url, read)


def tiles_at_hand(url: str, group: int, rows: int, sides: Sequence[int]) -> tuple[Pixels, Pixels] | None:
    """Return a row group of a shard that is mapped, if its pages agreed with their checksums before, otherwise None.

    Arguments and result are those of `read_tiles`. The row group may have left the system's memory since.
    """
    shard = _maps.get(url)
    found = shard and shard.tiles(group, rows, dict(zip(_NUMBERS, sides, strict=True)))
    return (found[0], found[1]) if found else None


def prefetch(url: str, group: int) -> None:
    """Ask the system to read a row group of a mapped shard into memory, without waiting for it."""
    if shard := _maps.get(url):
        shard.prefetch(group)


def read_image(url: str, group: int, scale: int) -> tuple[str, Pixels, Pixels]:
    """Read the image of a row group of a held-out shard; arguments and errors are as for `read_tiles`.

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

    return _read(url, read)


def _read(url: str, read: Callable[[pq.ParquetFile], T]) -> T:
    thread = threading.get_ident()  # threads share no open file, because they would share its position

    def attempt() -> T:
        try:
            return read(_open(url, thread))
        except _DAMAGE as error:
            raise DamagedShardError(url, f"is damaged ({storage.one_line(error, 200)})") from None
        except OSError as error:
            if type(error) is OSError and error.errno is None:  # it is pyarrow's, not the file system's
                raise DamagedShardError(url, f"is damaged ({storage.one_line(error, 200)})") from None
            raise

    try:
        return storage.with_retries(url, attempt, expected=(DamagedShardError,))
    except FileNotFoundError:
        raise DamagedShardError(url, "is missing") from None


@lru_cache(maxsize=128)
def _open(url: str, _thread: int) -> pq.ParquetFile:
    fs, path = storage.locate(url)
    if storage.is_local(fs):
        return pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)
    # Request exactly the columns of one row group from an object store; the default would read 50 MB ahead.
    opened = fs.open(path, "rb", cache_type="none")
    return pq.ParquetFile(opened, pre_buffer=True, page_checksum_verification=True)


@dataclass
class _MappedShard:
    """A local shard that is mapped into memory."""

    data: npt.NDArray[np.uint8]
    """The whole file."""
    pages: Pages
    compared: bytearray
    """A byte for each row group: 1 if its pages agreed with their checksums."""
    sides: tuple[int, ...] = ()
    """Sides of the images in the row groups that were compared."""

    def compare(self, group: int, rows: int, sides: Mapping[str, int]) -> list[Pixels] | None:
        """Return the tiles of a row group in place if they agree with their checksums, otherwise None."""
        found = self.pages.view(self.data, 0, group, rows, sides, check=True) if group < self.pages.groups else None
        if found:
            if self.sides != (asked := tuple(sides.values())):
                self.compared[:], self.sides = bytes(len(self.compared)), asked
            self.compared[group] = 1
        return found

    def tiles(self, group: int, rows: int, sides: Mapping[str, int]) -> list[Pixels] | None:
        """Return the tiles of a row group in place if they were compared before, otherwise None."""
        if group >= self.pages.groups or not self.compared[group] or self.sides != tuple(sides.values()):
            return None
        return self.pages.view(self.data, 0, group, rows, sides, check=False)

    def prefetch(self, group: int) -> None:
        """Ask the system to read a row group that is not in memory, without waiting for it."""
        if _madvise and group < self.pages.groups:
            begin, end = (address(self.data) + place for place in self.pages.span(group))
            begin -= begin % mmap.PAGESIZE
            _madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_WILLNEED)


_maps = Recent["_MappedShard | None"](_MOST_MAPS, lambda _: 1)
"""Local shards by their path; None for one whose pages cannot be used in place."""


def _map_shard(url: str) -> _MappedShard | None:
    """Map a local shard into memory; None if its pages cannot be used in place."""
    _, path = storage.locate(url)
    try:
        with pa.memory_map(path) as file:  # the map outlives the open file
            data = np.frombuffer(file.read_buffer(), np.uint8)
        pages = Pages.of(pq.read_metadata(path, memory_map=True), _NUMBERS, len(data))
    except (*_DAMAGE, OSError):  # reading it in the usual way says what is wrong
        return None
    return _MappedShard(data, pages, bytearray(pages.groups)) if pages else None


def _view_fetched(url: str, size: int, group: int, rows: int, sides: Mapping[str, int]) -> list[Pixels] | None:
    """Return the tiles of a row group in an object store, which takes one request; None if its pages are no use.

    Args:
        url: URL of the shard.
        size: bytes of the shard.
        group: as for `_view_mapped`.
        rows: likewise.
        sides: likewise.
    """
    fs, path = storage.locate(url)

    def fetch(begin: int, end: int) -> bytes:
        return storage.with_retries(url, lambda: bytes(fs.cat_file(path, start=begin, end=end)))

    try:
        pages = _find_pages(url, size, fetch)
        if pages is None:
            return None
        begin, end = pages.span(group)
        return pages.view(np.frombuffer(fetch(begin, end), np.uint8), begin, group, rows, sides, check=True)
    except (*_DAMAGE, FileNotFoundError):
        return None
    except OSError as error:
        if error.errno is None:  # it is pyarrow's, not the file system's
            return None
        raise


_recent_pages = Recent[Pages | None](_PAGES_BYTES, memory_of)
"""Places of the tiles of shards in object stores."""


def _find_pages(url: str, size: int, fetch: Callable[[int, int], bytes]) -> Pages | None:
    def read() -> Pages | None:
        tail = fetch(max(size - _FOOTER, 0), size)
        length = metadata_length(tail)
        if length is None or length > size:
            raise ValueError(f"{url} has no footer of a Parquet file")
        if length > len(tail):
            tail = fetch(size - length, size)
        return Pages.of(pq.read_metadata(pa.BufferReader(tail[-length:])), _NUMBERS, size)

    return _recent_pages.find(url, read)
