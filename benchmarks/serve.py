"""Compare a server with the engine by itself, under several loads, and kill its replicas under load.

As many processes as the server has replicas decode, enlarge and encode images, and do nothing else. Then clients send
the same images to a server. Both take turns, so that other work on the machine disturbs them alike. Their processor
time is compared too, because other work does not change it. In the last section, one replica after the other is killed
while the clients send.

    python -m benchmarks.serve [--model M] [--side N] [--clients 1,4,16,64] [--seconds S] [--replicas N]
"""

from __future__ import annotations

import io
import math
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data

from benchmarks.measuring import Result, parser_of, print_results
from benchmarks.server import Exchange, Outcome, Server, load
from pipeline.networks.loading import load_upscaler
from pipeline.networks.sources import find_model
from pipeline.networks.upscalers import Upscaler
from pipeline.upscaling.encoding import encode_image
from pipeline.upscaling.images import decode_image, enlarge_image

_IMAGES = 8
_QUEUE = 24


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--model", default="srresnet-x4", help="a model (%(default)s)")
    parser.add_argument("--side", type=int, default=96, help="width and height of the images (%(default)s)")
    parser.add_argument("--clients", default="1,4,16,64", help="numbers of clients (%(default)s)")
    parser.add_argument("--seconds", type=float, default=30, help="time of a load (%(default)s)")
    parser.add_argument("--replicas", type=int, default=os.cpu_count(), help="replicas of the server (%(default)s)")
    given = parser.parse_args()
    images = photographs(given.side)
    counts = [int(text) for text in given.clients.split(",")]
    with Engine(given.model, images, given.replicas) as engine, tempfile.TemporaryDirectory() as folder:
        pairs = zip(images, engine.right, strict=True)
        exchanges = [Exchange(image, partial(is_right, right)) for image, right in pairs]
        options = (f"--replicas={given.replicas}", f"--queue={_QUEUE}", "--device=cpu")
        server = Server.start(given.model, Path(folder) / "log", *options)
        try:
            load(server, exchanges, 4 * given.replicas, 5)
            direct, loads = [engine.measure(given.seconds)], []
            for count in counts:
                loads.append(load(server, exchanges, count, given.seconds))
                direct.append(engine.measure(given.seconds))
            killed, kills = kill_replicas(server, exchanges, 8 * given.replicas, 2 * given.seconds)
            repeated = server.count("sr_lost_attempts_total")
        finally:
            server.interrupt()
    rates, costs = [rate for rate, _ in direct], [cost for _, cost in direct]
    print(f"engine, {given.replicas} processes: {shown(rates, 2)} images/s, {shown(costs, 3)} CPU s per image")
    print("clients  images/s  CPU s   p50 s   p99 s     503  wrong  lost")
    for count, outcome in zip(counts, loads, strict=True):
        print(describe(str(count), outcome))
    print(describe("killed", killed))
    print(f"{kills} replicas were killed; {repeated:.0f} requests were repeated; failures: {dict(killed.lost)}")
    busy = [place for place, count in enumerate(counts) if count > given.replicas]
    throughput = [loads[place].rate / statistics.mean(rates[place : place + 2]) for place in busy]
    efficiency = [statistics.mean(costs[place : place + 2]) / cost_of(loads[place]) for place in busy]
    missed = sum(outcome.wrong + outcome.lost.total() for outcome in (*loads, killed))
    print_results(
        [
            Result("serve_throughput", median(throughput), "images/s of server / engine", 0.8, "higher"),
            Result("serve_efficiency", median(efficiency), "CPU time per image of engine / server", 0.8, "higher"),
            Result("serve_wrong_or_lost", missed, "answers that were wrong, or neither an image nor 503", 0, "lower"),
        ]
    )


def median(ratios: Sequence[float]) -> float:
    """Return the median, rounded."""
    return round(statistics.median(ratios), 2)


def shown(values: Sequence[float], digits: int) -> str:
    """Return the smallest and the largest value as text."""
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def cost_of(outcome: Outcome) -> float:
    """Return the processor time of an image in seconds."""
    return outcome.cpu_seconds / max(len(outcome.latencies), 1)


