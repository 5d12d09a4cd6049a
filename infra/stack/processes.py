"""Servers as processes: each in a group of its own, found again by later commands, and ended with all its children."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

START_TIMEOUT_S = 120
"""Seconds in which a server must answer after its start."""

_MARK = "SR_STACK_SERVER"
"""Environment variable by which all processes of a server are found, also those that left its group."""


class ServerError(RuntimeError):
    """A server cannot be started or stopped. The text is one sentence."""


class Server:
    """A server in a process group of its own.

    A file holds its process id, so that later commands find it.

    Args:
        folder: folder for the server's data, log and process id.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pid_file = folder / "process.json"

    def alive(self) -> bool:
        """Tell whether the server is running."""
        return self._find_process() is not None

    def process(self) -> psutil.Process:
        """Return the running server.

        Raises:
            ServerError: if it is not running.
        """
        process = self._find_process()
        if process is None:
            raise ServerError(f"{type(self).__name__} is not running")
        return process

    def processes(self) -> list[psutil.Process]:
        """Return all processes of the server that are running, with those that they started."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(_MARK) == str(self.folder):
                    # Some of Ray's processes overwrite their environment with a title.
                    found |= {member.pid: member for member in [process, *process.children(recursive=True)]}
        return [process for process in found.values() if _runs(process)]

    def stop(self) -> None:
        """Kill the server and all processes that it started, also those whose parents are gone."""
        process = self._find_process()
        if process:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(psutil.NoSuchProcess, ChildProcessError):
                process.wait(30)
        deadline = time.monotonic() + 30
        while found := self.processes():  # a process may start another one before it is killed
            for left in found:
                with suppress(psutil.NoSuchProcess):
                    left.kill()
            psutil.wait_procs(found, 5)
            if time.monotonic() > deadline:
                raise ServerError(f"process {found[0].pid} of {self.folder} does not end, expected it to after SIGKILL")

    def _find_process(self) -> psutil.Process | None:
        with suppress(OSError, ValueError, psutil.NoSuchProcess):
            note = json.loads(self._pid_file.read_text())
            process = psutil.Process(note["pid"])
            if process.create_time() == note["created"] and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def _start_process(self, argv: Sequence[str], environment: dict[str, str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                argv,
                env={**os.environ, **environment, _MARK: str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        created = psutil.Process(process.pid).create_time()
        self._pid_file.write_text(json.dumps({"pid": process.pid, "created": created}))

    def _wait_until(self, answers: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers():
            if not self.alive() or time.monotonic() > deadline:
                self.stop()
                raise ServerError(f"{type(self).__name__} does not answer; its log is {self.folder}/log")
            time.sleep(0.1)


def _runs(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Tell whether nothing listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) != 0


def _listener(port: int) -> psutil.Process | None:
    """Return the process that listens on a port, if this process may see it."""
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            address = tuple(connection.laddr)
            if connection.status == psutil.CONN_LISTEN and address[-1] == port and connection.pid:
                return psutil.Process(connection.pid)
    return None


def require_free(port: int, server: Server, host: str = "127.0.0.1") -> None:
    """Wait until a server's port is free, after the server was stopped.

    A process that the server was starting has no environment for an instant, and so may outlive `Server.stop`.

    Raises:
        ServerError: if something still listens on the port after five seconds.
    """
    deadline = time.monotonic() + 5
    while not is_free(port, host):
        if time.monotonic() > deadline:
            holder = _listener(port)
            by = f" by {' '.join(holder.cmdline())[:80]} (process {holder.pid})" if holder else ""
            raise ServerError(f"port {port} is in use{by}, expected a free port for {type(server).__name__}")
        time.sleep(0.2)
        server.stop()


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def lasting_port() -> int:
    """Return a port on which nothing listens, and which the system gives to no client, so that it stays free."""
    for _ in range(1000):
        port = random.SystemRandom().randrange(22_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise ServerError("found no free port from 22000 to 32000")
