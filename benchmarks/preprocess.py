"""What preprocessing costs an image: against decoding alone, against the usual script, and with a second core.

Images are 2040x1356 PNGs cut from enlarged photographs (built-in ones, or those of --source). All parts alternate in
one run, so that a noisy machine disturbs them alike; medians and spreads are printed.

`python benchmarks/preprocess.py [--source FOLDER] [--images N] [--rounds N]`; with `--count N` instead, it times
whole runs of N small images through Ray, for the constants of docs/explanation/scaling.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pipeline import cluster
from pipeline.data import preparation, shards, sources
from pipeline.data.images import decode
from pipeline.data.shards import InspectedImage, ShardSpec
from pipeline.settings import Preprocess
from pipeline.settings.command_line import parse
from sr_model.degrade import _cubic, downscale

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import ray
import torch
from PIL import Image

from benchmarks.train_step import machine

WIDTH, HEIGHT = 2040, 1356
SCALE = 4


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="builtin", help="images to cut from (default: the built-in ones)")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, help="time a whole run on so many small images")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.count:
            results = time_many(args.count, Path(folder))
        else:
            images = make_images(args.source, args.images, Path(folder, "photos"))
            results = time_a_image(images, args.rounds, Path(folder)) + time_cores(images, Path(folder))
    print(json.dumps([{**result, "machine": machine()} for result in results]))


def make_images(source: str, count: int, folder: Path) -> list[Path]:
    """2K images of real detail: photographs enlarged by half and more, then cut."""
    folder.mkdir()
    found = sources.list_images([source], cache=str(folder))
    files = []
    for i in range(count):
        photo = Image.fromarray(decode(sources.read_bytes(found[i % len(found)].url), 10**9))
        enlarge = max(WIDTH / photo.width, HEIGHT / photo.height, 1) * (1 + 0.05 * (i // len(found)))
        size = round(photo.width * enlarge + 0.5), round(photo.height * enlarge + 0.5)
        large = photo.resize(size, Image.Resampling.BICUBIC)
        x, y = (large.width - WIDTH) // 2, (large.height - HEIGHT) // 2
        grain = np.random.default_rng(i).normal(0, 2, (HEIGHT, WIDTH, 3))  # an enlarged photograph compresses too well
        pixels = np.asarray(large.crop((x, y, x + WIDTH, y + HEIGHT))) + grain
        files.append(folder / f"{i:03}.png")
        Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)).save(files[-1])
    print(f"{count} images of {WIDTH}x{HEIGHT}, {sum(f.stat().st_size for f in files) / count / 1e6:.1f} MB each")
    return files


def time_a_image(files: list[Path], rounds: int, folder: Path) -> list[dict[str, object]]:
    """On one thread: decoding, the pipeline's shard writer, the usual script; the two resizes."""
    torch.set_num_threads(1)
    settings = Preprocess()
    known = [inspect(file) for file in files]
    photo = decode(files[0].read_bytes(), 10**9)
    tensor, image = shards.as_tensor(photo).permute(2, 0, 1), Image.fromarray(photo)
    small = (WIDTH // SCALE, HEIGHT // SCALE)

    def pipeline() -> None:
        for file in files:
            inspect(file)  # the inventory reads every file, too
        shards.make(ShardSpec(False, SCALE, settings, known), str(folder / "out/shard.parquet"), finished=None)

    def decoding() -> None:
        for file in files:
            with Image.open(file) as opened:
                opened.load()

    parts: dict[str, tuple[Callable[[], object], int]] = {
        "decode the PNG": (decoding, len(files)),
        "the pipeline": (pipeline, len(files)),
        "the usual script": (lambda: usual_script(files[0], folder / "usual", settings.tile), 1),
        "resize, Pillow's bicubic": (lambda: image.resize(small, Image.Resampling.BICUBIC), 1),
        "resize, this one": (lambda: downscale(tensor, SCALE), 1),
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for work, _ in parts.values():
        work()
    for _ in range(rounds):
        for name, (work, images) in parts.items():
            start = time.perf_counter()
            work()
            times[name].append((time.perf_counter() - start) / images)
    for name, values in times.items():
        low, high = min(values), max(values)
        print(f"{name:26} {1000 * statistics.median(values):8.1f} ms an image ({1000 * low:.1f} to {1000 * high:.1f})")

    def ratio(a: str, b: str) -> float:
        return round(statistics.median(x / y for x, y in zip(times[a], times[b], strict=True)), 2)

    ratios = [
        ("preprocess_over_decode", ratio("the pipeline", "decode the PNG"), 1.5, "lower"),
        ("preprocess_speedup_over_usual_script", ratio("the usual script", "the pipeline"), 5, "higher"),
        ("resize_over_pillow", ratio("resize, this one", "resize, Pillow's bicubic"), 1, "lower"),
    ]
    return [{"name": n, "value": v, "unit": "ratio", "target": t, "better": b} for n, v, t, b in ratios]


def inspect(file: Path) -> InspectedImage:
    """The inventory's part of the work."""
    row = {"url": str(file), "version": "", "bytes": file.stat().st_size, "limit": 10**10}
    found = preparation._inspect(row)
    return InspectedImage(
        file.name, str(file), **{k: found[k] for k in ("sha256", "width", "height", "bytes", "rejected")}
    )


def usual_script(file: Path, folder: Path, tile: int) -> None:
    """Decode, resize as the classic ports of MATLAB's imresize do (a loop over rows, then columns), a PNG a patch."""
    folder.mkdir(exist_ok=True)
    hr = np.asarray(Image.open(file).convert("RGB")).astype(np.float64)
    lr = hr
    for axis in (0, 1):
        length = lr.shape[axis] // SCALE
        out = np.zeros((length, lr.shape[1], 3) if axis == 0 else (lr.shape[0], length, 3))
        for i in range(length):
            centre = (i + 0.5) * SCALE - 0.5
            taps = np.arange(int(np.floor(centre - 2 * SCALE)), int(np.floor(centre - 2 * SCALE)) + 4 * SCALE + 2)
            weights = _cubic(torch.from_numpy(centre - taps) / SCALE).numpy()
            weights = weights / weights.sum()
            mirrored = np.abs(taps) - (taps < 0)
            mirrored = np.where(mirrored >= lr.shape[axis], 2 * lr.shape[axis] - 1 - mirrored, mirrored)
            part = lr[mirrored] if axis == 0 else lr[:, mirrored]
            if axis == 0:
                out[i] = (part * weights[:, None, None]).sum(axis=0)
            else:
                out[:, i] = (part * weights[None, :, None]).sum(axis=1)
        lr = out
    small = lr.round().clip(0, 255).astype(np.uint8)
    for y in range(0, HEIGHT - tile + 1, tile):
        for x in range(0, WIDTH - tile + 1, tile):
            Image.fromarray(hr[y : y + tile, x : x + tile].astype(np.uint8)).save(folder / f"{y}_{x}_hr.png")
            lr_tile = small[y // SCALE : (y + tile) // SCALE, x // SCALE : (x + tile) // SCALE]
            Image.fromarray(lr_tile).save(folder / f"{y}_{x}_lr.png")


def time_cores(files: list[Path], folder: Path) -> list[dict[str, object]]:
    """Whole runs on a Ray of one core and of two, alternating; starting Ray and its workers isn't counted."""
    times: dict[int, list[float]] = {1: [], 2: []}
    for i in range(3):
        for cores in (1, 2):
            start_ray(cores)
            for run in range(2):  # the first one is for the workers' imports
                seconds = time_run(files[0].parent, folder / f"home-{cores}-{i}-{run}", "preprocess.shard_mb=8")
            times[cores].append(seconds)
            ray.shutdown()
    one, two = (statistics.median(times[cores]) for cores in (1, 2))
    print(f"{len(files)} images on one core {spread(times[1])}, on two {spread(times[2])}")
    ratio = {"value": round(one / two, 2), "unit": "ratio", "target": 1.7, "better": "higher"}
    return [{"name": "preprocess_two_cores", **ratio}]


def time_many(count: int, folder: Path) -> list[dict[str, object]]:
    """Whole runs of a tenth and of all of `count` small images: seconds at the start, and an image."""
    (folder / "photos").mkdir()
    photo = Image.fromarray(decode(sources.read_bytes(sources.list_images(["builtin"], "")[0].url), 10**9))
    for i in range(count):
        x, y = i % 200, i // 200 % 200
        photo.crop((x, y, x + 240, y + 240)).rotate(i // 40000).save(folder / f"photos/{i:06}.jpg", quality=92)
    options = ["preprocess.tile=96", "preprocess.shard_mb=32"]
    start_ray(2)
    time_run(folder / "photos/00000?.jpg", folder / "warm", *options)
    few = time_run(folder / f"photos/{0:05}*.jpg", folder / "few", *options)
    many = time_run(folder / "photos", folder / "many", *options)
    again = time_run(folder / "photos", folder / "many", *options)
    ray.shutdown()
    each = (many - few) / (count - 10)
    print(f"10 images in {few:.2f} s, {count} in {many:.1f} s, found again in {again:.2f} s")
    figures = {"preprocess_fixed": (few, "s"), "preprocess_each": (1000 * each, "ms"), "found_again": (again, "s")}
    return [{"name": n, "value": round(v, 3), "unit": unit, "better": "lower"} for n, (v, unit) in figures.items()]


def start_ray(cores: int) -> None:
    """A local Ray of so many cores, set up as the pipeline's."""
    ray.init("local", num_cpus=cores, include_dashboard=False, object_store_memory=10**8, log_to_driver=False)
    cluster.configure()


def time_run(source: Path, home: Path, *options: str) -> float:
    """Seconds of one run."""
    config = parse([f"--source={source}", f"--home={home}", *options], "preprocess", "")
    start = time.perf_counter()
    with contextlib.redirect_stdout(None):
        preparation.prepare(config)
    return time.perf_counter() - start


def spread(seconds: list[float]) -> str:
    """Median and extremes."""
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


if __name__ == "__main__":
    main()
