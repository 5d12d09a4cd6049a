"""Peak memory against the global batch: the learner with one micro-batch, and a plain loop with the whole batch."""

from __future__ import annotations

import gc

import torch

from benchmarks.gpu.job import MICRO_BATCH, Job, as_drawn
from benchmarks.measuring import synchronise
from benchmarks.train_step import plain_step
from pipeline.training import memory

FLAT = "peak at the largest global batch / at the smallest"


def plain(batch: int) -> str:
    """Name of a plain loop's measurement."""
    return f"plain loop in fp32, batch {batch}"


def measure(job: Job) -> None:
    """Measure one step of every batch."""
    peaks = []
    for batch in job.size.memory_batches:
        name = f"learner, global batch {batch}, micro-batches of {MICRO_BATCH}"
        with job.recorder.attempt(name, "MB"):
            peaks.append(_learner_peak(job, batch))
            job.recorder.add(name, peaks[-1], "MB")
    job.recorder.add(FLAT, peaks[-1] / peaks[0], "", 1.05)
    for batch in job.size.plain_batches:
        try:
            job.recorder.add(plain(batch), _plain_peak(job, batch), "MB")
        except torch.OutOfMemoryError:
            job.recorder.add(plain(batch), None, "MB", note="it does not fit")


def _learner_peak(job: Job, batch: int) -> float:
    _forget(job.device)
    learner = job.learner(job.half, batch, "model.batch_norm=true")
    samples, count = job.batch(MICRO_BATCH), batch // MICRO_BATCH
    for step, micro_batches in enumerate((1, count)):  # the first step also makes the state of the optimizer
        learner.step(step, [samples] * micro_batches, micro_batches)
    synchronise(job.device)
    return memory.peak_mb(job.device)


def _plain_peak(job: Job, batch: int) -> float:
    _forget(job.device)
    step = plain_step(as_drawn(job, batch_norm=True), job.batch(batch))
    step()
    synchronise(job.device)
    return memory.peak_mb(job.device)


def _forget(device: torch.device) -> None:
    """Free what earlier measurements left, and start a new peak."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    memory.reset_peak(device)
