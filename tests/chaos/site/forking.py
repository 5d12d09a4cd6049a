"""Fork Ray's workers from processes that have imported what takes seconds.

A process that Ray starts for a worker only asks for a fork, and ends as the fork ends. Each node has a process with the
libraries apart from Ray, and a fork of it for each job that has also imported Ray, which reads the job from its
environment then.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import random
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

_LIBRARIES = [
    "torch", "torch._dynamo", "pandas", "pyarrow.parquet", "pyarrow.fs", "s3fs", "PIL.Image", "safetensors.torch",
    "google.protobuf", "sr_model",
]  # fmt: skip
_WITH_RAY = [
    "pipeline", "ray.data", "ray.train.torch", "ray.tune", "pipeline.training.worker", "pipeline.upscaling.files",
]  # fmt: skip
_IDLE_S = 20
"""Seconds after which the process of a job ends that has no workers left."""


def wait_for_fork() -> NoReturn:
    """Have a fork do what this process was started for, and end as the fork ends."""
    order = {"argv": sys.orig_argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}
    with _connect(_job_address(), lambda: _ask_for_job_server(order)) as connection:
        socket.send_fds(connection, [json.dumps(order).encode()], [0, 1, 2])
        os._exit(int(connection.recv(16) or b"1"))


def _ask_for_job_server(order: dict[str, Any]) -> None:
    with _connect(_node_address(), _start_node_server) as connection:
        connection.send(json.dumps({**order, "argv": []}).encode())


def _start_node_server() -> None:
    subprocess.Popen([sys.executable, __file__], stdin=subprocess.DEVNULL, start_new_session=True)


def _connect(address: str, start: Callable[[], None]) -> socket.socket:
    """Connect to a server, after starting it if there is none."""
    started = False
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.connect(address)
            return connection
        except ConnectionRefusedError:
            connection.close()
        if not started:
            start()
            started = True
        time.sleep(0.05)


def _node_address() -> str:
    """Return the name of a socket that ends with its process and that only this network namespace sees."""
    return f"\0sr-chaos-{os.environ['RAY_RAYLET_PID']}"


def _job_address() -> str:
    return f"{_node_address()}-{os.environ.get('RAY_JOB_ID', '')}"


def _serve(address: str, modules: list[str], idle_s: float) -> None:
    """Fork on request, until the node has ended or there was no fork for some seconds."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(address)
    except OSError:  # another worker has started this server, too
        return
    listener.listen(64)
    for name in modules:
        importlib.import_module(name)
    woken, waker = socket.socketpair()
    woken.setblocking(False)
    waker.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    forks: dict[socket.socket, int] = {}
    last = time.monotonic()
    while os.path.exists(f"/proc/{os.environ['RAY_RAYLET_PID']}") and time.monotonic() < last + idle_s:
        ready = select.select([listener, woken, *forks], [], [], 1)[0]
        for connection in forks.keys() & set(ready):  # the process that Ray started was killed
            with suppress(ProcessLookupError):
                os.kill(forks.pop(connection), signal.SIGKILL)
            connection.close()
        if woken in ready:
            with suppress(BlockingIOError):
                woken.recv(4096)
        if listener in ready:
            connection = listener.accept()[0]
            message, descriptors, _, _ = socket.recv_fds(connection, 2**20, 3)
            if not message:  # the process that asked was killed
                connection.close()
                continue
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for opened in (listener, woken, waker, connection, *forks):
                    opened.close()
                _become(json.loads(message), descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            if descriptors:
                forks[connection] = pid
            else:  # nobody waits for a server
                connection.close()
        _tell_ends(forks)
        last = time.monotonic() if forks else last


def _tell_ends(forks: dict[socket.socket, int]) -> None:
    """Tell the processes that wait for forks that have ended."""
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            for connection in [connection for connection, pid in forks.items() if pid == ended[0]]:
                code = os.waitstatus_to_exitcode(ended[1])
                with suppress(OSError):
                    connection.send(str(code if code >= 0 else 128 - code).encode())
                connection.close()
                del forks[connection]


def _become(order: dict[str, Any], descriptors: list[int]) -> NoReturn:
    """Become a worker or the server of a job, in the forked process."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for target, descriptor in enumerate(descriptors):
            os.dup2(descriptor, target)
            os.close(descriptor)
        os.environ.clear()
        os.environ.update(order["environment"])
        os.chdir(order["folder"])
        if order["argv"]:
            sys.argv = order["argv"]
            sys.argv = shlex.split(_command_of(sys.argv[0]))[2:]
            sys.path[0] = os.path.dirname(sys.argv[0])
            _draw_other_ids()
            runpy.run_path(sys.argv[0], run_name="__main__")
        else:
            _serve(_job_address(), _WITH_RAY, _IDLE_S)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        atexit._run_exitfuncs()
        os._exit(code)


def _draw_other_ids() -> None:
    """Move on Ray's random numbers by a random amount, because forks would draw the same ids from them.

    Each thread of Ray takes the seed of its generator from one of eight pools in turn.
    """
    from ray._raylet import JobID, PlacementGroupID

    for _ in range(8 * random.SystemRandom().randrange(1, 200)):
        drawing = threading.Thread(target=PlacementGroupID.of, args=(JobID.from_int(1),))
        drawing.start()
        drawing.join()


def _command_of(setup: str) -> str:
    """Return the command that Ray's preparation of a worker would become; the preparation sets the environment."""

    class Prepared(Exception):  # noqa: N818
        pass

    def note(file: str, args: list[str]) -> None:
        raise Prepared(args[-1])

    real, os.execvp = os.execvp, note  # type: ignore[assignment]
    try:
        runpy.run_path(setup, run_name="__main__")
    except Prepared as command:
        return str(command)
    finally:
        os.execvp = real
    raise RuntimeError(f"{setup} does not start a worker")


if __name__ == "__main__":
    _serve(_node_address(), _LIBRARIES, float("inf"))
