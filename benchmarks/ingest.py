"""Compare ways of reading training samples: the pipeline's reader, plain Parquet reads, Ray Data and PNG patches.

Everything runs in one process on the CPU. PyTorch and Arrow compute on one thread; the reader has the same threads of
its own as in training (four read row groups, one gathers). It uses local shards in place ("mapped"), or reads them
through Arrow, which copies row groups, as it does with compressed shards. On a GPU, it gathers from tensors on the
device ("device"); here, the device is the CPU. The tiles of 192 pixels come from the built-in photographs, in row
groups of 8, with 4 crops of 96 pixels each, in micro-batches of 16. All files are in the page cache or on a local S3
server.

The parts take turns, and each reads a whole epoch in a round. Medians and extremes are printed, by elapsed time and by
CPU time ("per core"). The CPU time of Ray's processes counts, that of the S3 server does not. Ratios use CPU time,
which hardly depends on a second core and on other load; those for S3 use elapsed time, because waiting counts there.

The parts do not all do the same. Plain reads and Ray Data return tiles in stored order and copy each once. The reader
shuffles, crops, and returns bytes and orientations, and the device flips and turns them later. "As tensors" does this
here and converts to float, as the PNG dataset does. The PNG dataset reads whole patches, then flips and converts them
one by one.

    python -m benchmarks.ingest [--rounds N] [--stride PIXELS] [--patches N]

It takes minutes; --rounds 2 --stride 32 --patches 500 is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import logging
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.measuring import CROP, SCALE, Result, parser_of, print_results
from infra.stack import S3Server
from pipeline import cluster, storage
from pipeline.data import parquet, patchset, preparation
from pipeline.data.patchset import PatchSet
from pipeline.data.reader import BatchReader
from pipeline.data.sampler import SampleOrder
from pipeline.data.tiles import Tiles, open_tiles
from pipeline.settings.command_line import parse
from sr_model.pixels import Pixels, to_unit

TILE, CROPS, BATCH = 192, 4, 16
LANES, WINDOW = 4, 32
"""The windows are small because the set is small: at its end, an epoch reads the next epoch's first windows, which
have 128 tiles."""
READ_THREADS = 4
"""The reader has as many."""
RAY_EPOCHS = 4
"""Epochs of Ray Data in a round; it takes a second to start."""
BUCKET = "ingest"


class Amount(NamedTuple):
    """The amount that a part reads in a round."""

    tiles: int
    patches: int
    bytes: int


class Cost(NamedTuple):
    """Seconds per tile, or per patch if there are no tiles."""

    elapsed: float
    cpu: float


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (%(default)s)")
    parser.add_argument(
        "--stride", type=int, default=24, help="pixels between tiles; 24 gives 2000 tiles, 32 gives 1200 (%(default)s)"
    )
    parser.add_argument("--patches", type=int, default=2000, help="number of PNG patches (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    pa.set_io_thread_count(READ_THREADS)
    with tempfile.TemporaryDirectory() as folder, s3_server(Path(folder, "s3")) as has_s3:
        results = compare(arguments, Path(folder), has_s3)
    print_results(results)


def compare(arguments: argparse.Namespace, folder: Path, has_s3: bool) -> list[Result]:
    """Measure all parts and return the ratios between them."""
    options = [f"preprocess.tile={TILE}", f"preprocess.stride={arguments.stride}", "preprocess.shard_mb=16"]
    config = parse(["source=builtin", f"home={folder}/home", *options], "preprocess", "")
    before = psutil.Process().children()
    memory = {"object_store_memory": 2**30}
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **memory)
    cluster.connect(config)  # finds the Ray that has just been started
    ray_processes = [process for process in psutil.Process().children() if process not in before]
    with contextlib.redirect_stdout(io.StringIO()):
        patch_set, _ = preparation.prepare(config)
    print(patchset.describe(patch_set), f"in {len(patch_set.shards)} shards, {patch_set.row_groups.count} row groups")
    mapped, on_device = (open_tiles(patch_set, how, 0) for how in ("map", "device"))
    parts: dict[str, Callable[[int], Amount]] = {
        "plain Parquet reads": lambda _: read_plainly(patch_set, 1),
        "reader, mapped": Reading(patch_set, mapped),
        "reader, through Arrow": Reading(patch_set, ArrowReads(patch_set)),
        "reader, device": Reading(patch_set, on_device),
        "reader, mapped, as tensors": Reading(patch_set, mapped, as_tensors=True),
        "reader, device, as tensors": Reading(patch_set, on_device, as_tensors=True),
        "Ray Data": RayReading(patch_set, folder / "links"),
        "PNG patches": PngReading(patch_set, arguments.patches, folder / "patches"),
    }
    if has_s3:
        remote = upload(patch_set, f"s3://{BUCKET}/{patch_set.name}")
        parts |= {
            "S3, plain reads, 1 thread": lambda _: read_plainly(remote, 1),
            f"S3, plain reads, {READ_THREADS} threads": lambda _: read_plainly(remote, READ_THREADS),
            "S3, reader, streaming": Reading(remote, remote),
        }
    costs = measure(parts, arguments.rounds, ray_processes)

    def ratio(ours: str, other: str, by: str = "cpu") -> float:
        """Return how many times as fast `ours` is."""
        pairs = zip(costs[ours], costs[other], strict=True)
        ratios: list[float] = [getattr(b, by) / getattr(a, by) for a, b in pairs]
        return round(statistics.median(ratios), 2)

    mapped_reads, plain = "reader, mapped", "plain Parquet reads"
    print(
        f"by elapsed time, mapped is {ratio(mapped_reads, plain, 'elapsed')} times as fast as plain reads and "
        f"{ratio(mapped_reads, 'Ray Data', 'elapsed')} times as fast as Ray Data"
    )

    def ratio_of_patches(ours: str) -> float:
        return round(CROPS * ratio(ours, "PNG patches"), 1)

    figures: list[tuple[str, float, float | None]] = [
        ("reader_mapped_over_plain_parquet", ratio(mapped_reads, plain), 0.85),
        ("reader_through_arrow_over_plain_parquet", ratio("reader, through Arrow", plain), 0.6),
        ("reader_device_over_plain_parquet", ratio("reader, device", plain), 0.5),
        ("reader_mapped_over_png_patches", ratio_of_patches(mapped_reads), 20),
        ("reader_mapped_as_tensors_over_png_patches", ratio_of_patches("reader, mapped, as tensors"), None),
        ("reader_device_as_tensors_over_png_patches", ratio_of_patches("reader, device, as tensors"), None),
        ("reader_mapped_over_ray_data", ratio(mapped_reads, "Ray Data"), None),
    ]
    if has_s3:
        value = ratio("S3, reader, streaming", f"S3, plain reads, {READ_THREADS} threads", "elapsed")
        figures.append(("s3_reader_over_s3_plain_parquet", value, 0.5))
    return [Result(name, value, "ratio", target, "higher") for name, value, target in figures]


def measure(
    parts: dict[str, Callable[[int], Amount]], rounds: int, ray_processes: list[psutil.Process]
) -> dict[str, list[Cost]]:
    """Run all parts once to warm up, then `rounds` times in turns, and print their rates."""
    costs: dict[str, list[Cost]] = {name: [] for name in parts}
    amounts: dict[str, Amount] = {}
    for round_ in range(rounds + 1):
        for name, work in parts.items():
            others = cpu_seconds(ray_processes) if name == "Ray Data" else {}
            start, cpu = time.perf_counter(), time.process_time()
            amounts[name] = amount = work(round_)
            elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu
            if name == "Ray Data":  # processes that ended meanwhile are missed, which favours Ray Data
                cpu += sum(now - others.get(pid, 0) for pid, now in cpu_seconds(ray_processes).items())
            count = amount.tiles or amount.patches
            if round_:
                costs[name].append(Cost(elapsed / count, cpu / count))
    print(f"{'':32}{'elapsed':>28}{'per core':>28}{'patches/s per core':>20}{'MB/s per core':>15}")
    for name, found in costs.items():
        tiles, patches, bytes_ = amounts[name]
        rates = [[1 / getattr(cost, by) for cost in found] for by in ("elapsed", "cpu")]
        unit, count = ("tiles/s", tiles) if tiles else ("patches/s", patches)
        core = statistics.median(rates[1])
        text = [f"{statistics.median(r):,.0f} ({min(r):,.0f} to {max(r):,.0f})" for r in rates]
        each = f"{core * patches / count:,.0f}" if patches else ""
        print(f"{name:32}{text[0]:>28}{text[1]:>28}{each:>20}{core * bytes_ / count / 1e6:15,.0f}  {unit}")
    return costs


def cpu_seconds(processes: list[psutil.Process]) -> dict[int, float]:
    """Return the CPU seconds of processes and of their descendants, by process id."""
    found = {}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in [process, *process.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    times = each.cpu_times()
                    found[each.pid] = times.user + times.system
    return found


def tile_bytes(patch_set: PatchSet) -> int:
    """Return the bytes of a tile's HR and LR pixels."""
    return 3 * (patch_set.tile**2 + (patch_set.tile // patch_set.scale) ** 2)


def read_plainly(patch_set: PatchSet, threads: int) -> Amount:
    """Read all row groups in stored order and copy each byte once; files are opened as the patch set opens them.

    Args:
        patch_set: the patch set to read.
        threads: number of threads that share the shards.
    """

    def read(file: str) -> int:
        fs, path = storage.locate(f"{patch_set.url}/{file}")
        if "file" in fs.protocol:
            opened = pq.ParquetFile(path, memory_map=True)
        else:
            opened = pq.ParquetFile(fs.open(path, "rb", cache_type="none"), pre_buffer=True)
        buffer = np.empty(patch_set.row_groups.largest * tile_bytes(patch_set), np.uint8)
        tiles = 0
        for group in range(opened.num_row_groups):
            tiles += copy_bytes(opened.read_row_group(group, columns=["hr", "lr"]), buffer)
        return tiles

    with ThreadPoolExecutor(threads) as pool:
        tiles = sum(pool.map(read, [shard.file for shard in patch_set.shards]))
    assert tiles == patch_set.tiles
    return Amount(tiles, 0, tiles * tile_bytes(patch_set))


def copy_bytes(table: pa.Table, buffer: npt.NDArray[np.uint8]) -> int:
    """Copy the bytes of the image columns to the start of `buffer`, and return the number of rows."""
    for column in table.columns:
        for chunk in column.chunks:
            first, last = (np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset + i] for i in (0, len(chunk)))
            buffer[: last - first] = np.frombuffer(chunk.buffers()[2], np.uint8)[first:last]
    return int(table.num_rows)


class ArrowReads:
    """Reads row groups with Arrow, which copies them, instead of using them in place.

    Args:
        patch_set: a local patch set.
    """

    def __init__(self, patch_set: PatchSet) -> None:
        self.patch_set, self.readers = patch_set, patch_set.readers
        self.places = [(shard.file, group) for shard in patch_set.shards for group in range(len(shard.row_groups))]
        self.open = functools.lru_cache(maxsize=128)(self._open)

    def _open(self, file: str, _thread: int) -> pq.ParquetFile:
        return pq.ParquetFile(f"{self.patch_set.url}/{file}", memory_map=True)

    def read_group(self, number: int) -> tuple[Pixels, Pixels]:
        """Read a row group."""
        file, group = self.places[number]
        table = self.open(file, threading.get_ident()).read_row_group(group, columns=["hr", "lr"])
        tile, scale = self.patch_set.tile, self.patch_set.scale
        return parquet.unpack(table["hr"], tile), parquet.unpack(table["lr"], tile // scale)

    def at_hand(self, _: int) -> None:
        """Return None, because all row groups are read."""

    def prefetch(self, _: Sequence[int]) -> None:
        """Do nothing."""


class Reading:
    """Reads with the pipeline's reader, one epoch per round, each in another order.

    Args:
        patch_set: the patch set to read.
        tiles: where its tiles are read from.
        as_tensors: also convert the batches to float tensors.
    """

    def __init__(self, patch_set: PatchSet, tiles: Tiles, as_tensors: bool = False) -> None:
        self.patch_set, self.tiles, self.as_tensors = patch_set, tiles, as_tensors
        self.order = SampleOrder(patch_set.row_groups, seed=0, lanes=LANES, window=WINDOW, crops_per_tile=CROPS)

    def __call__(self, epoch: int) -> Amount:
        """Read an epoch."""
        reader = BatchReader(
            self.patch_set, self.order, batch=BATCH, micro_batch=BATCH, crop=CROP, augment=True, tiles=self.tiles
        )
        steps = self.order.epoch_length // BATCH
        cpu, patches = torch.device("cpu"), 0
        for batch in reader.read(epoch * steps, (epoch + 1) * steps):
            patches += len(batch.hr)
            if self.as_tensors:
                to_unit(batch.lr, cpu, batch.orientation)
                to_unit(batch.hr, cpu, batch.orientation)
        assert patches == self.order.epoch_length
        tiles = patches // CROPS
        return Amount(tiles, patches, tiles * tile_bytes(self.patch_set))


class RayReading:
    """Reads the same files with Ray Data, for several epochs in a round through links of other names.

    Args:
        patch_set: the patch set to read.
        folder: where the links go.
    """

    def __init__(self, patch_set: PatchSet, folder: Path) -> None:
        folder.mkdir()
        self.patch_set = patch_set
        self.files = []
        for epoch in range(RAY_EPOCHS):
            for shard in patch_set.shards:
                link = folder / f"{epoch}-{shard.file}"
                link.hardlink_to(Path(patch_set.url, shard.file))
                self.files.append(str(link))
        self.buffer = np.empty(BATCH * patch_set.tile**2 * 3, np.uint8)

    def __call__(self, _: int) -> Amount:
        """Read all files."""
        tiles = 0
        rows = ray.data.read_parquet(self.files).select_columns(["hr", "lr"])
        for table in rows.iter_batches(batch_size=BATCH, batch_format="pyarrow"):
            tiles += copy_bytes(table, self.buffer)
        assert tiles == RAY_EPOCHS * self.patch_set.tiles
        return Amount(tiles, 0, tiles * tile_bytes(self.patch_set))


class PngReading(Dataset[tuple[Tensor, Tensor]]):
    """Reads a usual dataset of PNG patches; each HR and LR patch is opened, flipped and converted to float by itself.

    Args:
        patch_set: the patches are cut from its tiles.
        count: number of patches, at most one per tile.
        folder: where the PNG files go.
    """

    def __init__(self, patch_set: PatchSet, count: int, folder: Path) -> None:
        folder.mkdir()
        self.pairs: list[tuple[Path, Path]] = []
        low, side = (patch_set.tile - CROP) // 2 // SCALE * SCALE, CROP
        small_low, small_side = low // SCALE, side // SCALE
        groups = random.Random(0).sample(range(patch_set.row_groups.count), patch_set.row_groups.count)
        for group in groups:
            for hr, lr in zip(*patch_set.read_group(group), strict=True):
                if len(self.pairs) == count:
                    break
                pair = (folder / f"{len(self.pairs):06}_hr.png", folder / f"{len(self.pairs):06}_lr.png")
                Image.fromarray(hr[low : low + side, low : low + side]).save(pair[0])
                lr_patch = lr[small_low : small_low + small_side, small_low : small_low + small_side]
                Image.fromarray(lr_patch).save(pair[1])
                self.pairs.append(pair)
        self.loader = DataLoader(self, batch_size=BATCH, shuffle=True, num_workers=0)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        flips = [axis for axis in (1, 2) if random.random() < 0.5]
        tensors = []
        for file in self.pairs[index]:
            with Image.open(file) as image:
                pixels = np.array(image.convert("RGB"))
            tensors.append(torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div(255).flip(flips))
        return tensors[0], tensors[1]

    def __call__(self, _: int) -> Amount:
        """Read all patches."""
        patches = sum(len(hr) for hr, _ in self.loader)
        assert patches == len(self)
        return Amount(0, patches, patches * 3 * (CROP**2 + (CROP // SCALE) ** 2))


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[bool]:
    """Start a local S3 server with an empty bucket and set the environment to it; yield False if none is installed."""
    server = S3Server(folder, BUCKET)
    try:
        server.start()
    except RuntimeError as error:
        print(f"the S3 parts are skipped: {error}")
        yield False
        return
    os.environ.update(server.env)
    try:
        yield True
    finally:
        server.stop()


def upload(patch_set: PatchSet, url: str) -> PatchSet:
    """Copy a local patch set to a URL."""
    folder = Path(patch_set.url)
    for file in folder.rglob("*.*"):
        storage.copy(file, f"{url}/{file.relative_to(folder)}")
    return patchset.load(url)


if __name__ == "__main__":
    main()
