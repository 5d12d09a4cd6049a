"""Run a function on many tasks with Ray Data."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import ray.data
import ray.exceptions
from ray import cloudpickle
from ray.data import ActorPoolStrategy

from pipeline.cluster.resources import Capacity, share_of_gpu
from pipeline.settings import Config, UserError
from pipeline.storage import one_line

T = TypeVar("T")
R = TypeVar("R")

_MOST_BLOCKS = 1000


@dataclass(frozen=True)
class TaskError(Generic[T]):
    """A task whose function raised an exception."""

    task: T
    reason: str
    """The exception in one line."""


@dataclass(frozen=True)
class GpuPool:
    """Worker processes that each hold a part of a GPU."""

    processes: int
    """The most that fit on the cluster."""
    share: float
    """Part of a GPU that each of them reserves."""


def gpu_pool(config: Config, per_gpu: int) -> GpuPool | None:
    """Return the pool that the connected cluster has room for, or None if it has no GPUs that `cluster.gpu` allows.

    Args:
        config: holds the setting `cluster.gpu`.
        per_gpu: number of processes that share a GPU; each also needs a core.
    """
    capacity = Capacity(config, per_gpu)
    processes = capacity.workers(1) if capacity.use_gpu else 0
    return GpuPool(processes, share_of_gpu(per_gpu)) if processes else None


def map_tasks(
    function: Callable[[T], R], tasks: Sequence[T], gpus: GpuPool | None = None
) -> Iterator[R | TaskError[T]]:
    """Run a function on every task with Ray Data, one core each.

    Tasks and results can be any objects that can be pickled. They travel as bytes, so Arrow infers no types from them.

    Args:
        function: runs in a worker process of the cluster. An exception ends its own task alone.
        tasks: one argument for each call.
        gpus: the processes with GPUs to run in, from `gpu_pool`. Each process keeps its GPU, and what the function
            caches, for all its tasks. None for processes without GPUs.

    Yields:
        The results as they become ready, in any order; a `TaskError` for a task whose function raised an exception.

    Raises:
        UserError: if Ray itself fails, such as when the system kills worker processes again and again.
    """

    def run(row: dict[str, Any]) -> dict[str, Any]:
        result, reason = b"", ""
        try:
            result = cloudpickle.dumps(function(cloudpickle.loads(row["task"])))
        except Exception as error:  # Ray would end all tasks because of one
            reason = describe_error(error)
        return {"number": row["number"], "result": result, "reason": reason}

    if not tasks:
        return
    rows = [{"number": number, "task": cloudpickle.dumps(task)} for number, task in enumerate(tasks)]
    dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MOST_BLOCKS))
    if gpus:
        # Actors, because Ray would start a new process for each task that reserves a GPU.
        pool = ActorPoolStrategy(size=min(gpus.processes, len(rows)), max_tasks_in_flight_per_actor=1)
        dataset = dataset.map(_Actor, fn_constructor_args=(run,), compute=pool, num_cpus=1, num_gpus=gpus.share)
    else:
        dataset = dataset.map(run, num_cpus=1)
    try:
        for row in dataset.iter_rows():
            yield TaskError(tasks[row["number"]], row["reason"]) if row["reason"] else cloudpickle.loads(row["result"])
    except ray.exceptions.RayError as error:
        raise UserError(
            f"Ray could not finish {len(tasks)} tasks: {one_line(error)}; expected worker processes that live: "
            "free some memory and rerun the same command to resume"
        ) from error


class _Actor:
    """Calls a function in a process that Ray starts for it."""

    def __init__(self, run: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self._run = run

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return self._run(row)


def describe_error(error: Exception) -> str:
    """Return one line for an exception and its notes.

    If the exception was not written for users, the line names its class and the place in the code.
    """
    text = "; ".join(one_line(part, 1000) for part in (str(error), *getattr(error, "__notes__", ())) if part)
    if text and isinstance(error, UserError | OSError):
        return text
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}{text and f': {text}'} ({Path(frame.filename).name}, line {frame.lineno})"