def describe(name: str, outcome: Outcome) -> str:
    """Return a row of the table of loads."""
    return (
        f"{name:7}  {outcome.rate:8.2f}  {cost_of(outcome):5.3f}  {outcome.percentile(50):6.3f}"
        f"  {outcome.percentile(99):6.3f}  {outcome.refused / max(outcome.asked, 1):6.1%}  {outcome.wrong:5}"
        f"  {outcome.lost.total():4}"
    )


def photographs(side: int) -> list[bytes]:
    """Cut PNG files of side x side pixels from a photograph."""
    photo = data.astronaut()
    corners = np.random.default_rng(0).integers(0, 512 - side, (_IMAGES, 2))
    files = []
    for top, left in corners:
        file = io.BytesIO()
        Image.fromarray(photo[top : top + side, left : left + side]).save(file, "PNG")
        files.append(file.getvalue())
    return files


class Engine:
    """Processes that upscale images and do nothing else.

    Args:
        model: a text for `find_model`.
        images: files.
        processes: number of processes, which share the cores.
    """

    def __init__(self, model: str, images: list[bytes], processes: int) -> None:
        self._processes = processes
        self._pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))
        threads = max((os.cpu_count() or 1) // processes, 1)
        self._enlarge = partial(enlarge_for, model, images, threads)
        self.right, _, _ = list(self._pool.map(self._enlarge, [0.0] * processes)).pop()
        """The images, upscaled."""

    def measure(self, seconds: float) -> tuple[float, float]:
        """Return the images per second of all processes together, and the seconds of processor time per image."""
        runs = list(self._pool.map(self._enlarge, [seconds] * self._processes))
        return sum(rate for _, rate, _ in runs), statistics.mean(cost for _, _, cost in runs)

    def __enter__(self) -> Engine:
        """Return the engine."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the processes."""
        self._pool.shutdown()


@cache
def load_model(model: str) -> Upscaler:
    """Load a model once in a process."""
    return load_upscaler(find_model(model), device="cpu")


def enlarge_for(model: str, images: list[bytes], threads: int, seconds: float) -> tuple[list[bytes], float, float]:
    """Upscale images again and again in this process.

    Returns:
        Each result once, images per second, and seconds of processor time per image.
    """
    torch.set_num_threads(threads)
    upscaler = load_model(model)
    results: list[bytes] = []
    start, cpu_start = time.perf_counter(), time.process_time()
    while len(results) < len(images) or time.perf_counter() - start < seconds:
        image = decode_image(images[len(results) % len(images)], 10**8)
        results.append(encode_image(enlarge_image(upscaler, image), ".png"))
    rate = len(results) / (time.perf_counter() - start)
    return results[: len(images)], rate, (time.process_time() - cpu_start) / len(results)


def is_right(expected: bytes, answer: bytes) -> bool:
    """Tell whether an answer shows the expected image; values may differ by 1, because threads round sums otherwise."""
    if answer == expected:
        return True
    got, wanted = (np.asarray(Image.open(io.BytesIO(file))).astype(int) for file in (answer, expected))
    return got.shape == wanted.shape and int(np.abs(got - wanted).max()) <= 1


def kill_replicas(server: Server, exchanges: list[Exchange], clients: int, seconds: float) -> tuple[Outcome, int]:
    """Kill a replica every few seconds while clients send; return what they got, and the number of kills.

    Raises:
        RuntimeError: if there was none to kill.
    """
    done, kills = threading.Event(), 0

    def kill() -> None:
        nonlocal kills
        while not done.wait(seconds / 4):
            replicas = server.replicas()
            if len(replicas) > 1 or (replicas and kills == 0):
                replicas[0].kill()
                kills += 1

    killing = threading.Thread(target=kill)
    killing.start()
    try:
        outcome = load(server, exchanges, clients, seconds)
    finally:
        done.set()
        killing.join()
    if not kills:
        raise RuntimeError("no replica was killed, because no process of one was found")
    outcome.cpu_seconds = math.nan  # that of the killed processes is not known
    return outcome, kills


if __name__ == "__main__":
    main()
