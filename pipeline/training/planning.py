"""What is decided once before a training's first step, in part by measuring, and holds for every resumption."""

from __future__ import annotations

import importlib.util
import shutil
import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from pipeline.data.reader import Batch
from pipeline.data.sampler import SampleOrder
from pipeline.settings import Config
from pipeline.training import memory
from pipeline.training.learner import Learner
from pipeline.training.precision import use_bf16

MARGIN = 0.8
"""Share of the memory budget that `micro_batch: auto` plans for: training is measured, but not what else may come."""

COMPILED_FROM = 2000
"""Steps from which torch.compile pays: it takes about half a minute and saves about a tenth of a step."""

_PROBED = 16
"""Samples up to which memory is measured; beyond, it grows in proportion."""


@dataclass(frozen=True)
class Plan:
    """The decisions, and what was measured for them."""

    steps: int
    micro_batch: int
    bf16: bool
    compiled: bool
    step_s: float | None = None
    """Seconds of a step, validation not included, if that was measured."""
    memory_mb: float | None = None
    """MB of a worker at its peak, if that was measured."""


@dataclass(frozen=True)
class Rank:
    """One of the workers of a training."""

    device: torch.device
    rank: int = 0
    world: int = 1
    on_node: int = 1
    """Workers on the same node."""


def decide(
    config: Config,
    order: SampleOrder,
    me: Rank,
    validation_s: float = 0,
    measure: bool = False,
    workers: int | None = None,
) -> Plan:
    """Decide, all ranks together; nothing of what is computed here is kept.

    Args:
        config: the pipeline's configuration.
        order: the order of samples.
        me: this worker.
        validation_s: seconds of a validation, which a length in minutes includes.
        measure: whether to measure time and memory even where nothing depends on them.
        workers: number of workers that `me` stands for alone.
    """
    settings = config.train
    share = max(max(order.shares(step, settings.global_batch, workers or me.world)) for step in range(8))
    bf16 = use_bf16(settings.precision, me.device)
    amount, unit = settings.length.split()
    micro, peak = settings.micro_batch, None
    if micro == "auto" and share == 1:
        micro = 1
    if micro == "auto" or measure:
        found, base, slope = _fitting_batch(config, share, me, bf16)
        micro = found if micro == "auto" else micro
        peak = base + slope * min(micro, share)
    step_s = _step_seconds(config, min(micro, share), share, me, bf16) if measure or unit == "minutes" else None
    if unit == "minutes":
        assert step_s is not None
        steps = (60 * float(amount) - 2 * validation_s) / (step_s + validation_s / settings.validate_every)
    else:
        steps = float(amount) * (1 if unit == "steps" else order.epoch_length / settings.global_batch)
    planned = max(round(steps) if unit == "epochs" else int(steps), 1)
    compiled = settings.compile == "on" or (
        settings.compile == "auto" and planned >= COMPILED_FROM and compiler_at_hand(me.device)
    )
    return Plan(planned, micro, bf16, compiled, step_s, peak)


def compiler_at_hand(device: torch.device) -> bool:
    """Whether torch.compile finds what it needs on this device: a C++ compiler, or Triton."""
    if device.type == "cuda":
        return importlib.util.find_spec("triton") is not None
    return any(shutil.which(name) for name in ("c++", "g++", "clang++"))


def _fitting_batch(config: Config, share: int, me: Rank, bf16: bool) -> tuple[int, float, float]:
    """The largest micro-batch that fits the budget, and MB of a worker without samples and for each sample."""
    budget = config.train.memory_mb or memory.available_mb(me.device, me.on_node)
    learner = Learner(config, 1000, me.device, me.world, bf16)
    peaks: dict[int, float] = {}
    size = 1
    while size <= min(max(share, 2), _PROBED):
        memory.reset_peak(me.device)
        try:
            for step in (998, 999):  # with all terms; the first also makes the optimizer's state
                learner.step(step, [_samples(config, size)])
            peaks[size] = memory.peak_mb(me.device)
        except torch.OutOfMemoryError:
            peaks[size] = float("inf")
        peaks[size], too_much = _agree([peaks[size], float(peaks[size] > MARGIN * budget)], me)
        if too_much:
            break
        size *= 2
    sizes = [n for n in peaks if np.isfinite(peaks[n])]
    if len(sizes) < 2:
        return 1, peaks.get(1, 0.0), 0.0
    few, many = sizes[-2:]
    slope = max((peaks[many] - peaks[few]) / (many - few), 1e-3)
    base = peaks[many] - slope * many
    (unfit,) = _agree([-(MARGIN * budget - base) / slope], me)  # the smallest of all ranks
    return min(max(int(-unfit), 1), share), base, slope


def _step_seconds(config: Config, micro: int, share: int, me: Rank, bf16: bool) -> float:
    """Seconds of a step on average, measured on two of its micro-batches."""
    learner = Learner(config, 1000, me.device, me.world, bf16)
    count = -(-share // micro)
    batches = [_samples(config, micro)] * min(count, 2)

    def measured(first: int) -> float:
        times = []
        for step in range(first, first + 6):
            start = time.perf_counter()
            learner.step(step, batches, len(batches))
            if me.device.type == "cuda":
                torch.cuda.synchronize(me.device)
            times.append(time.perf_counter() - start)
        (slowest,) = _agree([statistics.median(times[2:])], me)
        return slowest * count / len(batches)

    with_all = measured(994)
    without = config.train.perceptual.start if "perceptual" in config.train.loss else 0.0
    return without * measured(0) + (1 - without) * with_all if without else with_all


def _samples(config: Config, count: int) -> Batch:
    side = config.data.crop // config.scale
    rng = np.random.default_rng(0)
    lr, hr = (rng.integers(0, 256, (count, s, s, 3), np.uint8) for s in (side, side * config.scale))
    return Batch(lr, hr, np.zeros(count, np.uint8))


def _agree(values: list[float], me: Rank) -> list[float]:
    """The largest of all ranks."""
    if me.world == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=me.device)
    dist.all_reduce(total, dist.ReduceOp.MAX)
    agreed: list[float] = total.tolist()
    return agreed
