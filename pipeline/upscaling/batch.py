"""Enlarge many images with Ray Data, one task each, and skip those that an earlier command has made."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from pipeline import terminal
from pipeline.data.left_out import count
from pipeline.data.locations import Location
from pipeline.data.rejection import RejectedImageError
from pipeline.settings import Cluster, Config, UserError
from pipeline.settings.places import ray_address
from pipeline.storage import fingerprint, printable
from pipeline.upscaling.journal import Journal
from pipeline.upscaling.options import Enlargement, Model
from pipeline.upscaling.plan import Plan

if TYPE_CHECKING:
    from pipeline.networks.upscalers import Upscaler

ALGORITHM = 1
"""Version of how images are enlarged; part of the identity of results."""

_PROCESSES_PER_GPU = 2
"""Worker processes that share a GPU: while one decodes or encodes files, the other one computes."""


@dataclass(frozen=True)
class Summary:
    """The numbers of images that a command has finished, skipped and failed to enlarge."""

    written: int
    skipped: int
    """Images whose results were there already."""
    failed: int


@dataclass(frozen=True)
class _Task:
    number: int
    image: Location
    target: str
    suffix: str
    model: Model
    model_identity: str
    """Tells apart models whose files have changed."""
    how: Enlargement


@dataclass(frozen=True)
class _Outcome:
    number: int
    size: str
    """Width and height in pixels, and the number of frames."""
    bytes: int
    megapixels: float
    notes: tuple[str, ...]
    fault: str | None
    """The reason why nothing was written; it completes a sentence that begins with the image's name."""
    model_fault: str | None = None
    """The reason why the model cannot be loaded, as a sentence."""


def upscale_all(plan: Plan, model: Model, how: Enlargement) -> Summary:
    """Enlarge the images of a plan: many with Ray Data, in worker processes that each load the model once.

    A result in a folder is skipped if the folder's journal says that it was made of the same image with the same model
    and options, and if the file has had its size since then. Among several images, one that cannot be enlarged is
    reported and skipped.

    Args:
        plan: the images and the files to write.
        model: the model.
        how: how the images are enlarged.

    Raises:
        UserError: if the only image cannot be enlarged, the model cannot be loaded, or Ray cannot be used.
        OSError: if the journal cannot be written.
    """
    jobs, identity = plan.jobs, model.identity() if plan.folder else ""  # a single file is always made
    journal = Journal(plan.folder) if plan.folder else None
    identities = [fingerprint([ALGORITHM, job.image.version, identity, how.identity()]) for job in jobs]
    tasks = [
        _Task(number, job.image.location, job.target, job.suffix, model, identity, how)
        for number, job in enumerate(jobs)
        if not (journal and journal.is_done(job.name, identities[number]))
    ]
    skipped = len(jobs) - len(tasks)
    if skipped:
        print(f"{skipped} of {count(len(jobs), 'image')} done by an earlier command", flush=True)
    failed = 0
    try:
        if journal:
            journal.begin((jobs[task.number].name, identities[task.number]) for task in tasks)
        for outcome in _outcomes(tasks):
            if outcome.model_fault:
                raise UserError(outcome.model_fault)
            job = jobs[outcome.number]
            for note in outcome.notes:
                print(f"{job.image.location} {note}", flush=True)
            if outcome.fault and len(jobs) == 1:
                raise UserError(f"{job.image.location} {outcome.fault}")
            if outcome.fault:
                failed += 1
                print(f"{job.image.location} {outcome.fault}; it is skipped", file=sys.stderr, flush=True)
            elif journal:
                journal.add(job.name, identities[outcome.number], outcome.bytes)
            if len(tasks) == 1 and not outcome.fault:
                print(f"{printable(job.target)}: {outcome.size}", flush=True)
    finally:
        if journal:
            journal.close()
    return Summary(len(tasks) - failed, skipped, failed)


def _outcomes(tasks: Sequence[_Task]) -> Iterator[_Outcome]:
    """Run tasks, a few of them in this process, and show how far they have come."""
    if len(tasks) < 2:
        yield from (_run(task, progress=True) for task in tasks)
        return
    results = map(_run, tasks) if _are_few(tasks) else _run_with_ray(tasks)
    failed, megapixels, started = 0, 0.0, time.monotonic()
    with terminal.stage("upscale", total=len(tasks), unit="images") as stage:
        for done, result in enumerate(results, start=1):
            yield result
            failed += result.fault is not None
            megapixels += result.megapixels
            rate = f"{stage.rate:.2f} images/s, " if stage.rate else ""
            speed = f"{megapixels / (time.monotonic() - started):.2f} MP/s"
            stage.update(done, details=f"{rate}{speed}" + (f", {failed} failed" if failed else ""))


def _are_few(tasks: Sequence[_Task]) -> bool:
    """Tell whether tasks are done sooner one by one, each on all cores, than on a core each after a start of Ray."""
    if ray_address(Config()) or 2 * len(tasks) > (os.cpu_count() or 1):
        return False
    import torch  # takes time to import

    with_gpu = tasks[0].model.device != "cpu" and torch.cuda.is_available()
    return not with_gpu and 2 * len(tasks) <= torch.get_num_threads()


def _run_with_ray(tasks: Sequence[_Task]) -> Iterator[_Outcome]:
    from pipeline import cluster  # which imports Ray

    device = tasks[0].model.device
    config = Config(cluster=Cluster(gpu=None if device is None else device == "cuda"))
    cluster.connect(config)
    for result in cluster.map_tasks(_run, tasks, cluster.gpu_pool(config, _PROCESSES_PER_GPU)):
        if isinstance(result, cluster.TaskError):
            result = _failure(result.task, f"cannot be upscaled: {result.reason}")
        cluster.metrics.count_images("upscale", 1, rejected=int(result.fault is not None))
        yield result


def _failure(task: _Task, fault: str) -> _Outcome:
    return _Outcome(task.number, "", 0, 0, (), printable(fault))


def _run(task: _Task, progress: bool = False) -> _Outcome:
    """Enlarge the image of a task."""
    gc.disable()  # importing torch makes many objects and no garbage; looking for some takes a sixth of the time
    from pipeline.upscaling.files import upscale_file

    gc.enable()
    try:
        upscaler = _load(task.model, task.model_identity)
    except Exception as error:
        fault = str(error) if isinstance(error, UserError) else f"the model cannot be loaded: {_reason(error)}"
        return replace(_failure(task, ""), model_fault=fault)
    try:
        written = upscale_file(upscaler, task.image, task.target, task.suffix, task.how, progress)
    except RejectedImageError as error:
        return _failure(task, str(error))
    except Exception as error:  # decoders, encoders and PyTorch raise many kinds of exceptions
        return _failure(task, f"cannot be upscaled: {_reason(error)}")
    size = f"{written.width}x{written.height}" + (f", {written.frames} frames" if written.frames > 1 else "")
    return _Outcome(task.number, size, written.bytes, written.megapixels, written.notes, None)


def _reason(error: Exception) -> str:
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return "there is not enough memory on the GPU, expected a smaller --tile, or --device cpu"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):  # PyTorch raises a RuntimeError
        return "there is not enough memory, expected a smaller --tile or a smaller image"
    from pipeline.cluster.tasks import describe_error  # which imports Ray

    return describe_error(error)


@lru_cache(maxsize=1)
def _load(model: Model, _identity: str) -> Upscaler:
    from pipeline.networks.loading import load_upscaler
    from pipeline.networks.upscalers import Consistent

    upscaler = load_upscaler(model.source, model.scale, model.device, model.precision, model.tile, model.sampling)
    return Consistent(upscaler) if model.consistent else upscaler
