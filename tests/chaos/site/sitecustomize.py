"""Make steps, shards and images slow, so that faults hit them, in processes that have this folder on their PYTHONPATH.

Each training worker also writes the number of steps that it has finished to a file of its own in the folder
$SR_CHAOS_STEPS. So the chaos run knows how far a training had come, which the training's own files do not tell.

If $SR_CHAOS_CLOCK names a file, the wall clock of Python is ahead of the true one by the seconds in it.
"""

import functools
import importlib.machinery
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any


class _Finder:
    """Changes modules when they are imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        change = _CHANGES.pop(name, None)
        spec = importlib.util.find_spec(name) if change else None
        if change is None or spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_change(module: ModuleType) -> None:
            execute(module)
            change(module)

        spec.loader.exec_module = execute_and_change  # type: ignore[method-assign]
        return spec


_PLANNING = 100_000
"""Steps of higher numbers only measure how long a step takes."""


def _change_learner(module: Any) -> None:
    real = module.Learner.step

    @functools.wraps(real)
    def step(self: Any, number: int, *arguments: Any, **named: Any) -> Any:
        result = real(self, number, *arguments, **named)
        if number < _PLANNING:
            Path(os.environ["SR_CHAOS_STEPS"], str(os.getpid())).write_text(str(number + 1))
        time.sleep(0.03)
        return result

    module.Learner.step = step


def _slow_down(function: str) -> Callable[[Any], None]:
    def change(module: Any) -> None:
        real = getattr(module, function)

        @functools.wraps(real)
        def slow(*arguments: Any, **named: Any) -> Any:
            time.sleep(0.5)
            return real(*arguments, **named)

        setattr(module, function, slow)

    return change


def _move_clock(file: Path) -> None:
    """Move `time.time` and `time.time_ns`. Ray's C++ code keeps the true time, on which its waits depend."""
    real = time.time_ns

    def time_ns() -> int:
        return real() + int(file.read_text() or 0) * 10**9

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 1e9


_CHANGES = {
    "pipeline.training.learner": _change_learner,
    "pipeline.data.shards": _slow_down("make_shard"),
    "pipeline.upscaling.files": _slow_down("upscale_file"),
}

if "SR_CHAOS_STEPS" in os.environ:
    sys.meta_path.insert(0, _Finder())
    if len(sys.orig_argv) > 1 and sys.orig_argv[1].endswith("ray/_private/workers/setup_worker.py"):
        from forking import wait_for_fork  # type: ignore[import-not-found]

        wait_for_fork()

if "SR_CHAOS_CLOCK" in os.environ:
    _move_clock(Path(os.environ["SR_CHAOS_CLOCK"]))
