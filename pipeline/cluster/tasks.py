"""Ray Data tasks over rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ray.data


def map_rows(rows: list[dict[str, Any]], task: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Run a task on every row with Ray Data, one core each, and yield the results as they come, in any order."""
    if not rows:
        return
    blocks = min(len(rows), 1000)
    dataset = ray.data.from_items(rows, override_num_blocks=blocks).map(task, num_cpus=1)
    yield from dataset.iter_rows()
