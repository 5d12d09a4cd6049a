"""The servers of a stack: MLflow with PostgreSQL and an S3 store, and around them Ray's nodes and Prometheus."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from infra.stack.databases import PostgreSQL
from infra.stack.files import Note, write_private
from infra.stack.mlflow_server import Login, MLflowServer
from infra.stack.monitoring import Prometheus
from infra.stack.network import Namespace
from infra.stack.processes import ServerError
from infra.stack.ray_nodes import Node, RayNode, write_token
from infra.stack.s3 import S3Server, s3_ports

BUCKET = "super-resolution"

Report = Callable[[str], None]
"""Takes a line that says how far a start has come."""


class Services:
    """An MLflow server with a password, PostgreSQL and an S3 store.

    Args:
        folder: folder for their data, logs, keys and process ids. Only its owner can read the keys and the folders of
            the servers.
        host: address on which the S3 store listens; the other two are reached from this machine alone.
        report: called with a line for each server that has started.
        usual_ports: whether the first start takes the ports that people expect, such as 5000, where they are free.
    """

    def __init__(
        self,
        folder: Path,
        host: str = "127.0.0.1",
        report: Report = lambda line: None,
        usual_ports: bool = False,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder, self._report = folder, report
        self.note = Note(folder / "stack.json", usual_ports)
        key, secret = self.note.secret("s3_key")[:16], self.note.secret("s3_secret")
        self.s3 = S3Server(folder / "s3", BUCKET, self.note.ports(s3_ports()), key, secret, host)
        self.postgres = PostgreSQL(folder / "postgres")
        self.mlflow = MLflowServer(folder / "mlflow", self.note.port("mlflow", 5000), self.s3)
        self.mlflow.artifacts = f"s3://{BUCKET}/mlflow"

    @property
    def exports(self) -> dict[str, str]:
        """Environment variables that clients need."""
        return {
            "MLFLOW_TRACKING_URI": self.mlflow.url,
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": self.note.secret("mlflow_password"),
            **self.s3.env,
        }

    def start(self) -> None:
        """Start the services that are not running.

        Raises:
            ServerError: if one of them does not answer, or its package is not installed.
        """
        with self.timed("S3 store", lambda: self.s3.url):
            self.s3.start()
        with self.timed("PostgreSQL", lambda: str(self.postgres.folder)):
            self.mlflow.backend, users = self.postgres.open_databases("mlflow", "mlflow_auth")
        password, key = self.note.secret("mlflow_password"), self.note.secret("mlflow_sessions")
        self.mlflow.login = Login(password, key, users)
        with self.timed("MLflow", lambda: self.mlflow.url):
            self.mlflow.start()

    def stop(self) -> None:
        """Stop all services and keep their data."""
        self.mlflow.stop()
        self.postgres.stop()
        self.s3.stop()

    def alive(self) -> dict[str, bool]:
        """Return for each service, by name, whether it is running."""
        return {"MLflow": self.mlflow.alive(), "PostgreSQL": self.postgres.alive(), "S3 store": self.s3.alive()}

    @contextmanager
    def timed(self, name: str, place: Callable[[], str]) -> Iterator[None]:
        """Report that a server is ready, with the seconds that the block took."""
        start = time.monotonic()
        yield
        self._report(f"{name:<12} {time.monotonic() - start:5.1f} s  {place()}")


class Stack:
    """The services, a Ray head, a second node and, where it is installed, Prometheus.

    The second node is in a network namespace of its own if this user may make one.

    Args:
        folder: folder for all data, logs, keys and process ids.
        environment: further environment variables of Ray's processes and of the jobs on them.
        report: called with a line for each server that has started, and for each that is left out.
        cpus: cores that the head and the second node offer together.
        usual_ports: whether the first start takes the ports that people expect, such as 8265, where they are free.
        lean: whether to leave out Ray's dashboard, so that no jobs can be submitted, and what shows workers' output.
    """

    def __init__(
        self,
        folder: Path,
        environment: dict[str, str] | None = None,
        report: Report = lambda line: None,
        cpus: int | None = None,
        usual_ports: bool = False,
        lean: bool = False,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lean = lean
        self.folder, self._report = folder, report
        self._more, self._cpus, self._usual_ports = environment or {}, cpus or os.cpu_count() or 1, usual_ports
        self.namespace = Namespace(folder)
        self._assemble()

    def _assemble(self) -> None:
        """Describe the servers, with addresses that depend on whether the namespace exists."""
        self._inside = self.namespace.exists()
        host = self.namespace.outer_address if self._inside else "127.0.0.1"
        inner = self.namespace.inner_address if self._inside else host
        self.services = Services(self.folder, host, self._report, self._usual_ports)
        note = self.services.note
        self._token = write_token(self.folder / "ray_token", note.secret("ray_token"))
        self.address = f"{host}:{note.port('head', 6379)}"
        """HOST:PORT of the Ray head."""
        self.dashboard = f"http://127.0.0.1:{note.port('dashboard', 8265)}"
        self.head = self._node("head", host, max(self._cpus // 2, 1))
        self.second = self._node("second", inner, max(self._cpus - self._cpus // 2, 1))
        self.prometheus = Prometheus(
            self.folder / "prometheus", note.port("prometheus", 9090), self.dashboard, self._token
        )

    @property
    def exports(self) -> dict[str, str]:
        """Environment variables with which commands and `ray job submit` use the stack."""
        return {
            **self._environment(),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._token),
            "RAY_ADDRESS": self.address,
            "RAY_API_SERVER_ADDRESS": self.dashboard,
        }

    def up(self) -> None:
        """Start the servers that are not running, and write the file `environment`, which a shell can read.

        Raises:
            ServerError: if one of them does not answer, or its package is not installed.
        """
        if not any(self.alive().values()):
            self.namespace.create()
        self._link_sessions()
        self._assemble()  # again, because addresses and paths follow from both
        if not self._inside:
            self._report("The second node shares the network of this machine, because only root may make another one.")
        if self.head.launch():
            self.second.stop()  # a node cannot join the head that comes after its own
        self.services.start()
        with self.services.timed("Ray head", lambda: f"{self.address}, {self.dashboard}"):
            self.head.wait()
        self.second.launch()
        if self.prometheus.is_installed():
            self.prometheus.launch()
            with self.services.timed("Prometheus", lambda: self.prometheus.url):
                self.prometheus.wait()
        else:
            self._report("Prometheus is left out, because it is not on the PATH (Debian: apt install prometheus).")
        with self.services.timed("second node", lambda: self.second.node.address):
            self.second.wait()
        write_environment(self.folder, self.exports)

    def down(self) -> None:
        """Stop all servers, with the jobs on them, and keep their data."""
        self.second.stop()
        self.head.stop()
        self.prometheus.stop()
        self.services.stop()
        self.namespace.remove()
        (self.folder / "environment").unlink(missing_ok=True)
        self._unlink_sessions()

    def alive(self) -> dict[str, bool]:
        """Return for each server, by name, whether it is running."""
        own = {"Ray head": self.head.alive(), "second node": self.second.alive(), "Prometheus": self.prometheus.alive()}
        return {**self.services.alive(), **own}

    def places(self) -> dict[str, str]:
        """Return where each server is reached, by its name."""
        return {
            "MLflow": self.services.mlflow.url,
            "PostgreSQL": str(self.services.postgres.folder),
            "S3 store": self.services.s3.url,
            "Ray head": f"{self.address}, {self.dashboard}",
            "second node": self.second.node.address,
            "Prometheus": self.prometheus.url,
        }

    def _environment(self) -> dict[str, str]:
        places = {"SR_HOME": f"s3://{BUCKET}/runs", "SR_CACHE": f"s3://{BUCKET}/cache"}
        return {**self.services.exports, **places}

    def _node(self, name: str, address: str, cpus: int) -> RayNode:
        note, head = self.services.note, name == "head"
        parts = ["metrics-export", "dashboard-agent-listen", *(["ray-client-server"] if head else [])]
        ports = {part: note.port(f"{name} {part}") for part in parts}
        if head:
            ports |= {"dashboard": note.port("dashboard")}
            options = ["--head", f"--port={note.port('head')}", "--dashboard-host=127.0.0.1"]
            options += ["--include-dashboard=False"] if self._lean else []
        else:
            options = [f"--address={self.address}", "--num-gpus=0"]  # the head has those of the machine
        options += ["--include-log-monitor=False"] if self._lean else []
        sessions = self._sessions.readlink() if self._sessions.is_symlink() else self._sessions
        node = Node(address, cpus, ports, sessions / name, options)
        # Some parts of Ray look for a cluster in /tmp unless they are told of theirs.
        environment = self._environment() | {"RAY_ADDRESS": self.address} | self._more
        if self._inside:
            # Workers of a training find each other through the name of the machine otherwise, which both nodes share.
            cable = self.namespace.cable if head else self.namespace.inner_cable
            environment |= {"GLOO_SOCKET_IFNAME": cable, "NCCL_SOCKET_IFNAME": cable}
        wrap = self.namespace.run_inside if self._inside and not head else list
        return RayNode(self.folder / name, node, self._token, environment, wrap)

    @property
    def _sessions(self) -> Path:
        """Link to a folder with a short path, in which links lead to folders of the stack; for the sockets of Ray."""
        return self.folder / "sessions"

    def _link_sessions(self) -> None:
        if not self._sessions.is_symlink():
            self._sessions.symlink_to(tempfile.mkdtemp(prefix="sr-"))
        short = self._sessions.readlink()
        short.mkdir(mode=0o700, exist_ok=True)
        for name in ("head", "second"):
            target = self.folder / name / "sessions"
            for part in (target.parent, target):  # Ray lets everybody write to its folders
                part.mkdir(exist_ok=True, mode=0o700)
            if not (short / name).is_symlink():
                (short / name).symlink_to(target)

    def _unlink_sessions(self) -> None:
        if self._sessions.is_symlink():
            shutil.rmtree(self._sessions.readlink(), ignore_errors=True)  # links alone
            self._sessions.unlink()


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other commands from changing the stack of a folder while the block runs.

    Raises:
        ServerError: if another command is changing it.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ServerError(
            f"another command is starting or stopping the stack in {folder}: wait until it ends"
        ) from None
    try:
        yield
    finally:
        lock.release()


def write_environment(folder: Path, exports: Mapping[str, str]) -> None:
    """Write environment variables to the file `environment`, which a shell can read and only its owner."""
    lines = [f"export {key}={shlex.quote(value)}" for key, value in exports.items()]
    write_private(folder / "environment", "\n".join(lines) + "\n")
