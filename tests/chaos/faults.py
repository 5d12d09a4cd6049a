"""The faults: they end or stop processes of the stack, and disturb its network and clock."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from infra.stack import Stack
from infra.stack.processes import Server
from tests.chaos.ground import ChaosError, Skipped, check

_WORKERS = {
    "preprocess": "ray::Map",
    "train": "ray::RayTrainWorker",
    "grid": "ray::RayTrainWorker",
    "upscale": "ray::Map",
}
"""How the titles of the processes begin that do the work of a stage. Ray's own agents also have titles."""


def find_worker(stack: Stack, stage: str, rng: random.Random) -> psutil.Process:
    """Return one of the processes that do the work of a stage, on any node.

    Raises:
        ChaosError: if there is none within 30 seconds.
    """
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = []
        for process in stack.head.processes() + stack.second.processes():
            with suppress(psutil.Error):
                title = " ".join(process.cmdline())
                if title.startswith(_WORKERS[stage]):
                    found.append(process)
        if found:
            return rng.choice(sorted(found, key=lambda process: process.pid))
        time.sleep(0.02)
    raise ChaosError(f"no process works for {stage}")


def kill_part(server: Server, name: str) -> None:
    """Kill the processes of a node that have this name, such as raylet, and wait until the node has ended."""
    found = [process for process in server.processes() if _has_name(process, name)]
    check(found, f"{server.folder.name} runs no {name}")
    for process in found:
        process.kill()
    deadline = time.monotonic() + 60
    while server.alive():
        check(time.monotonic() < deadline, f"the node lives on without its {name}")
        time.sleep(0.05)


def kill_postgres(stack: Stack) -> None:
    """Kill PostgreSQL with all processes that it has."""
    process = stack.services.postgres.find_process()
    check(process, "PostgreSQL is not running")
    assert process is not None
    children = process.children()
    process.kill()
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs([process, *children], 10)


def pause(process: psutil.Process, seconds: float) -> None:
    """Stop a process with SIGSTOP, and let it continue after a while."""
    process.send_signal(signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)


@contextmanager
def cut_off(stack: Stack) -> Iterator[None]:
    """Pull the cable of the second node while the block runs.

    Raises:
        Skipped: if the second node has no network of its own.
    """
    cable = _need_cable(stack)
    inside = stack.namespace.run_inside(["ip", "link", "set", cable])
    subprocess.run([*inside, "down"], check=True)
    try:
        yield
    finally:
        subprocess.run([*inside, "up"], check=True)


@contextmanager
def slow_network(stack: Stack) -> Iterator[str]:
    """Slow the network between the nodes down while the block runs, and yield how.

    With the kernel's `netem`, packets are late and some are lost. Without it, only their rate is limited.

    Raises:
        Skipped: if the second node has no network of its own.
    """
    _need_cable(stack)
    root = ["tc", "qdisc", "add", "dev", stack.namespace.cable, "root"]
    late = ["netem", "delay", "20ms", "5ms", "loss", "0.5%", "rate", "20mbit"]
    limited = ["tbf", "rate", "2mbit", "burst", "32kbit", "latency", "400ms"]
    how = "20 ms later, 0.5 % of the packets lost, 20 Mbit/s"
    if subprocess.run([*root, *late], capture_output=True, check=False).returncode != 0:
        how = "2 Mbit/s"
        if subprocess.run([*root, *limited], capture_output=True, check=False).returncode != 0:
            raise Skipped("the kernel has neither netem nor tbf")
    try:
        yield how
    finally:
        subprocess.run(["tc", "qdisc", "del", "dev", stack.namespace.cable, "root"], check=False)


def _need_cable(stack: Stack) -> str:
    if not stack.namespace.exists():
        raise Skipped("only root may give the second node a network of its own")
    return stack.namespace.inner_cable


def _has_name(process: psutil.Process, name: str) -> bool:
    with suppress(psutil.Error):
        return process.name() == name
    return False
