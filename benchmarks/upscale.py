"""Compare upscaling with the plain way to use a network, and with what the cores give without any overhead.

    python -m benchmarks.upscale [SECTION...] [--images SOURCE] [--rounds N] [--count N]

Sections, all of them by default:

- speed: megapixels of output per second, compared with fp32, contiguous tensors, the network as the paper draws it and
  the whole image at once. The ways take turns, because a busy machine then disturbs all of them alike.
- quality: mean PSNR on Y of the images in half precision, compared with fp32. `--images` may name a benchmark set such
  as Set14, whose LR files are used if it has some; other images are reduced with MATLAB's bicubic. A processor without
  instructions for bf16 computes it, too, but slowly.
- memory: peaks of the command when it enlarges an image to 1 and to 100 megapixels, and their ratio without what the
  output itself needs.
- start: seconds of the command for one small image, from the shell.
- folder: the command on a folder of images, compared with processes that hold the model and decoded images in memory,
  one per core.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.measuring import SCALE, Result, medians, parser_of, print_results, print_times, time_in_turns
from benchmarks.train_step import SRResNetAsDrawn
from pipeline.data import benchmark_sets
from pipeline.data.images import decode
from pipeline.data.sources import list_images, read_bytes
from pipeline.evaluation.scoring import load_pair
from pipeline.networks import bundled
from pipeline.networks.devices import best_device
from pipeline.networks.engine import Precision
from pipeline.networks.upscalers import NetworkUpscaler
from pipeline.networks.weights import load_network
from sr_model.degrade import downscale
from sr_model.metrics import score
from sr_model.networks.super_resolver import SuperResolver
from sr_model.pixels import Pixels, to_pixels, to_tensor

SPEED_SIDE = 256
"""Side of the image whose speed is measured, in LR pixels; its output has a megapixel."""
FOLDER_SIZE = (160, 240)
"""Height and width of the images in the folder."""
SMALL_SIZE = (96, 128)
"""Height and width of the image that is upscaled from the shell."""
MEMORY_SIDES = {1: 250, 100: 2500}
"""LR side of a square image by the megapixels of its output."""
BYTES_PER_PIXEL = 3 + 4
"""Bytes that a pixel of the output needs: its values, and Pillow's copy of them while it encodes a file."""
MOST_PIXELS = 10**8


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--images", default="builtin", help="folder or other source of photographs (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each way (%(default)s)")
    parser.add_argument("--count", type=int, default=200, help="images in the folder (%(default)s)")
    parser.add_argument("--bare", help=argparse.SUPPRESS)  # for child processes: the images to enlarge
    arguments = parser.parse_args()
    if arguments.bare:
        enlarge_bare(Path(arguments.bare))
        return
    if unknown := set(arguments.sections) - set(SECTIONS):
        parser.error(f"unknown section {min(unknown)}, expected {', '.join(SECTIONS)}")
    results = []
    for section in arguments.sections or SECTIONS:
        print(f"\n{section}", flush=True)
        results += SECTIONS[section](arguments)
    print_results(results)


def measure_speed(arguments: argparse.Namespace) -> list[Result]:
    """Compare the engine with the plain way."""
    photo = next(photographs(arguments.images))
    tiled = np.tile(photo, (SPEED_SIDE // photo.shape[0] + 1, SPEED_SIDE // photo.shape[1] + 1, 1))
    lr = to_tensor(tiled[:SPEED_SIDE, :SPEED_SIDE])
    device = best_device()
    net = network()
    upscaler, exact = NetworkUpscaler(net), NetworkUpscaler(net, "fp32")
    drawn = SRResNetAsDrawn(SCALE, batch_norm=False)
    drawn.load_state_dict(net.state_dict())
    drawn = drawn.to(device).eval()
    actions: dict[str, Callable[[], object]] = {
        "plain": lambda: enlarge_plainly(drawn, lr),
        "the network's own forward pass": lambda: enlarge_plainly(net, lr),
        f"engine, {upscaler.precision}": lambda: upscaler.enlarge(lr),
    }
    if upscaler.precision != "fp32":
        actions["engine, fp32"] = lambda: exact.enlarge(lr)
    times = time_in_turns(actions, arguments.rounds, device=device)
    print_times(times, "image")
    median = medians(times)
    megapixels = SPEED_SIDE**2 * SCALE**2 / 1e6
    for name, seconds in median.items():
        print(f"{name}: {megapixels / seconds:.3f} MP/s")
    ratio = median["plain"] / median[f"engine, {upscaler.precision}"]
    target = 1.4 if upscaler.precision == "fp32" else 2.5
    return [Result("upscale_speed", round(ratio, 2), "plain time / engine time", target, "higher")]


def measure_quality(arguments: argparse.Namespace) -> list[Result]:
    """Compare the PSNR of the engine's precision with that of fp32."""
    net = network()
    half: Precision = "fp16" if best_device().type == "cuda" else "bf16"
    upscalers = {half: NetworkUpscaler(net, half), "fp32": NetworkUpscaler(net, "fp32")}
    found: dict[str, list[float]] = {name: [] for name in upscalers}
    for image in benchmark_sets.list_images("--images", arguments.images, SCALE, ""):
        hr, lr, _ = load_pair(image.hr, image.lr, SCALE, MOST_PIXELS)
        for name, upscaler in upscalers.items():
            found[name].append(score(upscaler.enlarge(to_tensor(lr)), to_tensor(hr), SCALE).psnr_y)
    mean = {name: statistics.fmean(values) for name, values in found.items()}
    print(f"{len(found['fp32'])} images: fp32 {mean['fp32']:.4f} dB, {half} {mean[half]:.4f} dB")
    difference = round(abs(mean[half] - mean["fp32"]), 4)
    return [Result("upscale_quality", difference, f"dB between {half} and fp32", 0.01, "lower")]


def measure_memory(arguments: argparse.Namespace) -> list[Result]:
    """Measure the peak memory of the command for a small and a large output."""
    del arguments
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        for megapixels, side in MEMORY_SIDES.items():
            image = Path(folder) / f"{side}.png"
            noise = np.random.default_rng(0).integers(0, 256, (side // 25, side // 25, 3), np.uint8)
            Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).save(image)
            seconds, peaks[megapixels] = run_command(str(image), str(image.with_suffix(".jpg")))
            print(f"{megapixels} megapixels: peak {peaks[megapixels]:.0f} MB, {seconds:.0f} s", flush=True)
    small, large = min(peaks), max(peaks)
    base = {megapixels: peak - megapixels * BYTES_PER_PIXEL for megapixels, peak in peaks.items()}
    print(f"without {BYTES_PER_PIXEL} bytes for each pixel of the output: {base[small]:.0f} and {base[large]:.0f} MB")
    unit = f"peak at {large} megapixels / peak at {small}, both without what the output needs"
    return [
        Result("upscale_memory", round(peaks[large]), f"MB, peak at {large} megapixels", 2000, "lower"),
        Result("upscale_memory_growth", round(base[large] / base[small], 2), unit, 1.2, "lower"),
    ]


def measure_start(arguments: argparse.Namespace) -> list[Result]:
    """Time the command for one small image."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "small.png"
        Image.fromarray(next(photographs(arguments.images))[: SMALL_SIZE[0], : SMALL_SIZE[1]]).save(image)
        times = [run_command(str(image), str(Path(folder) / "large.png"))[0] for _ in range(arguments.rounds + 1)][1:]
    print_times({"one small image": times}, "command")
    return [Result("upscale_start", round(statistics.median(times), 2), "s for one small image", 3, "lower")]


def measure_folder(arguments: argparse.Namespace) -> list[Result]:
    """Compare the command on a folder with processes that only compute."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        parts = [Path(folder) / "images" / str(core) for core in range(min(cores, arguments.count))]
        for part in parts:
            part.mkdir(parents=True)
        for number, crop in enumerate(crops(arguments.images, arguments.count)):
            Image.fromarray(crop).save(parts[number % len(parts)] / f"{number:04}.png")
        bare = time_bare(parts)
        seconds, _ = run_command(str(Path(folder) / "images"), str(Path(folder) / "out"))
        written = sum(1 for _ in (Path(folder) / "out").rglob("*.png"))
    if written != arguments.count:
        raise SystemExit(f"the command wrote {written} of {arguments.count} images")
    print(f"{arguments.count} images: {seconds:.1f} s; {len(parts)} processes that only compute: {bare:.1f} s")
    unit = "time of processes that only compute / time of the command"
    return [Result("upscale_folder", round(bare / seconds, 3), unit, 0.9, "higher")]


def time_bare(parts: list[Path]) -> float:
    """Return the seconds that one process per folder takes together to enlarge decoded images."""
    command = [sys.executable, "-m", "benchmarks.upscale", "--bare"]
    children = [
        subprocess.Popen([*command, str(part)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for part in parts
    ]
    try:
        for child in children:
            assert child.stdout is not None
            if child.stdout.readline() != "ready\n":
                raise SystemExit("a process that only computes has failed")
        start = time.perf_counter()
        for child in children:  # all of them start before any of them is waited for
            assert child.stdin is not None
            child.stdin.write("start\n")
            child.stdin.flush()
        if any(child.wait() for child in children):
            raise SystemExit("a process that only computes has failed")
        return time.perf_counter() - start
    finally:
        for child in children:
            child.kill()  # matters only if this process is interrupted
            child.wait()


def enlarge_bare(folder: Path) -> None:
    """Load the model and the images of a folder, wait for a line of input, and enlarge the images on one thread."""
    torch.set_num_threads(1)
    upscaler = NetworkUpscaler(network())
    images = [to_tensor(decode(file.read_bytes(), MOST_PIXELS)) for file in sorted(folder.iterdir())]
    upscaler.enlarge(images[0])
    print("ready", flush=True)
    sys.stdin.readline()
    for image in images:
        upscaler.enlarge(image)


def run_command(*arguments: str) -> tuple[float, float]:
    """Run `python -m pipeline.upscale`, and return its seconds and the peak memory of its process in MB.

    Raises:
        SystemExit: with the command's output, if it fails.
    """
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        command = [sys.executable, "-m", "pipeline.upscale", *arguments]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            raise SystemExit(output.read())
    unit = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - start, usage.ru_maxrss * unit / 1e6


@torch.no_grad()
def enlarge_plainly(net: SuperResolver, lr: Tensor) -> Tensor:
    """Enlarge an image the plain way: fp32, contiguous, whole."""
    x = (lr.to(next(net.parameters()).device).float() / 255)[None]
    y: Tensor = net(x)[0]
    return y.mul(255).round().clamp(0, 255).byte().cpu()


def network() -> SuperResolver:
    """Load the bundled network."""
    return load_network(bundled.weights(bundled.DEFAULT)).to(best_device())


def photographs(source: str) -> Iterator[Pixels]:
    """Decode the photographs of a source, (H, W, 3) each."""
    images = list_images([source], "")
    for image in images:
        yield decode(read_bytes(image.location), MOST_PIXELS)


def crops(source: str, count: int) -> Iterator[Pixels]:
    """Cut images of `FOLDER_SIZE` out of photographs that are reduced to a half, all of them in turn."""
    height, width = FOLDER_SIZE
    rng = np.random.default_rng(0)
    halves = [to_pixels(downscale(to_tensor(photo[: len(photo) // 2 * 2, : photo.shape[1] // 2 * 2]), 2))
              for photo in photographs(source)]  # fmt: skip
    large = [half for half in halves if half.shape[0] >= height and half.shape[1] >= width]
    for number in range(count):
        photo = large[number % len(large)]
        top, left = (
            int(rng.integers(0, have - need + 1)) for have, need in zip(photo.shape, FOLDER_SIZE, strict=False)
        )
        yield photo[top : top + height, left : left + width]


SECTIONS: dict[str, Callable[[argparse.Namespace], list[Result]]] = {
    "speed": measure_speed,
    "quality": measure_quality,
    "memory": measure_memory,
    "start": measure_start,
    "folder": measure_folder,
}
"""The sections by name."""


if __name__ == "__main__":
    main()
