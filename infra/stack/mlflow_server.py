"""An MLflow server as a process."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from infra.stack.files import write_private
from infra.stack.processes import Server, free_port, require_free
from infra.stack.s3 import S3Server


@dataclass(frozen=True)
class Login:
    """The secrets and settings of an MLflow server with passwords."""

    password: str
    """Password of the user `admin`."""
    session_key: str
    """Key that signs the sessions of browsers."""
    database: str = ""
    """URI of the database of users."""


class MLflowServer(Server):
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
        self.login: Login | None = None
        """If it is set, the server asks for a password."""
        self._s3 = s3

    def start(self) -> None:
        """Start the server if it is not running, and wait until it answers.

        Raises:
            ServerError: if its port is in use or it does not answer.
        """
        self.launch()
        self.wait()

    def launch(self) -> None:
        """Start the server if it is not running.

        Raises:
            ServerError: if its port is in use.
        """
        if self.alive():
            return
        self.stop()  # also what a dead server has left
        require_free(self.port, self)
        argv = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        argv += ["--workers", "1", "--artifacts-destination", self.artifacts]
        # The URI of the database is not an argument, because every user sees the arguments of a process.
        environment = {"MLFLOW_BACKEND_STORE_URI": self.backend}
        # The pipeline needs none of the server's background jobs, which take a dozen processes.
        environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        if self._s3:
            environment |= {"MLFLOW_S3_ENDPOINT_URL": self._s3.url, **self._s3.env}
        if self.login:
            argv += ["--app-name", "basic-auth"]
            users = self.folder / "users.ini"
            write_private(users, _users(self.login))
            environment |= {
                "MLFLOW_AUTH_CONFIG_PATH": str(users), "MLFLOW_FLASK_SERVER_SECRET_KEY": self.login.session_key
            }  # fmt: skip
        self._start_process(argv, environment)

    def wait(self) -> None:
        """Wait until the server answers.

        Raises:
            ServerError: if it does not answer in time, or ends.
        """
        self._wait_until(self._answers)

    def _answers(self) -> bool:
        with suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"{self.url}/health", timeout=2)  # noqa: S310
            return True
        return False


def _users(login: Login) -> str:
    settings = {
        "default_permission": "READ",
        "database_uri": login.database.replace("%", "%%"),  # the reader of this file replaces %(NAME)s
        "admin_username": "admin",
        "admin_password": login.password,
        # Checking a password takes a tenth of a second, which each request of a client would cost otherwise.
        "auth_cache_ttl_seconds": "60",
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
    }
    return "[mlflow]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items())
