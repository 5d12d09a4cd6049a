"""Measuring memory and time of a few training steps, on made-up samples; nothing that is computed here is kept."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.data.reader import Batch
from pipeline.settings import Config
from pipeline.training import memory
from pipeline.training.learner import Learner
from pipeline.training.precision import Precision
from pipeline.training.ranks import Ranks

MARGIN = 0.8
"""Share of the memory budget that may be planned for. Training is measured; what else may come is not."""

_LARGEST_PROBE = 16
"""Samples up to which memory is measured; beyond, it grows in proportion."""

_STEPS = 1000
"""Length of the measured schedule; only its first and its last steps are made."""


@dataclass(frozen=True)
class MemoryUse:
    """Memory of a worker as a function of its micro-batch."""

    base_mb: float
    per_sample_mb: float
    largest_batch: int
    """Largest micro-batch that fits the budget on every rank, and no more than the share of a worker."""

    def at(self, samples: int) -> float:
        """MB at the peak with a micro-batch of so many samples."""
        return self.base_mb + self.per_sample_mb * samples


class Probe:
    """Measures steps of a configuration; all ranks call its methods alike and get the same results."""

    def __init__(self, config: Config, ranks: Ranks, precision: Precision) -> None:
        self._config, self._ranks, self._precision = config, ranks, precision

    def memory_use(self, share: int) -> MemoryUse:
        """Measure memory with small batches, and find the largest micro-batch up to `share` samples that fits."""
        device = self._ranks.device
        budget = MARGIN * (self._config.train.memory_mb or memory.available_mb(device, self._ranks.per_node))
        learner = self._learner()
        peaks: dict[int, float] = {}
        size = 1
        while size <= min(max(share, 2), _LARGEST_PROBE):
            memory.reset_peak(device)
            try:
                for step in (_STEPS - 2, _STEPS - 1):  # with all terms; the first one also makes the optimizer's state
                    learner.step(step, [self._samples(size)])
                peaks[size] = memory.peak_mb(device)
            except torch.OutOfMemoryError:
                peaks[size] = float("inf")
            peaks[size], too_much = self._ranks.largest([peaks[size], float(peaks[size] > budget)])
            if too_much:
                break
            size *= 2
        measured = [n for n in peaks if np.isfinite(peaks[n])]
        if len(measured) < 2:
            return MemoryUse(peaks.get(1, 0.0), 0.0, 1)
        few, many = measured[-2:]
        per_sample = max((peaks[many] - peaks[few]) / (many - few), 1e-3)
        base = peaks[many] - per_sample * many
        (minus_fitting,) = self._ranks.largest([-(budget - base) / per_sample])  # the smallest number of all ranks
        return MemoryUse(base, per_sample, min(max(int(-minus_fitting), 1), share))

    def step_seconds(self, micro_batch: int, count: int) -> float:
        """Measure the mean seconds of a step with so many micro-batches, on two of them."""
        learner = self._learner()
        batches = [self._samples(micro_batch)] * min(count, 2)

        def measure(first: int) -> float:
            times = []
            for step in range(first, first + 6):
                start = time.perf_counter()
                learner.step(step, batches, len(batches))
                if self._ranks.device.type == "cuda":
                    torch.cuda.synchronize(self._ranks.device)
                times.append(time.perf_counter() - start)
            (slowest,) = self._ranks.largest([statistics.median(times[2:])])
            return slowest * count / len(batches)

        with_all_terms = measure(_STEPS - 6)
        starts = sorted({start for start in self._config.train.term_starts().values() if start})
        if not starts:
            return with_all_terms
        # Between the first and the last start, some terms take part: the time is taken to be that of all.
        return starts[0] * measure(0) + (1 - starts[0]) * with_all_terms

    def _learner(self) -> Learner:
        return Learner(self._config, _STEPS, self._ranks, self._precision)

    def _samples(self, count: int) -> Batch:
        side = self._config.data.crop // self._config.scale
        rng = np.random.default_rng(0)
        lr, hr = (rng.integers(0, 256, (count, s, s, 3), np.uint8) for s in (side, side * self._config.scale))
        return Batch(lr, hr, np.zeros(count, np.uint8))
