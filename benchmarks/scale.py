"""Measure what a patch set of many images costs the driver and a trainer, without images: only their records.

An inventory of N images of 2K is made up: 1 % of them are duplicates, 1 % too small and 0.1 % damaged. Each size is
measured in processes of its own, so that peaks of memory are honest. Ten million images take ten minutes and 4 GB.

    python -m benchmarks.scale [--images N [N ...]] [--grouping {hash,name}] [--plot FILE]

Printed for each size: processor time and peak memory of split and plan, the size of the tables, the time to collect
and write them, the shards that are new after one image has changed, the start of a trainer with its memory, and the
time to the first positions of a random step. `--plot` draws times and memory against the number of images.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.implementations.local import LocalFileSystem

from benchmarks.measuring import SCALE, Result, parser_of, print_results
from pipeline.data import patchset
from pipeline.data.inspected import FOUND_SCHEMA, InspectedImages
from pipeline.data.inventory import take_inventory
from pipeline.data.inventory_files import InventoryFiles
from pipeline.data.locations import FileLocation
from pipeline.data.manifest import ImageRecord, Shard
from pipeline.data.random_numbers import Ints
from pipeline.data.sampler import SampleOrder
from pipeline.data.shard_plan import ShardPlan
from pipeline.data.source_images import SourceImages
from pipeline.data.split import split_images
from pipeline.settings import Config, Preprocess

LANES, WINDOW, CROPS, BATCH, WORLD = 512, 1024, 4, 4096, 64
"""A training on 64 workers."""
STEPS = 20
"""Random steps whose positions are timed."""
INVENTORY = 10**6
"""Most images that are looked up in an inventory of files, because it takes long to write it."""


class Disk(LocalFileSystem):  # type: ignore[misc]
    """A folder as a store, where saving a patch set does not look for the shards, which do not exist here."""

    protocol = "disk"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("disk://")))

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        """Move a file into the store."""
        Path(rpath).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(lpath, rpath)
        Path(lpath).touch()


def main() -> None:
    """Measure and print, or do one part of it in a child process."""
    if sys.argv[1:2] == ["--part"]:
        fsspec.register_implementation("disk", Disk)
        part, folder, images, grouping = sys.argv[2:]
        measure = {"inventory": measure_inventory, "plan": measure_plan, "start": measure_start}[part]
        print(json.dumps(measure(folder, int(images), grouping)))
        return
    parser = parser_of(__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[10**5, 10**6], help="sizes (%(default)s)")
    parser.add_argument("--grouping", choices=["hash", "name"], default="hash", help="as the setting (%(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="PNG to draw")
    arguments = parser.parse_args()
    results: list[Result] = []
    measured: dict[int, dict[str, float]] = {}
    for images in arguments.images:
        facts = measured.setdefault(images, {})
        with tempfile.TemporaryDirectory() as folder:
            for part in ("inventory", "plan", "start") if images <= INVENTORY else ("plan", "start"):
                command = [sys.executable, "-m", "benchmarks.scale", "--part", part, folder, f"{images}"]
                done = subprocess.run([*command, arguments.grouping], stdout=subprocess.PIPE, text=True, check=True)
                facts |= json.loads(done.stdout.splitlines()[-1])
        print(f"{images:,} images, grouping {arguments.grouping}")
        for name, value in facts.items():
            print(f"  {name:48} {value:,.4g}")
        targets = {
            "plan_cpu_s": 600,
            "plan_peak_gb": 4,
            "start_s": 20,
            "start_memory_mb": 100,
            "first_positions_s": 1,
            "changed_shards": 2,
        }
        results += [
            Result(f"scale_{images}_{name}", round(facts[name], 4), name.rsplit("_", 1)[-1], target, "lower")
            for name, target in targets.items()
        ]
    if arguments.plot:
        draw(measured, arguments.plot)
    print_results(results)


class Line(NamedTuple):
    """A line of the plot."""

    name: str
    """Name of the measured fact."""
    label: str
    aim: float | None = None
    factor: float = 1
    """Turns the fact into seconds or GB."""


def draw(measured: dict[int, dict[str, float]], file: Path) -> None:
    """Draw times and memory against the number of images, with their limits, as a PNG."""
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    seconds = [
        Line("plan_cpu_s", "driver: split and plan", 600),
        Line("collect_cpu_s", "driver: describe shards, collect results"),
        Line("commit_cpu_s", "driver: write tables"),
        Line("start_s", "trainer: open the patch set", 20),
        Line("first_positions_s", "trainer: positions of a step", 1),
    ]
    memory_gb = [
        Line("plan_peak_gb", "driver: split and plan", 4),
        Line("commit_peak_gb", "driver: collect and write"),
        Line("start_memory_mb", "trainer: open the patch set", 0.1, factor=1e-3),
    ]
    for axis, quantity, lines in zip(axes, ("seconds", "GB"), (seconds, memory_gb), strict=True):
        for number, line in enumerate(lines):
            values = [facts[line.name] * line.factor for facts in measured.values()]
            axis.plot(list(measured), values, color=f"C{number}", marker="o", ms=4, label=line.label)
            if line.aim is not None:
                axis.axhline(line.aim, color=f"C{number}", lw=1, ls=":", zorder=0)
        axis.set(xscale="log", yscale="log", xlabel="images", ylabel=quantity)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    figure.suptitle("Measured; dotted lines are the aims", fontsize=10)
    figure.savefig(file, dpi=110)


def measure_plan(folder: str, count: int, grouping: str) -> dict[str, float]:
    """Plan a patch set of many images, change one of them, and write the tables of the set."""
    facts: dict[str, float] = {}
    config = Config(scale=SCALE, preprocess=Preprocess.model_validate({"grouping": grouping, "max_reject_share": 1}))
    loaded = memory("VmRSS")
    images = make_inventory(count)
    facts["libraries_mb"] = loaded / 1e6
    facts["inventory_memory_mb"] = (images.source.table.nbytes + images.found.nbytes) / 1e6
    reset_peak()

    def plan() -> tuple[ShardPlan, list[ImageRecord]]:
        train, holdout, rejected = split_images(config, images)
        planned = ShardPlan(config, images, train, holdout)
        assert len(planned.files) == len(planned)
        return planned, rejected

    (planned, rejected), facts["plan_cpu_s"] = timed(plan)
    facts["plan_peak_gb"] = memory("VmHWM") / 1e9
    facts |= {"shards": len(planned), "rejected": len(rejected)}
    reset_peak()
    made = enumerate(make_shards(planned, config.preprocess))
    settings, trained, url = config.preprocess, planned.trained, f"disk://{folder}/set"
    patch_set, facts["collect_cpu_s"] = timed(
        lambda: patchset.assemble(url, "set", SCALE, settings, made, trained, rejected)
    )
    _, facts["commit_cpu_s"] = timed(patch_set.save)
    facts["commit_peak_gb"] = memory("VmHWM") / 1e9
    for name in ("index", "images"):
        facts[f"{name}_mb"] = sum(file.stat().st_size for file in Path(folder, "set", name).iterdir()) / 1e6
    facts["manifest_kb"] = Path(folder, "set/manifest.json").stat().st_size / 1e3
    before = set(planned.files)
    del patch_set, planned
    images = change(images, count // 3)
    facts["changed_shards"] = len(set(plan()[0].files) - before)
    return facts


def measure_inventory(folder: str, count: int, _: str) -> dict[str, float]:
    """Find all images in the files of an earlier inventory, as a rerun does."""
    images, url = make_inventory(count), f"{folder}/inventory"
    files = InventoryFiles(url)
    for image in images:
        files.add(image)
    files.close()
    known, seconds = timed(lambda: take_inventory(Config(), images.source, url))
    assert len(known) == len(images)
    written = sum(file.stat().st_size for file in Path(url).iterdir()) / 1e6
    return {"inventory_cpu_s": seconds, "inventory_files_mb": written}


def measure_start(folder: str, _: int, __: str) -> dict[str, float]:
    """Open the patch set as a trainer does, and find the samples of some steps."""
    tiny = Shard("tiny.parquet", [8] * LANES, 1, "", [])
    patchset.assemble("memory://tiny", "tiny", SCALE, Preprocess(), [(0, tiny)], 1).save()
    warm = SampleOrder(patchset.load("memory://tiny").row_groups, 0, LANES, WINDOW, CROPS, "permuted")
    warm.samples_at(warm.share(0, BATCH, 0, WORLD))  # what is loaded once is not counted
    before = memory("VmRSS")
    reset_peak()
    began = time.perf_counter()
    patch_set = patchset.load(f"disk://{folder}/set")
    order = SampleOrder(patch_set.row_groups, 0, LANES, WINDOW, CROPS, "permuted")
    order.samples_at(order.share(0, BATCH, 0, WORLD))
    facts = {"start_s": time.perf_counter() - began, "row_groups": patch_set.row_groups.count}
    draw, seconds = random.Random(0), []
    for _ in range(STEPS):
        fresh = SampleOrder(patch_set.row_groups, 0, LANES, WINDOW, CROPS, "permuted")
        step = draw.randrange(fresh.epoch_length * 100 // BATCH)
        began = time.perf_counter()
        tiles = fresh.samples_at(fresh.share(step, BATCH, step % WORLD, WORLD)).tile
        for group in np.unique(fresh.table.locate(tiles)[0]).tolist():
            patch_set.shard_of(group)
        seconds.append(time.perf_counter() - began)
    facts["first_positions_s"] = max(seconds)
    facts["start_memory_mb"] = (memory("VmRSS") - before) / 1e6
    facts["start_peak_mb"] = (memory("VmHWM") - before) / 1e6
    return facts


def timed(action: Callable[[], Any]) -> tuple[Any, float]:
    """Return a result and the processor time that it took."""
    began = time.process_time()
    result = action()
    return result, time.process_time() - began


def memory(key: str) -> int:
    """Return the memory of this process, `VmRSS`, or its peak, `VmHWM`, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def reset_peak() -> None:
    """Begin a new peak of memory."""
    Path("/proc/self/clear_refs").write_text("5")


