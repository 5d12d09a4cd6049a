"""Throughput of a whole training against the bare step on data in memory, both by the same workers in turns.

A real training (Ray Train, DDP, reading, augmentation, logging to MLflow, checkpoints) on built-in photographs. After
each block of its steps, the same workers make a block of bare steps: a second learner, one batch that lies in memory,
nothing else. Compared are the medians of blocks after the first; validation is timed by itself.
`python benchmarks/train_overhead.py [--blocks N] [--block N] [--small]`
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline import cluster, train
from pipeline.data import preparation
from pipeline.data.reader import Batch
from pipeline.settings.command_line import parse
from pipeline.training import driver
from pipeline.training.learner import Learner, StepResult

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.distributed as dist
from train_step import machine

SMALL = ["model.channels=32", "model.blocks=8"]


def train_loop(job: dict[str, Any]) -> dict[str, Any]:
    """The real one, whose steps are interrupted by blocks of bare steps."""
    from pipeline.training import worker

    real_step, real_validate = Learner.step, worker.Worker._validate
    block, times, state = job["config"]["train"].pop("block"), [], {"mark": 0.0, "validation": 0.0}
    bare: list[Any] = []

    def step(self: Learner, number: int, batches: Iterable[Batch], count: int = 1) -> StepResult:
        if bare and self is bare[0]:
            return real_step(self, number, batches, count)
        if number and number % block == 0:
            pipeline_s = time.perf_counter() - state["mark"] - state["validation"]
            dist.barrier()
            start = time.perf_counter()
            for i in range(block):
                real_step(bare[0], i, bare[1], len(bare[1]))
            dist.barrier()
            times.append((pipeline_s, time.perf_counter() - start))
            if dist.get_rank() == 0:
                Path(job["folder"], "times.json").write_text(json.dumps([times, state["validation"]]))
            state.update(mark=time.perf_counter(), validation=0.0)
        taken = []

        def tap() -> Iterable[Batch]:
            for batch in batches:
                taken.append(batch)
                yield batch

        if number == 0:
            result = real_step(self, number, tap(), count)
            bare[:] = [Learner(worker.Config(**job["config"]), 10**6, self.device, self.world), taken]
            state["mark"] = time.perf_counter()
            return result
        return real_step(self, number, batches, count)

    def validate(self: Any, *args: Any) -> Any:
        start = time.perf_counter()
        result = real_validate(self, *args)
        state["validation"] += time.perf_counter() - start
        return result

    Learner.step, worker.Worker._validate = step, validate  # type: ignore[method-assign, assignment]
    return worker.train_loop(job)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=16)
    parser.add_argument("--block", type=int, default=25, help="steps a block")
    parser.add_argument("--small", action="store_true", help="8 blocks of 32 channels, whose steps hide less")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        steps = (args.blocks + 1) * args.block + 1
        options = [
            *("--config", "configs/demo.yaml", "--home", home, "data.window=256", "train.micro_batch=8"),
            *("model.channels=64", "model.blocks=16", f"train.length={steps} steps", "train.compile=off"),
            *(f"train.validate_every={4 * args.block}", "train.checkpoint_every=100", "cluster.workers=2"),
            *(SMALL if args.small else []),
        ]
        config = parse(options, "train", "")
        patch_set, _ = preparation.prepare(config)
        cluster.connect(config)
        train.train_loop = lambda job: train_loop(_with_block(job, args.block))
        trained = driver.train(config, patch_set)
        times, _ = json.loads(Path(trained.folder, "times.json").read_text())
        validations = [r["metrics"] for r in trained.history() if r["kind"] == "validation"]
        waits = [r["metrics"]["train/data_wait_share"] for r in trained.history() if r["kind"] == "train"]
    whole, bare = ([block[i] / args.block for block in times[1:]] for i in range(2))
    for name, values in (("training", whole), ("bare step", bare)):
        print(f"{name:10} median {statistics.median(values):.4f} s a step, {min(values):.4f} to {max(values):.4f}")
    print(f"{len(whole) * args.block} steps of each; {len(validations)} validations, not counted")
    print(f"waiting for data: {100 * statistics.median(waits):.3f} % of the time (median of records)")
    ratios = [b / w for w, b in zip(whole, bare, strict=True)]
    print(f"ratio block by block: {min(ratios):.3f} to {max(ratios):.3f}")
    print(
        json.dumps(
            {
                "name": "train_overhead" + ("_small" if args.small else ""),
                "value": round(statistics.median(ratios), 3),
                "unit": "patches/s of a whole training / of the bare step",
                "target": 0.97,
                "better": "higher",
                "machine": machine(),
            }
        )
    )


def _with_block(job: dict[str, Any], block: int) -> dict[str, Any]:
    return {**job, "config": {**job["config"], "train": {**job["config"]["train"], "block": block}}}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
