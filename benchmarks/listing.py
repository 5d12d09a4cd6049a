"""Measure how images are listed in a simulated object store: serially, in parallel, and from a table of URLs.

The store answers a listing of up to 1,000 names after some milliseconds. The photographs lie in 1,000 folders.
Serially, all names below the source come by one request after another and become a list of objects. Each way runs in a
process of its own, whose CPU time and peak memory, beyond those of the store, are printed.

    python -m benchmarks.listing [--names N ...] [--latency MS]
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import fsspec
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measuring import Result, parser_of, print_results
from benchmarks.simulated import Objects, photo_keys, serve
from pipeline.data import sources
from pipeline.data.listing import describe
from pipeline.data.locations import FileLocation
from pipeline.data.source_images import SourceImage

FOLDERS = 1000


class Cost(NamedTuple):
    """The time and memory of a listing."""

    seconds: float
    cpu: float
    """Seconds of CPU time."""
    megabytes: float
    """Peak of memory, beyond that before the listing."""
    images: int


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--names", type=int, nargs="+", default=[100_000, 1_000_000], help="images (%(default)s)")
    parser.add_argument("--latency", type=float, default=25, help="milliseconds of a request (%(default)s)")
    arguments = parser.parse_args()
    results = []
    for names in arguments.names:
        costs = {way.__name__: measure(way, names, arguments.latency / 1e3) for way in (serial, parallel, table)}
        for name, cost in costs.items():
            print(
                f"{names:>10,} names, {name:8}  {cost.seconds:6.1f} s, {cost.cpu:5.1f} s of CPU, "
                f"{cost.megabytes:5.0f} MB",
                flush=True,
            )
            assert cost.images == names
        ratio = costs["serial"].seconds / costs["parallel"].seconds
        results += [
            Result(f"listing_serial_over_parallel_{names}", round(ratio, 1), "ratio", None, "higher"),
            Result(f"listing_parallel_cpu_{names}", round(costs["parallel"].cpu, 1), "s", None, "lower"),
            Result(f"listing_table_cpu_{names}", round(costs["table"].cpu, 1), "s", None, "lower"),
        ]
    print_results(results)


def measure(way: Callable[[str], Sequence[SourceImage]], names: int, latency: float) -> Cost:
    """Run one way of listing in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(run, (way, names, latency))


def run(way: Callable[[str], Sequence[SourceImage]], names: int, latency: float) -> Cost:
    """Run one way of listing in this process."""
    keys = photo_keys(names, [FOLDERS])
    serve(Objects(latency=latency, keys=keys))
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
        source = "simulated://photos"
        if way is table:
            source = file.name
            columns = {"url": [f"s3://{key}" for key in keys], "bytes": [40] * names, "etag": [f"{0:032x}"] * names}
            pq.write_table(pa.table(columns), source)
            del columns
        before, cpu, start = psutil.Process().memory_info().rss, time.process_time(), time.perf_counter()
        images = way(source)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Cost(seconds, cpu, (peak - before) / 1e6, len(images))


def serial(source: str) -> Sequence[SourceImage]:
    """List by one request after another."""
    fs = fsspec.filesystem("simulated")
    found = sorted(fs.find(source, detail=True).items())
    return [describe(path, FileLocation(fs.unstrip_protocol(path)), info) for path, info in found]


def parallel(source: str) -> Sequence[SourceImage]:
    """List as the pipeline does."""
    return sources.list_images([source], "")


def table(source: str) -> Sequence[SourceImage]:
    """Read a table of URLs."""
    return sources.list_images([source], "")


if __name__ == "__main__":
    main()
