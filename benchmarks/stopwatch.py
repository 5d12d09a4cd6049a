"""Time blocks of a training's steps inside its workers, and blocks of bare steps between them.

`benchmarks.train_overhead` sends `train_loop` to Ray's workers, which import it from here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch.distributed as dist

from pipeline import storage
from pipeline.data.reader import Batch
from pipeline.training import worker
from pipeline.training.job import LoopResult, TrainJob
from pipeline.training.learner import Learner, StepResult
from pipeline.training.planning import Plan
from pipeline.training.validation import Validation, Validator
from sr_model.networks.super_resolver import SuperResolver


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

    def __init__(self, job: TrainJob, block: int) -> None:
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


def train_loop(arguments: dict[str, TrainJob], block: int) -> LoopResult:
    """Run the real loop of a worker, interrupted by blocks of bare steps."""
    Stopwatch(arguments["job"], block).install()
    return worker.train_loop(arguments)