def make_inventory(count: int) -> InspectedImages:
    """Make up images of an object store, sorted by name."""
    rng = np.random.default_rng(0)
    number = np.arange(count)
    names = texts(b"0000/00000000.png", {0: number // 10_000 % 10_000, 5: number % 10**8}, count)
    versions = np.frombuffer(rng.bytes(16 * count), np.uint8)
    versions = np.frombuffer(versions.tobytes().hex().encode(), np.uint8).reshape(count, 32)
    shape = rng.integers(0, 4, count)
    width, height = np.full(count, 2040), np.array([1356, 1404, 1152, 1536])[shape]
    small = rng.random(count) < 0.01
    width[small] = 100
    digests = np.frombuffer(rng.bytes(32 * count), np.uint8).reshape(count, 32).copy()
    copies = np.flatnonzero(rng.random(count) < 0.01)
    originals = rng.integers(0, count, len(copies))
    for column in (digests, width, height):
        column[copies] = column[originals]
    damaged = pa.array(rng.random(count) < 0.001)
    files = {
        "name": names,
        "version": fixed(versions),
        "bytes": pa.array(rng.integers(3_000_000, 5_000_000, count)),
        "base": pa.array(np.zeros(count, np.int32)),
        "place": pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), count, [None, pa.py_buffer(np.zeros(count + 1, np.int64)), pa.py_buffer(b"")]
        ),
    }
    found = {
        "sha256": pa.Array.from_buffers(pa.binary(32), count, [None, pa.py_buffer(digests)]),
        "width": pa.array(width),
        "height": pa.array(height),
        "bytes": files["bytes"],
        "kind": pc.if_else(damaged, "damaged", pa.scalar(None, pa.string())),
        "detail": pc.if_else(damaged, "cannot be decoded", pa.scalar(None, pa.string())),
    }
    source = SourceImages(pa.table(files), [(FileLocation, "s3://bucket/images/")])
    return InspectedImages(source, pa.table(found, FOUND_SCHEMA))


