"""Run a function on many tasks with Ray Data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray.data
from ray import cloudpickle

T = TypeVar("T")
R = TypeVar("R")

_MOST_BLOCKS = 1000


def map_tasks(function: Callable[[T], R], tasks: Sequence[T]) -> Iterator[R]:
    """Run a function on every task with Ray Data, one core each.

    Tasks and results can be any objects that can be pickled. They travel as bytes, so Arrow infers no types from them.

    Args:
        function: runs in a worker process of the cluster.
        tasks: one argument for each call.

    Yields:
        The results as they become ready, in any order.
    """

    def run(row: dict[str, Any]) -> dict[str, Any]:
        return {"result": cloudpickle.dumps(function(cloudpickle.loads(row["task"])))}

    if not tasks:
        return
    rows = [{"task": cloudpickle.dumps(task)} for task in tasks]
    dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MOST_BLOCKS)).map(run, num_cpus=1)
    for row in dataset.iter_rows():
        yield cloudpickle.loads(row["result"])
