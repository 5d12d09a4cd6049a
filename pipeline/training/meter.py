"""Throughput."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

from pipeline.training import memory
from pipeline.training.learner import Learner, StepResult

T = TypeVar("T")


class _Meter:
    """Means of what was trained since the last record, and where the time went."""

    def __init__(self, batch: int, steps: int) -> None:
        self._batch, self._total = batch, steps
        self._next_flush = 0.0
        self._begin()

    def _begin(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._good: dict[str, int] = {}
        self._count = self._samples = 0
        self._waited = self._excluded = 0.0
        self._start = time.monotonic()

    def add(self, result: StepResult, samples: int) -> None:
        """Count a step of this rank."""
        self._count += 1
        self._samples += samples
        if result.skipped:
            return
        for name, value in {"objective": result.objective, **result.terms, "norm": result.gradient_norm}.items():
            self._good[name] = self._good.get(name, 0) + 1  # a term may take part from a later step on
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def read(self, learner: Learner) -> dict[str, float]:
        """Take the means and begin anew; every rank must call it at the same step."""
        seconds = time.monotonic() - self._start - self._excluded
        mine = [self._samples / seconds, self._waited / seconds, memory.peak_mb(learner.device)]
        ranks = learner.gather([*self._sums.values(), *mine])
        metrics = {
            f"train/{name}": sum(values) / self._good[name]
            for name, values in zip(self._sums, zip(*ranks, strict=True), strict=False)
        }
        if "train/norm" in metrics:
            metrics["train/gradient_norm"] = metrics.pop("train/norm") / learner.world
        rates, waits, peaks = zip(*(values[-3:] for values in ranks), strict=True)
        metrics |= {
            "train/steps_per_s": self._count / seconds,
            "train/patches_per_s": self._count * self._batch / seconds,
            "train/data_wait_share": max(waits),
            "train/peak_memory_mb": max(peaks),
            "train/steps_total": float(self._total),
        }
        if 1 < learner.world <= _SHOWN_WORKERS:
            for rank, (rate, wait) in enumerate(zip(rates, waits, strict=True)):
                metrics |= {f"worker_{rank}/patches_per_s": rate, f"worker_{rank}/data_wait_share": wait}
        self._begin()
        return metrics

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """Pass on what is waited for, and count the time."""
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
        """Around what isn't training."""
        start = time.monotonic()
        yield
        self._excluded += time.monotonic() - start

    def flush_due(self) -> bool:
        """Whether to publish the journal: every few seconds, so that files stay few."""
        if time.monotonic() < self._next_flush:
            return False
        self._next_flush = time.monotonic() + 5
        return True


_SHOWN_WORKERS = 16
"""Up to so many, each worker's throughput is logged; of more, only the slowest's."""
