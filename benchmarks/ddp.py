"""Two workers of one thread each against one worker of two threads: the same step of a global batch of 16.

Processes are started once and take turns, so that a noisy machine disturbs both alike; medians of rounds are compared.
`python benchmarks/ddp.py [--batch-norm] [--rounds N] [--steps N]`
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from pipeline.data.reader import Batch
from pipeline.settings.command_line import parse
from pipeline.training.learner import Learner

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import torch.distributed as dist
from torch import multiprocessing
from train_step import machine


def work(pipe: Connection, options: list[str], rank: int, world: int, threads: int, meet: str) -> None:
    """Make as many steps as each message says, and answer with the seconds."""
    torch.set_num_threads(threads)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=world)
    config = parse(options, "train", "")
    learner = Learner(config, 10**6, torch.device("cpu"), world)
    share = config.train.global_batch // world
    rng = np.random.default_rng(rank)
    lr, hr = (rng.integers(0, 256, (share, side, side, 3), np.uint8) for side in (24, 96))
    batch = Batch(lr, hr, rng.integers(0, 8, share, np.uint8))
    done = 0
    while steps := pipe.recv():
        start = time.perf_counter()
        for _ in range(steps):
            learner.step(done, [batch])
            done += 1
        pipe.send(time.perf_counter() - start)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-norm", action="store_true")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="steps a round")
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=16)
    args = parser.parse_args()
    options = [f"model.{key}={getattr(args, key)}" for key in ("batch_norm", "channels", "blocks")]
    teams = {"one worker of two threads": (1, 2), "two workers of one thread": (2, 1)}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        pipes: dict[str, list[Connection]] = {}
        for name, (world, threads) in teams.items():
            pipes[name] = []
            for rank in range(world):
                mine, theirs = context.Pipe()
                arguments = (theirs, options, rank, world, threads, f"{folder}/meet")
                context.Process(target=work, args=arguments, daemon=True).start()
                pipes[name].append(mine)

        def measure(name: str, steps: int) -> float:
            for pipe in pipes[name]:
                pipe.send(steps)
            return max(pipe.recv() for pipe in pipes[name]) / max(steps, 1)

        times: dict[str, list[float]] = {name: [] for name in teams}
        for name in teams:
            measure(name, 2)
        for _ in range(args.rounds):
            for name in teams:
                times[name].append(measure(name, args.steps))
        for team in pipes.values():
            for pipe in team:
                pipe.send(0)
    for name, values in times.items():
        print(f"{name:28} median {statistics.median(values):.3f} s a step, {min(values):.3f} to {max(values):.3f}")
    one, two = (statistics.median(values) for values in times.values())
    print(
        json.dumps(
            {
                "name": "ddp" + ("_batch_norm" if args.batch_norm else ""),
                "value": round(one / two, 3),
                "unit": "patches/s of two workers of one thread / of one worker of two threads",
                "target": 0.9,
                "better": "higher",
                "machine": machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
