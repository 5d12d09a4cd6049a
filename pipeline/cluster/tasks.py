"""Run a function on many tasks with Ray Data."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import ray.data
import ray.exceptions
from ray import cloudpickle
from ray.data import ActorPoolStrategy

from pipeline import storage, terminal
from pipeline.cluster.resources import Capacity, gpu_type, share_of_gpu
from pipeline.settings import Config, UserError
from pipeline.storage import one_line

T = TypeVar("T")
R = TypeVar("R")

_BLOCK_S = 1.0
"""Seconds of work in a block of tasks. Ray passes on the results of a block together, and repeats the block if its
process dies."""
_BLOCK_S_OF_CORE = 0.1
"""Seconds of work in a block for each core of the cluster, if that is more. A block takes about 10 ms of the driver, so
blocks take at most a tenth of the time of a long run, on any number of cores."""
_BLOCKS_OF_CORE = 4
"""Blocks for each core, if there are tasks enough, so that the cores finish together."""
_BLOCKS_WITHOUT_ESTIMATE = 1000
"""Most blocks of tasks whose time nobody knows, so that the driver takes no more than ten seconds for them."""
_MOST_IN_A_ROW = 32
"""Tasks that fail one after another, after which no more of them wait to be repeated: something else is wrong."""
_UNRESERVED = 2**28
"""Bytes of memory that a task may take without a reservation."""


@dataclass(frozen=True)
class TaskError(Generic[T]):
    """A task whose function raised an exception."""

    task: T
    reason: str
    """The exception in one line."""
    temporary: bool = False
    """True if the same task may succeed later: the storage failed, and neither a file nor a permission is missing."""


@dataclass(frozen=True)
class GpuPool:
    """Worker processes that each hold a part of a GPU."""

    processes: int
    """The most that fit on the cluster."""
    share: float
    """Part of a GPU that each of them reserves."""
    type: dict[str, float] = field(default_factory=dict)
    """Resources that each of them also reserves to run on a node with `cluster.accelerator_type`."""


def gpu_pool(config: Config, per_gpu: int) -> GpuPool | None:
    """Return the pool that the connected cluster has room for, or None if it has no GPUs that `cluster.gpu` allows.

    Args:
        config: holds the settings `cluster.gpu` and `cluster.accelerator_type`.
        per_gpu: number of processes that share a GPU; each also needs a core.
    """
    capacity = Capacity(config, per_gpu)
    processes = capacity.workers(1) if capacity.use_gpu else 0
    return GpuPool(processes, share_of_gpu(per_gpu), gpu_type(config)) if processes else None


def map_tasks(
    function: Callable[[T], R],
    tasks: Sequence[T],
    gpus: GpuPool | None = None,
    *,
    seconds: Callable[[T], float] | None = None,
    memory: Callable[[T], int] = lambda _: 0,
    pauses: Sequence[float] = (),
) -> Iterator[R | TaskError[T]]:
    """Run a function on every task with Ray Data, one core each.

    Tasks and results can be any objects that can be pickled. They travel as bytes, so Arrow infers no types from them.
    Consecutive tasks form blocks of a second of work, or more on more than ten cores; the results of a block come
    together.

    Args:
        function: runs in a worker process of the cluster. An exception ends its own task alone.
        tasks: one argument for each call.
        gpus: the processes with GPUs to run in, from `gpu_pool`. Each process keeps its GPU, and what the function
            caches, for all its tasks. None for processes without GPUs.
        seconds: estimates the time that a task takes. Without an estimate, each of up to 1,000 tasks is a block.
        memory: estimates the bytes of memory that a task takes. Tasks that take more than a core's share of a node's
            memory run last and, in processes without GPUs, no more of them at a time than fit into it.
        pauses: seconds to wait, after all other tasks, before the tasks run again whose error was temporary, or whose
            processes died more often than Ray repeats them; one attempt for each pause.

    Yields:
        The results as they become ready, in any order; a `TaskError` for a task whose function raised an exception.

    Raises:
        UserError: if Ray itself fails, such as when the system kills worker processes again and again.
    """
    left, rest = tasks, iter(pauses)
    while left:
        pause, done, in_a_row, reason = next(rest, None), set[int](), 0, ""
        try:
            for number, outcome in _run_once(function, left, gpus, seconds, memory):
                failed = outcome if isinstance(outcome, TaskError) else None
                in_a_row = in_a_row + 1 if failed else 0
                if failed and failed.temporary and pause is not None and in_a_row <= _MOST_IN_A_ROW:
                    reason = failed.reason
                    continue
                done.add(number)
                yield outcome
        except ray.exceptions.RayError as error:
            if pause is None:
                raise UserError(
                    f"Ray could not finish {len(left)} tasks: {one_line(error)}; expected worker processes that live: "
                    "free some memory and rerun the same command to resume"
                ) from error
            reason = one_line(error)
        left = [task for number, task in enumerate(left) if number not in done]
        if left and pause is None:
            raise UserError(f"Ray returned no result of {len(left)} tasks: rerun the same command to resume")
        if left and pause is not None:
            storage.report_once(f"{len(left)} of {len(tasks)} tasks failed and run again in {pause:g} s: {reason}")
            time.sleep(pause)


def _run_once(
    function: Callable[[T], R],
    tasks: Sequence[T],
    gpus: GpuPool | None,
    seconds: Callable[[T], float] | None,
    memory: Callable[[T], int],
) -> Iterator[tuple[int, R | TaskError[T]]]:
    """Run every task as `map_tasks` does, and yield its number with each outcome."""
    log = terminal.log_context()

    def run(row: dict[str, Any]) -> dict[str, Any]:
        terminal.print_json(log)
        result, reason, temporary = b"", "", False
        try:
            result = cloudpickle.dumps(function(cloudpickle.loads(row["task"])))
        except Exception as error:  # Ray would end all tasks because of one
            reason = describe_error(error)
            temporary = isinstance(error, OSError) and storage.is_temporary(error)
        return {"number": row["number"], "result": result, "reason": reason, "temporary": temporary}

    for numbers, needed in _by_memory([memory(task) for task in tasks]):
        rows = [{"number": number, "task": cloudpickle.dumps(tasks[number])} for number in numbers]
        blocks = _count_blocks(len(rows), sum(seconds(tasks[number]) for number in numbers) if seconds else None)
        dataset = ray.data.from_items(rows, override_num_blocks=blocks)
        if gpus:
            # Actors, because Ray would start a new process for each task that reserves a GPU.
            pool = ActorPoolStrategy(size=min(gpus.processes, len(rows)), max_tasks_in_flight_per_actor=1)
            reserved: dict[str, Any] = {"num_cpus": 1, "num_gpus": gpus.share, "resources": gpus.type}
            dataset = dataset.map(_Actor, fn_constructor_args=(run,), compute=pool, **reserved)
        else:
            dataset = dataset.map(run, num_cpus=1, **({"memory": needed} if needed else {}))
        for row in dataset.iter_rows():
            task, reason = tasks[row["number"]], row["reason"]
            yield (
                row["number"],
                TaskError(task, reason, row["temporary"]) if reason else cloudpickle.loads(row["result"]),
            )


def _by_memory(needs: Sequence[int]) -> Iterator[tuple[list[int], int | None]]:
    """Divide tasks into those that fit into memory on all cores at once, and the others.

    Yields:
        Numbers of tasks, and the bytes to reserve for each of them, at most those of the largest node.
    """
    share, largest = _UNRESERVED, 0
    if max(needs) > share:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        shares = [int(node.get("memory", 0) / node["CPU"]) for node in nodes if node.get("CPU")]
        share = max(share, min(shares, default=0))
        largest = max((int(node.get("memory", 0)) for node in nodes), default=0)
    small = [number for number, need in enumerate(needs) if need <= share]
    large = [number for number, need in enumerate(needs) if need > share]
    if small:
        yield small, None
    if large:
        yield large, min(max(needs[number] for number in large), largest) or None


def _count_blocks(tasks: int, seconds: float | None) -> int:
    """Return the number of blocks for tasks that take so many seconds together; None if nobody knows."""
    cores = int(ray.cluster_resources().get("CPU", 1))
    block_s = max(_BLOCK_S, _BLOCK_S_OF_CORE * cores)
    wanted = _BLOCKS_WITHOUT_ESTIMATE if seconds is None else math.ceil(seconds / block_s)
    return min(tasks, max(wanted, _BLOCKS_OF_CORE * cores))


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
