"""Ray's head and a second node as processes."""

from __future__ import annotations

import os
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from infra.stack.files import write_private
from infra.stack.processes import Server, require_free
from pipeline import ALLOCATOR

_PATIENCE_S = 20
"""Seconds in which a running node must answer. A node that the head has given up may run on without an answer."""


@dataclass(frozen=True)
class Node:
    """Where a node of Ray is, and what it offers."""

    address: str
    """IP address of the node."""
    cpus: int
    """Number of cores that it offers."""
    ports: dict[str, int]
    """Port of each part, by the option of `ray start` without `-port`, such as {"metrics-export": 22001}."""
    sessions: Path
    """Folder for sockets, logs and objects; a short path, because Linux limits that of a socket to 107 bytes."""
    options: list[str] = field(default_factory=list)
    """Further options of `ray start`."""


class RayNode(Server):
    """A node of Ray whose processes all end when one of them does.

    Args:
        folder: folder for the log of the start and the process id.
        node: the node.
        token: file with the token of the cluster.
        environment: further environment variables of all processes, also of the jobs on the node.
        wrap: makes the command line that runs another one, such as in a network namespace.
    """

    def __init__(
        self,
        folder: Path,
        node: Node,
        token: Path,
        environment: dict[str, str],
        wrap: Callable[[list[str]], list[str]] = list,
    ) -> None:
        super().__init__(folder)
        self.node, self._token, self._wrap = node, token, wrap
        self._environment = {
            **ALLOCATOR,
            **environment,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TRAIN_METRICS_ENABLED": "1",  # the default on a cluster
        }

    def launch(self) -> bool:
        """Start the node if it is not running or does not answer, and return whether it had to be started."""
        deadline = time.monotonic() + _PATIENCE_S
        while self.alive() and time.monotonic() < deadline:
            if self._answers():
                return False
            time.sleep(0.5)
        super().stop()  # also what a killed node has left
        for port in self.node.ports.values():
            require_free(port, self, self.node.address)
        ray, node = Path(sysconfig.get_path("scripts"), "ray"), self.node
        argv = [str(ray), "start", "--block", "--disable-usage-stats", f"--node-ip-address={node.address}"]
        argv += [f"--num-cpus={node.cpus}", f"--temp-dir={node.sessions}", f"--object-store-memory={256 * 2**20}"]
        # Workers take any free port, so that nodes of several clusters share a machine.
        argv += ["--min-worker-port=0", "--max-worker-port=0"]
        argv += [f"--{name}-port={port}" for name, port in node.ports.items()] + node.options
        refused = {"RAY_AUTH_TOKEN": ""} if "RAY_AUTH_TOKEN" in os.environ else {}  # it would win over the file
        self._start_process(self._wrap(argv), self._environment | refused)
        return True

    def processes(self) -> list[psutil.Process]:
        """All processes of the node that run, also those that overwrote their environment and lost their parents.

        Ray's dashboard agent is one of them. It may outlive a raylet that was killed, and keeps its ports.
        """
        found = {process.pid: process for process in super().processes()}
        logs = f"{self.node.sessions.resolve()}/"
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                title = "".join(process.cmdline()[:1])
                if title.startswith("ray::") and any(file.path.startswith(logs) for file in process.open_files()):
                    found[process.pid] = process
        return list(found.values())

    def wait(self) -> None:
        """Wait until the node answers, and on the head also until jobs can be submitted.

        Raises:
            ServerError: if it does not answer in time, or ends.
        """
        self._wait_until(self._answers)

    def _answers(self) -> bool:
        request = urllib.request.Request(
            f"http://{self.node.address}:{self.node.ports['dashboard-agent-listen']}/api/healthz",
            headers={"Authorization": f"Bearer {self._token.read_text()}"},
        )
        with suppress(urllib.error.URLError, OSError):
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5).close()
            return True
        return False


def write_token(file: Path, token: str) -> Path:
    """Write the token of a cluster where only its owner can read it, if it is not there, and return the file."""
    if not file.exists() or file.read_text() != token:
        write_private(file, token)
    return file
