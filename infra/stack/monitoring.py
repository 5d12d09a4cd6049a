"""Prometheus as a process, with the configuration and the rules of infra/monitoring."""

from __future__ import annotations

import shutil
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from infra.stack.processes import Server, require_free

_SHIPPED = Path(__file__).resolve().parent.parent / "monitoring"


class Prometheus(Server):
    """A Prometheus server that asks a Ray head for the nodes whose metrics it collects.

    Args:
        folder: folder for its data, which remains after it stops.
        port: port to listen on.
        dashboard: URL of the head's dashboard.
        token: file with the token of the Ray cluster.
    """

    def __init__(self, folder: Path, port: int, dashboard: str, token: Path) -> None:
        super().__init__(folder)
        self.port, self._dashboard, self._token = port, dashboard, token
        self.url = f"http://127.0.0.1:{port}"

    @staticmethod
    def is_installed() -> bool:
        """Tell whether the program is on the PATH."""
        return shutil.which("prometheus") is not None

    def launch(self) -> None:
        """Start the server if it is not running.

        Raises:
            ServerError: if its port is in use.
        """
        if self.alive():
            return
        self.stop()  # also what a dead server has left
        require_free(self.port, self)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = self.folder / "prometheus.yml"
        file.write_text(yaml.safe_dump(self.configuration()))
        options = [f"--config.file={file}", f"--storage.tsdb.path={self.folder / 'data'}"]
        options += [f"--web.listen-address=127.0.0.1:{self.port}", "--storage.tsdb.retention.time=15d"]
        self._start_process(["prometheus", *options], {})

    def wait(self) -> None:
        """Wait until the server answers.

        Raises:
            ServerError: if it does not answer in time, or ends.
        """
        self._wait_until(self._answers)

    def configuration(self) -> dict[str, Any]:
        """Return infra/monitoring/prometheus.yml with the places of this stack."""
        shipped: dict[str, Any] = yaml.safe_load((_SHIPPED / "prometheus.yml").read_text())
        shipped["rule_files"] = [str(_SHIPPED / name) for name in shipped["rule_files"]]
        for job in shipped["scrape_configs"]:
            for discovery in job.get("http_sd_configs", []):
                discovery["url"] = f"{self._dashboard}/api/prometheus/sd"
                discovery["authorization"] = {"type": "Bearer", "credentials_file": str(self._token)}
        return shipped

    def _answers(self) -> bool:
        with suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"{self.url}/-/ready", timeout=2)  # noqa: S310
            return True
        return False
