"""Measure how fast a rank reads training samples from a simulated object store: latency and bandwidth as stated.

The store answers a request after some milliseconds and then sends at a limited rate, each request by itself, as S3
does. A patch set of many shards lies in it: a few real files of random tiles of 192 pixels, each under many names. The
pipeline's reader streams it in micro-batches of 64. Reading shards in order, one request after another, is compared.

    python -m benchmarks.store [--shards N] [--latency MS] [--bandwidth MB/S] [--windows N]
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import torch

from benchmarks.measuring import CROP, SCALE, Result, parser_of, print_results
from pipeline.data import parquet, patchset
from pipeline.data.manifest import Shard
from pipeline.data.patchset import PatchSet
from pipeline.data.reader import BatchReader
from pipeline.data.sampler import SampleOrder
from pipeline.settings import Preprocess

TILE, GROUP, GROUPS = 192, 8, 13
"""Side of a tile, tiles in a row group, and row groups in a shard."""
FILES = 16
"""Real files."""
LANES, WINDOW, CROPS, BATCH = 8, 256, 4, 64
TARGET = 15_000


class Store(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """Serves files of a folder under many names, `NUMBER-FILE`, with the latency and bandwidth of a store."""

    protocol = "simulated"
    folder, latency, bandwidth = Path(), 0.0, 0.0

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Read a range of a file."""
        with (self.folder / path.rsplit("-", 1)[-1]).open("rb") as file:
            file.seek(start or 0)
            content = file.read() if end is None else file.read(end - (start or 0))
        time.sleep(self.latency + len(content) / self.bandwidth)
        return content


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--shards", type=int, default=2000, help="number of shards (%(default)s)")
    parser.add_argument("--latency", type=float, default=25, help="milliseconds of a request (%(default)s)")
    parser.add_argument("--bandwidth", type=float, default=90, help="MB/s of a request (%(default)s)")
    parser.add_argument("--windows", type=int, default=6, help="timed windows of each lane (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    fsspec.register_implementation("simulated", Store)
    with tempfile.TemporaryDirectory() as folder:
        Store.folder, Store.latency, Store.bandwidth = Path(folder), arguments.latency / 1e3, arguments.bandwidth * 1e6
        patch_set = make_patch_set(arguments.shards, Path(folder))
        first, rate = read(patch_set, arguments.windows)
        one_by_one = read_one_by_one(patch_set, 100)
    print(f"{arguments.shards} shards: first batch after {first:.2f} s, then {rate:,.0f} patches/s a rank")
    print(f"row groups one after another: {one_by_one:,.0f} patches/s")
    print_results(
        [
            Result("store_reader_patches", round(rate), "patches/s", TARGET, "higher"),
            Result("store_first_batch", round(first, 2), "s", 1, "lower"),
            Result("store_reader_over_one_by_one", round(rate / one_by_one, 1), "ratio", None, "higher"),
        ]
    )


def make_patch_set(shards: int, folder: Path) -> PatchSet:
    """Write the real files, and describe a patch set that has each of them many times."""
    rng = np.random.default_rng(0)
    sizes = []
    for number in range(FILES):
        with parquet.create_shard(folder / f"{number:02}.parquet", parquet.TILE_SCHEMA) as writer:
            for _ in range(GROUPS):
                images = (rng.integers(0, 256, (GROUP, side, side, 3), np.uint8) for side in (TILE, TILE // SCALE))
                zeros = pa.array([0] * GROUP, pa.int32())
                columns = [pa.array(["a"] * GROUP), zeros, zeros, *(parquet.pack(list(each)) for each in images)]
                writer.write_table(pa.Table.from_arrays(columns, schema=parquet.TILE_SCHEMA))
        sizes.append((folder / f"{number:02}.parquet").stat().st_size)
    listed = [
        Shard(f"{number}-{number % FILES:02}.parquet", [GROUP] * GROUPS, sizes[number % FILES], "", [])
        for number in range(shards)
    ]
    return patchset.assemble("simulated://set", "set", SCALE, Preprocess(tile=TILE), enumerate(listed), shards)


def read(patch_set: PatchSet, windows: int) -> tuple[float, float]:
    """Return the seconds until the first batch, and patches per second in later windows."""
    order = SampleOrder(patch_set.row_groups, seed=0, lanes=LANES, window=WINDOW, crops_per_tile=CROPS)
    reader = BatchReader(patch_set, order, batch=BATCH, micro_batch=BATCH, crop=CROP, augment=True)
    steps = LANES * WINDOW * CROPS // BATCH  # of a window
    begin = time.perf_counter()
    batches = reader.read(0, (windows + 1) * steps)
    next(batches)
    first = time.perf_counter() - begin
    for _ in range(steps - 1):
        next(batches)
    begin = time.perf_counter()
    patches = sum(len(batch.hr) for batch in batches)
    return first, patches / (time.perf_counter() - begin)


def read_one_by_one(patch_set: PatchSet, groups: int) -> float:
    """Return the patches per second of reading row groups one after another."""
    begin = time.perf_counter()
    for number in range(groups):
        patch_set.read_group(number)
    return groups * GROUP * CROPS / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
