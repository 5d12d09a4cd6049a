"""The reader alone, and the whole step that it feeds, in patches per second; and a validation on the same patch set."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

import torch

from benchmarks.gpu.job import Job
from benchmarks.gpu.patches import make_patch_set
from benchmarks.measuring import medians, synchronise
from pipeline.data.patchset import PatchSet
from pipeline.data.reader import BatchReader
from pipeline.settings import Config
from pipeline.tracking import Journal
from pipeline.training.learner import Learner
from pipeline.training.validation import Validator, stop_watching
from pipeline.training.worker import Worker

HOLDS = ("map", "device")
"""Values of the setting `data.hold` that are compared: files mapped into memory, and tiles resident on the device."""
EXPECTED = {"map": 24_700.0, "device": 100_000.0}
"""Patches per second. The first was measured on one core of a CPU. For the second, gathering a batch was assumed to
take 0.6 ms."""
_TARGET = 15_000
"""Patches per second of the whole step on an H100."""
EQUAL = "parts of batches that differ between data.hold=map and device"
VALIDATION = "a validation"
_FIRST = 4
"""Steps that are read before the clock starts, while the first windows are loaded."""


def reading(hold: str) -> str:
    """Name of the reader's measurement."""
    return f"reader alone, data.hold={hold}"


def fed(hold: str) -> str:
    """Name of the whole step's measurement."""
    return f"whole step fed by the reader, data.hold={hold}"


def measure(job: Job, compiles: bool = True) -> None:
    """Read and train in turns; `compiles` says whether to compile the learner, as long trainings do."""
    batch = job.size.main_batch
    options = [*job.training_options(), f"train.global_batch={batch}", f"train.micro_batch={batch}"]
    patch_set = make_patch_set(job.config(*options))
    readers: dict[str, BatchReader] = {}
    for hold in HOLDS:
        with job.recorder.attempt(reading(hold), "patches/s"):
            config = job.config(*options, f"data.hold={hold}")
            readers[hold] = Worker(config, patch_set, f"{job.work}/unused", job.ranks).make_reader(batch)
    with job.recorder.attempt(EQUAL):
        _compare(job, *(readers[hold] for hold in HOLDS))
    _time(job, {reading(hold): partial(_read, job, reader) for hold, reader in readers.items()})
    learner = job.learner(job.half, batch, compiled=compiles)
    for number in range(3):  # compiles
        learner.step(number, [job.batch(batch)])
    fed_by = {fed(hold): partial(_step, job, learner, reader) for hold, reader in readers.items()}
    _time(job, {"whole step on samples in memory": partial(_step, job, learner, None), **fed_by})
    with job.recorder.attempt(VALIDATION, "s per megapixel"):
        _time_validation(job, job.config(*options), patch_set, learner)


def _time(job: Job, ways: Mapping[str, Callable[[int], float]]) -> None:
    """Time turns that take the number of their first step and return their seconds."""
    size = job.size
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(size.rounds):
        for name, way in ways.items():
            times[name].append(way(turn * size.read_steps))
    for name, seconds in medians(times).items():
        target = _TARGET if name == fed("device") and job.device.type == "cuda" else None
        rate = size.read_steps * size.main_batch / seconds
        job.recorder.add(name, rate, "patches/s", target, "higher")


def _compare(job: Job, mapped: BatchReader, held: BatchReader) -> None:
    """Compare the batches of two readers bit for bit."""
    pairs = zip(mapped.read(0, _FIRST), held.read(0, _FIRST), strict=True)
    equal = [torch.equal(a.cpu(), b.cpu()) for pair in pairs for a, b in zip(*pair, strict=True)]
    job.recorder.add(EQUAL, equal.count(False), f"of {len(equal)}", 0)


def _time_validation(job: Job, config: Config, patch_set: PatchSet, learner: Learner) -> None:
    """Score all held-out images, after a first time that is not counted."""
    images = [patch_set.read_holdout(number).hr for number in range(patch_set.held_out)]
    megapixels = sum(image.shape[0] * image.shape[1] for image in images) / 1e6
    validator = Validator(config, patch_set, {}, job.ranks, Journal(f"{job.work}/unused/journal"))
    began = 0.0
    for _ in range(2):
        began = time.perf_counter()
        validator.validate(learner.ema)
    seconds = time.perf_counter() - began
    stop_watching()
    note = f"{seconds:.3g} s for {len(images)} images of {megapixels:.3g} megapixels together"
    job.recorder.add(VALIDATION, seconds / megapixels, "s per megapixel", note=note)


def _read(job: Job, reader: BatchReader, start: int) -> float:
    """Seconds to read the batches of a turn."""
    batches = reader.read(start, start + _FIRST + job.size.read_steps)
    for _ in range(_FIRST):
        next(batches)
    synchronise(job.device)
    began = time.perf_counter()
    for _ in batches:
        pass
    synchronise(job.device)
    return time.perf_counter() - began


def _step(job: Job, learner: Learner, reader: BatchReader | None, start: int) -> float:
    """Seconds of the steps of a turn; their samples are in memory if there is no reader."""
    steps = _FIRST + job.size.read_steps
    samples = [job.batch(job.size.main_batch)] * steps
    batches = reader.read(start, start + steps) if reader else iter(samples)
    began = 0.0
    for number in range(steps):
        if number == _FIRST:
            synchronise(job.device)
            began = time.perf_counter()
        learner.step(start + number, batches)
        learner.take_skipped()
    synchronise(job.device)
    seconds = time.perf_counter() - began
    for _ in batches:  # ends the reader's thread
        pass
    return seconds
