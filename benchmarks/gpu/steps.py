"""Time of a step: a plain loop against the pipeline's learner, and where the time goes.

The plain loop is an ordinary script: the network as the paper draws it, Adam, samples on the device from the start. The
learner also copies its samples to the device, flips and turns them, clips gradients, skips steps that are not finite
and averages weights.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.job import HALVES, Job, as_drawn
from benchmarks.measuring import medians, synchronise, time_in_turns
from benchmarks.train_step import plain_step
from pipeline.networks.devices import tf32
from pipeline.training.precision import Precision


@dataclass(frozen=True)
class Variant:
    """A way of making steps."""

    precision: Precision
    plain: bool = False
    """The plain loop instead of the learner."""
    contiguous: bool = False
    """The channels of a pixel are not side by side."""
    compiled: bool = False
    """torch.compile as the learner uses it: with CUDA graphs on a single GPU."""
    without_graphs: bool = False
    """torch.compile without CUDA graphs."""

    def __str__(self) -> str:
        """Name of the variant in results."""
        words = ["plain loop" if self.plain else "learner", self.precision]
        words += ["contiguous"] if self.contiguous else []
        words += ["compiled without graphs" if self.without_graphs else "compiled"] if self.compiled else []
        return ", ".join(words)


def variants(halves: Sequence[Precision], main: bool, batch_norm: bool) -> list[Variant]:
    """Return the variants that are timed.

    Args:
        halves: the precisions of 16 bits that the device has, the default first.
        main: whether the batch is the one that is measured in more ways. Only there, the network with BatchNorm and the
            second precision are compiled, because that takes half a minute each time.
        batch_norm: whether the network has BatchNorm.
    """
    chosen = [Variant("fp32", plain=True)]
    chosen += [Variant("tf32", plain=True)] if "bf16" in halves else []
    chosen += [Variant(half) for half in halves]
    if not batch_norm:
        chosen.append(Variant(halves[0], contiguous=True))
    if main or not batch_norm:
        chosen.append(Variant(halves[0], compiled=True))
    if main and not batch_norm:
        chosen.append(Variant(halves[0], compiled=True, without_graphs=True))
        chosen += [Variant(half, compiled=True) for half in halves[1:]]
    return chosen


def step(batch: int, batch_norm: bool, variant: Variant) -> str:
    """Name of a measurement."""
    return f"batch {batch}{' with BatchNorm' if batch_norm else ''}, {variant}"


def measure(job: Job, batches: Sequence[int], batch_norm: bool, compiles: bool = True) -> None:
    """Time the steps of some batches.

    Args:
        job: the work of this section.
        batches: patches of a step.
        batch_norm: whether the network has BatchNorm.
        compiles: whether to measure compiled variants, too.
    """
    halves = [p for p in HALVES if p in job.precisions]
    for batch in batches:
        wanted = variants(halves, batch == job.size.main_batch, batch_norm)
        eager, compiled = ([v for v in wanted if v.compiled is how] for how in (False, True))
        for group in (eager, compiled if compiles else []):  # compiling may take longer than there is time
            actions: dict[Variant, Callable[[], None]] = {}
            for variant in group:
                with job.recorder.attempt(step(batch, batch_norm, variant), "ms per step"):
                    actions[variant] = _prepare(job, batch, batch_norm, variant)
            _time(job, batch, batch_norm, actions)


def _prepare(job: Job, batch: int, batch_norm: bool, variant: Variant) -> Callable[[], None]:
    """Return a function that makes one step, after having made three, which compile and warm up."""
    samples = job.batch(batch)
    if variant.plain:
        plain = plain_step(as_drawn(job, batch_norm), samples)

        def action() -> None:
            with tf32(variant.precision == "tf32"):
                plain()

    else:
        options = [f"model.batch_norm={batch_norm}", f"train.channels_last={not variant.contiguous}"]
        with _without_graphs() if variant.without_graphs else nullcontext():
            learner = job.learner(variant.precision, batch, *options, compiled=variant.compiled)

        def action() -> None:
            learner.step(0, [samples])
            learner.take_skipped()

    for _ in range(3):
        action()
    synchronise(job.device)
    return action


@contextmanager
def _without_graphs() -> Iterator[None]:
    """Compile without the mode that records CUDA graphs."""
    compile_module = nn.Module.compile

    def compile_in_default_mode(self: nn.Module, mode: str | None = None, **arguments: Any) -> None:
        compile_module(self, **arguments)

    nn.Module.compile = compile_in_default_mode  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.compile = compile_module  # type: ignore[method-assign]


def _time(job: Job, batch: int, batch_norm: bool, actions: Mapping[Variant, Callable[[], None]]) -> None:
    size, record = job.size, job.recorder.add
    turns = {str(variant): partial(_repeat, action, size.steps) for variant, action in actions.items()}
    seconds = medians(time_in_turns(turns, size.rounds, device=job.device))
    for variant, action in actions.items():
        name, each = step(batch, batch_norm, variant), seconds[str(variant)] / size.steps
        record(name, 1000 * each, "ms per step", note=f"{batch / each:,.0f} patches/s")
        if batch != size.main_batch or variant.contiguous:
            continue
        record(f"{name}: launching it", 1000 * _launching_seconds(action, size.rounds, job.device), "ms per step")
        with job.recorder.attempt(f"{name}: profile"):
            kernels, busy = _profile(action, size.steps, job.device)
            record(f"{name}: kernels", kernels, "per step" if job.device.type == "cuda" else "operations per step")
            record(f"{name}: device busy", busy / each, "share of the step", better="higher")


def _repeat(action: Callable[[], None], times: int) -> None:
    for _ in range(times):
        action()


def _launching_seconds(action: Callable[[], None], rounds: int, device: torch.device) -> float:
    """Seconds in which the process launches a step while the device has nothing else to do."""
    times = []
    for _ in range(rounds):
        synchronise(device)
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    synchronise(device)
    return statistics.median(times)


def _profile(action: Callable[[], None], steps: int, device: torch.device) -> tuple[float, float]:
    """Return the kernels of a step, and the seconds for which the device computes or copies."""
    on_gpu = device.type == "cuda"
    kinds = {"kernel", "gpu_memcpy", "gpu_memset"} if on_gpu else {"cpu_op"}
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        _repeat(action, steps)
        synchronise(device)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(file))
        events = [event for event in json.loads(file.read_text())["traceEvents"] if event.get("cat") in kinds]
    busy, until = 0.0, 0.0
    for start, length in sorted((event["ts"], event["dur"]) for event in events):
        busy += max(start + length - max(start, until), 0.0)  # kernels of a graph may run side by side
        until = max(until, start + length)
    return len(events) / steps, busy / steps / 1e6
