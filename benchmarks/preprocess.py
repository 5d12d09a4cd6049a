"""Compare the time of preprocessing an image with decoding alone, with the usual script, and with two cores.

The images are PNG files of 2040x1356 pixels, cut from enlarged photographs. The parts take turns, because a busy
machine then disturbs all of them alike. Medians and extremes are printed.

    python -m benchmarks.preprocess [--source FOLDER] [--images N] [--rounds N]

With --count, it instead times whole runs on N small images with Ray, for the constants in docs/explanation/scaling.md.

    python -m benchmarks.preprocess --count N
"""

from __future__ import annotations

import contextlib
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import ray
import torch
from PIL import Image

from benchmarks.measuring import SCALE, Result, parser_of, print_results, time_in_turns
from pipeline import cluster
from pipeline.data import degradation, inventory, preparation, shards, sources
from pipeline.data.images import decode
from pipeline.data.inspected import InspectedImage, InspectedImages
from pipeline.data.inventory import InspectionTask
from pipeline.data.listing import list_files
from pipeline.data.shard_plan import ShardSpec
from pipeline.data.source_images import SourceImage
from pipeline.settings import Preprocess
from pipeline.settings.command_line import parse
from sr_model.degrade import downscale

WIDTH, HEIGHT = 2040, 1356
"""Pixels of the images."""
MAX_PIXELS = 10**9
MAX_BYTES = 10**10


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--source", default="builtin", help="images to cut from (%(default)s)")
    parser.add_argument("--images", type=int, default=24, help="number of images (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (%(default)s)")
    parser.add_argument("--count", type=int, help="number of small images in a whole run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.count:
            results = time_whole_runs(arguments.count, Path(folder))
        else:
            images = make_images(arguments.source, arguments.images, Path(folder, "photos"))
            results = [*time_one_thread(images, arguments.rounds, Path(folder)), time_cores(images, Path(folder))]
    print_results(results)


def make_images(source: str, count: int, folder: Path) -> list[Path]:
    """Cut images of 2K from enlarged photographs.

    Args:
        source: a source of photographs.
        count: number of images.
        folder: where the PNG files go.
    """
    folder.mkdir()
    listed = sources.list_images([source], cache=str(folder))
    files = []
    for i in range(count):
        photo = Image.fromarray(decode(sources.read_bytes(listed[i % len(listed)].location), MAX_PIXELS))
        enlarge = max(WIDTH / photo.width, HEIGHT / photo.height, 1) * (1 + 0.05 * (i // len(listed)))
        size = round(photo.width * enlarge + 0.5), round(photo.height * enlarge + 0.5)
        large = photo.resize(size, Image.Resampling.BICUBIC)
        x, y = (large.width - WIDTH) // 2, (large.height - HEIGHT) // 2
        # Without noise, an enlarged photograph would be compressed too well.
        grain = np.random.default_rng(i).normal(0, 2, (HEIGHT, WIDTH, 3))
        pixels = np.asarray(large.crop((x, y, x + WIDTH, y + HEIGHT))) + grain
        files.append(folder / f"{i:03}.png")
        Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)).save(files[-1])
    print(f"{count} images of {WIDTH}x{HEIGHT}, {sum(f.stat().st_size for f in files) / count / 1e6:.1f} MB each")
    return files


def time_one_thread(files: Sequence[Path], rounds: int, folder: Path) -> list[Result]:
    """Time decoding, the pipeline's shard writer, the usual script and two ways of resizing on one thread."""
    torch.set_num_threads(1)
    settings = Preprocess()
    listed = list_files(str(files[0].parent)).images
    known = InspectedImages.of(map(inspect, listed))
    photo = decode(files[0].read_bytes(), MAX_PIXELS)
    tensor, picture = degradation.as_tensor(photo).permute(2, 0, 1), Image.fromarray(photo)
    small = (WIDTH // SCALE, HEIGHT // SCALE)
    numbers = itertools.count()

    def pipeline() -> None:
        for image in listed:
            inspect(image)  # the inventory reads every file, too
        shard = folder / f"out/{next(numbers)}.parquet"  # a new one, because it takes time to replace a large file
        shards.make_shard(ShardSpec(False, SCALE, settings, known), str(shard), finished=None)

    def decoding() -> None:
        for file in files:
            with Image.open(file) as opened:
                opened.load()

    parts: dict[str, tuple[Callable[[], object], int]] = {
        "decode the PNG": (decoding, len(files)),
        "the pipeline": (pipeline, len(files)),
        "the usual script": (lambda: usual_script(files[0], folder / "usual", settings.tile), 1),
        "resize, Pillow's bicubic": (lambda: picture.resize(small, Image.Resampling.BICUBIC), 1),
        "resize, the pipeline's": (lambda: downscale(tensor, SCALE), 1),
    }
    per_call = time_in_turns({name: work for name, (work, _) in parts.items()}, rounds)
    times = {name: [seconds / parts[name][1] for seconds in values] for name, values in per_call.items()}
    for name, values in times.items():
        low, high = min(values), max(values)
        print(f"{name:26} {1000 * statistics.median(values):8.1f} ms per image ({1000 * low:.1f} to {1000 * high:.1f})")

    def ratio(a: str, b: str) -> float:
        return round(statistics.median(x / y for x, y in zip(times[a], times[b], strict=True)), 2)

    over_decoding = ratio("the pipeline", "decode the PNG")
    speedup = ratio("the usual script", "the pipeline")
    over_pillow = ratio("resize, the pipeline's", "resize, Pillow's bicubic")
    return [
        Result("preprocess_over_decode", over_decoding, "ratio", 1.25, "lower"),
        Result("preprocess_speedup_over_usual_script", speedup, "ratio", 5, "higher"),
        Result("resize_over_pillow", over_pillow, "ratio", 1, "lower"),
    ]


def inspect(image: SourceImage) -> InspectedImage:
    """Do the inventory's part of the work."""
    return inventory.inspect(InspectionTask(image, MAX_BYTES))


def usual_script(file: Path, folder: Path, tile: int) -> None:
    """Preprocess an image as usual scripts do.

    It is resized in a loop over rows and then columns, like the classic ports of MATLAB's imresize, and each patch
    becomes a PNG file.
    """
    folder.mkdir(exist_ok=True)
    hr = np.asarray(Image.open(file).convert("RGB")).astype(np.float64)
    lr = hr
    for axis in (0, 1):
        length = lr.shape[axis] // SCALE
        out = np.zeros((length, lr.shape[1], 3) if axis == 0 else (lr.shape[0], length, 3))
        for i in range(length):
            centre = (i + 0.5) * SCALE - 0.5
            taps = np.arange(int(np.floor(centre - 2 * SCALE)), int(np.floor(centre - 2 * SCALE)) + 4 * SCALE + 2)
            weights = cubic((centre - taps) / SCALE)
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


def cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Evaluate Keys' cubic kernel with a = -0.5 (IEEE TASSP 1981)."""
    x = np.abs(x)
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, inner, np.where(x <= 2, outer, 0.0))


def time_cores(files: Sequence[Path], folder: Path) -> Result:
    """Time whole runs on one core and on two, which take turns; the start of Ray and its workers is not counted."""
    times: dict[int, list[float]] = {1: [], 2: []}
    for i in range(3):
        for cores in (1, 2):
            start_ray(cores)
            seconds = [
                time_run(files[0].parent, folder / f"home-{cores}-{i}-{run}", "preprocess.shard_mb=8")
                for run in range(2)
            ]
            times[cores].append(seconds[1])  # during the first run, the workers import their modules
            ray.shutdown()
    one, two = (statistics.median(times[cores]) for cores in (1, 2))
    print(f"{len(files)} images on one core {spread(times[1])}, on two {spread(times[2])}")
    return Result("preprocess_two_cores", round(one / two, 2), "ratio", 1.7, "higher")


def time_whole_runs(count: int, folder: Path) -> list[Result]:
    """Time a run on 10 small images and a run on all `count`, to separate the start from the time per image."""
    (folder / "photos").mkdir()
    photo = Image.fromarray(decode(sources.read_bytes(sources.list_images(["builtin"], "")[0].location), MAX_PIXELS))
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
    return [
        Result("preprocess_fixed", round(few, 3), "s", None, "lower"),
        Result("preprocess_each", round(1000 * each, 3), "ms", None, "lower"),
        Result("found_again", round(again, 3), "s", None, "lower"),
    ]


def start_ray(cores: int) -> None:
    """Start a local Ray with so many cores and the pipeline's settings."""
    ray.init("local", num_cpus=cores, include_dashboard=False, object_store_memory=10**8, log_to_driver=False)
    cluster.configure()


def time_run(source: Path, home: Path, *options: str) -> float:
    """Return the seconds that one run takes."""
    config = parse([f"--source={source}", f"--home={home}", *options], "preprocess", "")
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        preparation.prepare(config)
    return time.perf_counter() - start


def spread(seconds: Sequence[float]) -> str:
    """Return the median and the extremes as text."""
    return f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"


if __name__ == "__main__":
    main()
