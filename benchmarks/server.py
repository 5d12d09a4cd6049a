"""A server in a process of its own, and clients that keep it busy. `benchmarks.serve` and the tests use it."""

from __future__ import annotations

import collections
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import requests

_TIMEOUT_S = 300


@dataclass
class Server:
    """A running server."""

    process: subprocess.Popen[str]
    url: str
    log: Path
    """File of what it prints on stderr."""

    @classmethod
    def start(cls, model: Path | str, log: Path, *options: str) -> Server:
        """Start `python -m pipeline.serve` on a free port, and wait until it serves.

        Raises:
            RuntimeError: with what it printed, if it ends instead.
        """
        command = [sys.executable, "-m", "pipeline.serve", "--port=0", f"--model={model}", *options]
        with log.open("w") as err:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=err, text=True, start_new_session=True, env=os.environ.copy()
            )
        assert process.stdout is not None
        for line in process.stdout:
            if " is served at " in line:
                return cls(process, line.split(" is served at ")[1].split()[0], log)
        raise RuntimeError(f"the server ended with {process.wait()}:\n{log.read_text()}")

    def replicas(self) -> list[psutil.Process]:
        """Return the processes that hold the model."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # which has ended, such as a killed one
                if "ServeReplica" in " ".join(child.cmdline()):
                    found.append(child)
        return found

    def cpu_seconds(self) -> float:
        """Return the time that the processors have spent on the server, with all its processes that run."""
        main = psutil.Process(self.process.pid)
        seconds = 0.0
        for process in (main, *main.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                spent = process.cpu_times()
                seconds += spent.user + spent.system
        return seconds

    def upscale(self, image: bytes, **parameters: str) -> requests.Response:
        """Send an image."""
        return requests.post(f"{self.url}/v1/upscale", data=image, params=parameters, timeout=_TIMEOUT_S)

    def count(self, metric: str) -> float:
        """Return a counter; 0 if there is none of that name."""
        text = requests.get(f"{self.url}/metrics", timeout=_TIMEOUT_S).text
        return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{metric} ")), 0.0)

    def interrupt(self) -> int:
        """Press Ctrl-C, and return the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)

    def kill(self) -> None:
        """End the server and its processes if they run."""
        if self.process.poll() is None:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                process.kill()
            self.process.kill()
            self.process.wait()


@dataclass(frozen=True)
class Exchange:
    """An image to send, and a test of the answer to it."""

    image: bytes
    is_right: Callable[[bytes], bool]


@dataclass
class Outcome:
    """The answers that clients got."""

    seconds: float = 0.0
    """Time from the first request to the last answer."""
    cpu_seconds: float = 0.0
    """Time that the processors spent on the server, without processes that have ended."""
    latencies: list[float] = field(default_factory=list)
    """Seconds of each request that was answered with an image."""
    refused: int = 0
    """Answers 503."""
    wrong: int = 0
    """Images that are not what they should be."""
    lost: collections.Counter[str] = field(default_factory=collections.Counter)
    """Other status codes, and failures of the connection."""

    @property
    def asked(self) -> int:
        """Number of requests."""
        return len(self.latencies) + self.refused + self.lost.total()

    @property
    def rate(self) -> float:
        """Images per second."""
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        """Return a percentile of the latencies in seconds."""
        return float(np.percentile(self.latencies, share)) if self.latencies else float("nan")


def load(server: Server, exchanges: Sequence[Exchange], clients: int, seconds: float) -> Outcome:
    """Let clients send one image after the other. A client that is refused waits for half a second."""
    outcome, noting = Outcome(), threading.Lock()
    cpu_seconds = server.cpu_seconds()
    start = time.perf_counter()

    def act(client: int) -> None:
        session = requests.Session()
        number = client
        while time.perf_counter() - start < seconds:
            exchange = exchanges[number % len(exchanges)]
            number += 1
            began = time.perf_counter()
            try:
                answer = session.post(f"{server.url}/v1/upscale", data=exchange.image, timeout=_TIMEOUT_S)
            except requests.RequestException as error:
                with noting:
                    outcome.lost[type(error).__name__] += 1
                continue
            took = time.perf_counter() - began
            right = answer.status_code != 200 or exchange.is_right(answer.content)
            with noting:
                if answer.status_code == 200:
                    outcome.latencies.append(took)
                    outcome.wrong += not right
                elif answer.status_code == 503:
                    outcome.refused += 1
                else:
                    outcome.lost[str(answer.status_code)] += 1
            if answer.status_code == 503:
                time.sleep(0.5)

    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(act, range(clients)))
    outcome.seconds = time.perf_counter() - start
    outcome.cpu_seconds = server.cpu_seconds() - cpu_seconds
    return outcome