def texts(pattern: bytes, numbers: dict[int, Ints], count: int) -> pa.Array:
    """Return texts of one length, with numbers of 4 and of 8 digits at some places."""
    rows = np.tile(np.frombuffer(pattern, np.uint8), (count, 1))
    for place, number in numbers.items():
        digits = 4 if place == 0 else 8
        for digit in range(digits):
            rows[:, place + digit] = ord("0") + number // 10 ** (digits - 1 - digit) % 10
    return fixed(rows)


def fixed(rows: np.ndarray[Any, np.dtype[np.uint8]]) -> pa.Array:
    """Return rows of characters as texts."""
    count, length = rows.shape
    offsets = np.arange(count + 1, dtype=np.int64) * length
    return pa.LargeStringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(rows)))


def change(images: InspectedImages, row: int) -> InspectedImages:
    """Return the images after the content of one of them has changed."""
    digests = images.digests.copy()
    digests[row] ^= 255
    column = pa.Array.from_buffers(pa.binary(32), len(images), [None, pa.py_buffer(digests)])
    return InspectedImages(images.source, images.found.set_column(0, "sha256", column))


def make_shards(planned: ShardPlan, settings: Preprocess) -> Iterator[Shard]:
    """Yield what tasks would return."""
    tiles = 88
    for spec, file in zip(planned, planned.files, strict=True):
        records = [image.record(held_out=spec.held_out, tiles=0 if spec.held_out else tiles) for image in spec.images]
        rows = len(records) if spec.held_out else tiles * len(records)
        size = 1 if spec.held_out else settings.row_group
        groups = [size] * (rows // size) + [rows % size] * (rows % size > 0)
        yield Shard(file, groups, rows * 117_504, hashlib.sha256(file.encode()).hexdigest(), records)


if __name__ == "__main__":
    main()
