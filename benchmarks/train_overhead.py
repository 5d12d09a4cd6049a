"""Compare the throughput of a whole training with that of the bare step on data in memory.

The training is real: Ray Train, DDP, reading, augmentation, logging to MLflow and checkpoints, on the built-in
photographs. After each block of its steps, the same workers make a block of bare steps with a second learner on one
batch in memory. The medians of all blocks after the first are compared. Validations are timed separately and not
counted.

    python -m benchmarks.train_overhead [--blocks N] [--block N] [--small]
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
import torch.distributed as dist

from benchmarks.measuring import Result, parser_of, print_results, print_times
from pipeline import storage
from pipeline.data import preparation
from pipeline.data.reader import Batch
from pipeline.settings.command_line import parse
from pipeline.training import driver, worker
from pipeline.training.learner import Learner, StepResult
from pipeline.training.planning import Plan
from pipeline.training.validation import Validation, Validator
from sr_model.networks import SuperResolver


@dataclass
class Times:
    """Seconds of blocks, measured on rank 0."""

    training: list[float] = field(default_factory=list)
    """Seconds of each block of the training, without validations."""
    bare: list[float] = field(default_factory=list)
    """Seconds of the block of bare steps after it."""


class Stopwatch:
    """Replaces the step of a worker's learner and its validation, to insert and time blocks of bare steps.

    Args:
        job: the worker's job.
        block: steps of a block.
    """

    def __init__(self, job: worker.TrainJob, block: int) -> None:
        self._job, self._block = job, block
        self._step, self._validate = Learner.step, Validator.validate
        self._times = Times()
        self._bare: Learner | None = None
        self._batches: list[Batch] = []
        self._block_start = self._validation_s = 0.0

    def install(self) -> None:
        """Replace the methods in this process."""
        stopwatch = self

        def step(self: Learner, number: int, batches: Iterable[Batch], count: int = 1) -> StepResult:
            return stopwatch.step(self, number, batches, count)

        def validate(self: Validator, net: SuperResolver, step: int | None = None) -> Validation:
            return stopwatch.validate(self, net, step)

        Learner.step, Validator.validate = step, validate  # type: ignore[method-assign, assignment]

    def step(self, learner: Learner, number: int, batches: Iterable[Batch], count: int) -> StepResult:
        """Make a step of the training; before the first step of each block, make a block of bare steps."""
        if learner is self._bare or number % self._block:
            return self._step(learner, number, batches, count)
        if number:
            self._time_bare_block()
            result = self._step(learner, number, batches, count)
        else:
            result = self._step(learner, number, self._keep(batches), count)
            config = self._job.config
            plan = storage.read_document(f"{self._job.folder}/plan.json", Plan)
            assert plan is not None
            self._bare = Learner(config, 10**6, learner.ranks, plan.precision)
            self._block_start = time.perf_counter()
        return result

    def validate(self, validator: Validator, net: SuperResolver, step: int | None) -> Validation:
        """Validate, and add up the time that it takes."""
        start = time.perf_counter()
        validation = self._validate(validator, net, step)
        self._validation_s += time.perf_counter() - start
        return validation

    def _keep(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self._batches.append(batch)
            yield batch

    def _time_bare_block(self) -> None:
        assert self._bare is not None
        self._times.training.append(time.perf_counter() - self._block_start - self._validation_s)
        dist.barrier()
        start = time.perf_counter()
        for number in range(self._block):
            self._step(self._bare, number, self._batches, len(self._batches))
        dist.barrier()
        self._times.bare.append(time.perf_counter() - start)
        if dist.get_rank() == 0:
            storage.write_document(f"{self._job.folder}/times.json", self._times)
        self._block_start, self._validation_s = time.perf_counter(), 0.0


def train_loop(arguments: dict[str, worker.TrainJob], block: int) -> worker.LoopResult:
    """Run the real loop of a worker, interrupted by blocks of bare steps."""
    Stopwatch(arguments["job"], block).install()
    return worker.train_loop(arguments)


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--blocks", type=int, default=16, help="timed blocks (%(default)s)")
    parser.add_argument("--block", type=int, default=25, help="steps per block (%(default)s)")
    parser.add_argument(
        "--small", action="store_true", help="train 8 blocks of 32 channels, whose short steps hide less of the rest"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    block = arguments.block
    channels, blocks = (32, 8) if arguments.small else (64, 16)
    with tempfile.TemporaryDirectory() as home:
        options = [
            *("--config", "configs/demo.yaml", "--home", home, "data.window=256", "cluster.workers=2"),
            *(f"model.channels={channels}", f"model.blocks={blocks}", "train.micro_batch=8", "train.compile=off"),
            *(f"train.length={(arguments.blocks + 1) * block + 1} steps", f"train.validate_every={4 * block}"),
            "train.checkpoint_every=100",
        ]
        config = parse(options, "train", "")
        patch_set, _ = preparation.prepare(config)

        def timed_loop(arguments: dict[str, worker.TrainJob]) -> worker.LoopResult:
            return train_loop(arguments, block)

        driver.train_loop = timed_loop  # type: ignore[attr-defined]
        trained = driver.train(config, patch_set)
        times = storage.read_document(f"{trained.folder}/times.json", Times)
        history = trained.history()
    assert times is not None
    training, bare = ([seconds / block for seconds in column[1:]] for column in (times.training, times.bare))
    print_times({"training": training, "bare step": bare})
    validations = sum(record.kind == "validation" for record in history)
    print(f"{len(training) * block} steps of each; {validations} validations, not counted")
    waits = [record.metrics["train/data_wait_share"] for record in history if record.kind == "train"]
    print(f"waiting for data: {100 * statistics.median(waits):.3f} % of the time (median of records)")
    ratios = [b / t for t, b in zip(training, bare, strict=True)]
    print(f"ratio block by block: {min(ratios):.3f} to {max(ratios):.3f}")
    name = "train_overhead_small" if arguments.small else "train_overhead"
    unit = "patches/s of a whole training / of the bare step"
    print_results(Result(name, round(statistics.median(ratios), 3), unit, 0.97, "higher"))


if __name__ == "__main__":
    main()
