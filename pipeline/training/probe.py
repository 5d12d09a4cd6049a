"""Measuring memory and time of a few training steps, on made-up samples; nothing that is computed here is kept."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.data.reader import Batch
from pipeline.settings import Config, UserError
from pipeline.storage import one_line
from pipeline.training import memory
from pipeline.training.compilers import has_compiler
from pipeline.training.learner import Learner
from pipeline.training.methods import METHODS
from pipeline.training.precision import Precision
from pipeline.training.ranks import Ranks

MARGIN = 0.8
"""Share of the memory budget that may be planned for. Training is measured; what else may come is not."""

_LARGEST_PROBE = 16
"""Samples up to which memory is measured; beyond, it grows in proportion."""

_STEPS = 1_000_000
"""Length of the measured schedule, which exceeds any warm-up; only some first and last steps of it are made."""


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
        """Measure memory with small batches, and find the largest micro-batch up to `share` samples that fits.

        Raises:
            UserError: if a single sample does not fit.
        """
        device, ranks, settings = self._ranks.device, self._ranks, self._config.train
        budget = MARGIN * (settings.memory_mb or memory.available_mb(device, ranks.per_node))
        learner = self._learner_alone()
        peaks: dict[int, float] = {}
        size = 1
        while size <= min(max(share, 2), _LARGEST_PROBE):
            peak = self._peak_mb(learner, size)
            peaks[size], too_much = ranks.largest([peak, float(peak > budget)])
            if too_much:
                break
            size *= 2
        if peaks[1] == float("inf"):
            raise UserError(
                f"a single patch of {self._config.data.crop} pixels does not fit in the memory of "
                f"{memory.describe(device)}: expected a smaller data.crop or network, train.recompute=true, or a "
                "device with more free memory"
            )
        measured = [n for n in peaks if np.isfinite(peaks[n])]
        if len(measured) < 2:
            return MemoryUse(peaks[1], 0.0, 1)
        few, many = measured[-2:]
        per_sample = max((peaks[many] - peaks[few]) / (many - few), 1e-3)
        base = peaks[many] - per_sample * many
        (minus_fitting,) = ranks.largest([-(budget - base) / per_sample])  # the smallest number of all ranks
        most = next((n - 1 for n in peaks if not np.isfinite(peaks[n])), share)
        chosen = min(max(int(-minus_fitting), 1), most, share)
        if device.type == "cuda":  # its memory is a hard limit, and fragments
            while chosen > 1 and ranks.largest([self._peak_mb(learner, chosen)])[0] == float("inf"):
                chosen //= 2
        return MemoryUse(base, per_sample, chosen)

    def peak_mb(self, micro_batch: int) -> float:
        """Measure the memory in MB that a worker with a micro-batch needs at its peak, the most of all ranks.

        Raises:
            UserError: on all ranks alike, if the micro-batch does not fit on one of them.
        """
        device = self._ranks.device
        own = self._peak_mb(self._learner_alone(), micro_batch)
        memory.release(device)
        found = self._ranks.gather((own, memory.describe(device)))
        if lacking := [name for peak, name in found if peak == float("inf")]:
            raise UserError(memory.describe_lack(self._config, lacking[0], micro_batch))
        return max(peak for peak, _ in found)

    def step_seconds(self, micro_batch: int, count: int, compiled: bool = False) -> float:
        """Measure the mean seconds of a step of `count` micro-batches; at most two of them are computed and scaled."""
        learner = Learner(self._config, _STEPS, self._ranks, self._precision, compiled)
        batches = [self._samples(micro_batch)] * min(count, 2)
        scale = count / len(batches)
        seconds = scale * self._time_steps(learner, batches, _STEPS - 6)  # with all terms
        starts = sorted({start for start in self._config.train.term_starts().values() if start})
        if starts:  # between the first and the last start, some terms take part: the time is taken to be that of all
            seconds = starts[0] * scale * self._time_steps(learner, batches, 0) + (1 - starts[0]) * seconds
        del learner
        memory.release(self._ranks.device)
        return seconds

    def _time_steps(self, learner: Learner, batches: list[Batch], first: int) -> float:
        """Mean seconds of a step on the slowest rank, from step number `first` on."""
        for step in range(first, first + 3):  # these compile, and record graphs
            learner.step(step, batches, len(batches))
        learner.take_skipped(wait=True)
        start = time.perf_counter()
        for step in range(first + 3, first + 6):
            learner.step(step, batches, len(batches))
            learner.take_skipped()
        learner.take_skipped(wait=True)
        (slowest,) = self._ranks.largest([(time.perf_counter() - start) / 3])
        return slowest

    def why_not_compiled(self, micro_batch: int, count: int) -> str:
        """Try compiled steps, and return in one line why they do not work on some rank; "" if they do."""
        problem = "" if has_compiler(self._ranks.device) else "there is no compiler that it needs"
        batches = [self._samples(micro_batch)] * min(count, 2)
        try:
            if not problem:
                learner = self._learner_alone(compiled=True)
                for step in range(_STEPS - 3, _STEPS):  # a CUDA graph is recorded in the second step
                    learner.step(step, batches, len(batches))
                learner.take_skipped(wait=True)
                del learner
        except Exception as error:  # compilers fail in many ways
            problem = one_line(error, 200) or type(error).__name__
        memory.release(self._ranks.device)
        return next(filter(None, self._ranks.gather(problem)), "")

    def _peak_mb(self, learner: Learner, size: int) -> float:
        """Peak memory of steps with a micro-batch of so many samples; infinite if it does not fit."""
        memory.reset_peak(self._ranks.device)
        try:
            for step in (_STEPS - 2, _STEPS - 1):  # with all terms; the first one also makes the optimizer's state
                learner.step(step, [self._samples(size)])
            learner.take_skipped(wait=True)
        except RuntimeError as error:
            if memory.is_lack(error):
                return float("inf")
            raise
        return memory.peak_mb(self._ranks.device)

    def _learner_alone(self, compiled: bool = False) -> Learner:
        """A learner that does not talk to the other ranks, which could wait for ever for one that failed."""
        alone = Ranks(self._ranks.device, per_node=self._ranks.per_node)
        graphs = self._ranks.world_size == 1
        heaviest = METHODS[self._config.train.method].heaviest(self._config)
        return Learner(heaviest, _STEPS, alone, self._precision, compiled, graphs)

    def _samples(self, count: int) -> Batch:
        side = self._config.data.crop // self._config.scale
        rng = np.random.default_rng(0)
        lr, hr = (rng.integers(0, 256, (count, s, s, 3), np.uint8) for s in (side, side * self._config.scale))
        return Batch(torch.from_numpy(lr), torch.from_numpy(hr), torch.zeros(count, dtype=torch.int64))
