"""Means over the steps since the last record, and where their time went."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

from pipeline.training import memory
from pipeline.training.learner import StepResult
from pipeline.training.ranks import Ranks

T = TypeVar("T")

_SHOWN_WORKERS = 16
"""Largest world size for which each worker's throughput is recorded."""

_APART_S = 1.0
"""Seconds between records on a GPU: a record waits for the device, which then waits for the next step's operations."""

_FLUSH_S = 5
"""Seconds between flushes of the journal; more of them would make many small files."""


class Meter:
    """Collects what the steps of this rank return.

    Args:
        ranks: this process among the ranks.
        batch: global batch.
        steps: optimizer steps of the training.
        every: records follow steps whose number is a multiple of this one, and the last step.
        apart_s: the least seconds between records, by the speed that the last record found; by default one on a GPU
            and none on a CPU.
    """

    def __init__(self, ranks: Ranks, batch: int, steps: int, every: int, apart_s: float | None = None) -> None:
        self._ranks, self._batch, self._total, self._every = ranks, batch, steps, every
        self._apart_s = apart_s if apart_s is not None else _APART_S if ranks.device.type == "cuda" else 0.0
        self._next_record = 0
        self._next_flush = 0.0
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._norms: dict[str, torch.Tensor] = {}
        self._good: dict[str, torch.Tensor] = {}
        self._count = self._samples = 0
        self._waited = self._excluded = 0.0
        self._start = time.monotonic()

    def add(self, result: StepResult, samples: int) -> None:
        """Count a step, of which this rank had so many samples. A step that was skipped is left out of the means."""
        self._count += 1
        self._samples += samples
        good = result.finite.double()
        for collected, values in ((self._sums, result.sums), (self._norms, result.norms)):
            for name, value in values.items():
                value = torch.where(result.finite, value, 0.0)
                # A term may join at a later step.
                collected[name] = collected[name] + value if name in collected else value
                self._good[name] = self._good[name] + good if name in self._good else good

    def is_due(self, done: int) -> bool:
        """Tell on all ranks alike whether a record follows the step after which `done` steps are finished."""
        return done == self._total or (done % self._every == 0 and done >= self._next_record)

    def read(self, done: int) -> dict[str, float]:
        """Return the means as metrics and start over; every rank has to call it at the same step.

        Args:
            done: number of finished steps.
        """
        seconds = time.monotonic() - self._start - self._excluded
        rate, waited = self._samples / seconds, self._waited / seconds
        names = [*self._sums, *self._norms]
        own: list[torch.Tensor | float] = [
            *self._sums.values(),
            *self._norms.values(),
            *(self._good[name] for name in names),
            rate,
            waited,
            memory.peak_mb(self._ranks.device),
        ]
        columns = list(zip(*self._ranks.gather_numbers(own), strict=True))
        rates, waits, peaks = columns[-3:]
        self._next_record = done + round(self._apart_s * sum(rates) / self._batch)  # equal on all ranks
        totals = [sum(column) for column in columns[: len(self._sums)]]
        norms = [column[0] for column in columns[len(self._sums) : len(names)]]
        good = [column[0] for column in columns[len(names) : 2 * len(names)]]
        means = zip(names, (*totals, *norms), good, strict=True)
        metrics = {f"train/{name}": value / count for name, value, count in means if count}
        metrics |= {
            "train/steps_per_s": self._count / seconds,
            "train/patches_per_s": self._count * self._batch / seconds,
            "train/data_wait_share": max(waits),
            "train/peak_memory_mb": max(peaks),
            "train/steps_total": float(self._total),
        }
        if 1 < self._ranks.world_size <= _SHOWN_WORKERS:
            for rank, (rate, wait) in enumerate(zip(rates, waits, strict=True)):
                metrics |= {f"worker_{rank}/patches_per_s": rate, f"worker_{rank}/data_wait_share": wait}
        self._reset()
        return metrics

    def time_waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """Pass on the batches, and count the time spent waiting for each."""
        iterator = iter(batches)
        while True:
            start = time.monotonic()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self._waited += time.monotonic() - start
            yield item

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of this block out of the throughput."""
        start = time.monotonic()
        yield
        self._excluded += time.monotonic() - start

    def flush_due(self) -> bool:
        """Tell whether some seconds have passed since the last flush of the journal, and count from now."""
        if time.monotonic() < self._next_flush:
            return False
        self._next_flush = time.monotonic() + _FLUSH_S
        return True
