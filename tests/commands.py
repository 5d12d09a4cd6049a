"""Run commands and ranks in processes of their own, without importing libraries each time.

The processes are forked from one that has imported what takes seconds. tests/pipeline/test_start.py covers what a
command imports itself, and when.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.multiprocessing.spawn import start_processes

_ROOT = Path(__file__).resolve().parent.parent

_FORKING = multiprocessing.get_context("forkserver")
# `pipeline` is first, because it sets the environment that Ray and MLflow read when they are imported.
_FORKING.set_forkserver_preload(
    [
        "pipeline", "torch", "torch._dynamo", "ray.data", "ray.train.torch", "ray.tune", "ray.dashboard.optional_deps",
        "mlflow", "mlflow.store.tracking.sqlalchemy_store", "matplotlib.pyplot", "skimage", "scipy",
        "pipeline.grid.experiment", "pipeline.workflow",
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str

    def __str__(self) -> str:
        return f"exit code {self.code}\n{self.stdout}\n{self.stderr}"


def run_ranks(rank: Callable[..., None], arguments: tuple[Any, ...] = (), count: int = 1) -> None:
    """Call a function in `count` processes at once, with the number of the process and the arguments.

    Raises:
        Exception: the exception of the first process that fails.
    """
    start_processes(rank, arguments, count, start_method=_FORKING.get_start_method())


class Running:
    """A command that is running or has ended, with the methods of `subprocess.Popen` for its process."""

    def __init__(self, name: str, argv: tuple[str, ...], out: Path, err: Path, environment: Mapping[str, str]) -> None:
        self._name = name
        self._process = _FORKING.Process(target=_main, args=(name, argv, str(out), str(err), dict(environment)))
        self._process.start()

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit code, or None if the command is running."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and return the exit code.

        Raises:
            TimeoutExpired: if the command runs for `timeout` seconds more.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._name, timeout or 0)
        return self._process.exitcode

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()


def start(name: str, argv: tuple[str, ...], log: Path, environment: Mapping[str, str]) -> Running:
    """Start `python -m pipeline.NAME` in the checkout, in a session of its own; all that it prints goes to a file."""
    return Running(name, argv, log, log, environment)


def run(name: str, *argv: str) -> Done:
    """Run `python -m pipeline.NAME` with arguments in the checkout, and wait for its end."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        code = Running(name, argv, out, err, os.environ).wait()
        return Done(code, out.read_text(), err.read_text())


def _main(name: str, argv: tuple[str, ...], out: str, err: str, environment: dict[str, str]) -> None:
    """Become the command, in the forked process."""
    if out == err:
        os.setsid()
    for stream, file in ((sys.stdout, out), (sys.stderr, err)):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(_ROOT)
    sys.argv = [f"pipeline.{name}", *argv]
    try:
        runpy.run_module(f"pipeline.{name}", run_name="__main__", alter_sys=True)
        code: int | str | None = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    # As when Python ends, what the exception held is gone by now. multiprocessing calls no functions at exit.
    atexit._run_exitfuncs()
    sys.exit(code)
