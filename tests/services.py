"""Servers and clusters that tests start, kill and restart as real processes."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress

import psutil

from infra.local import MLflowServer, S3Server, Services

__all__ = ["BUCKET", "MLflowServer", "S3Server", "Services", "TwoNodes"]

BUCKET = "sr-test"


class TwoNodes:
    """A Ray cluster of a head and a second node, with one core each."""

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
        """Kill the second node and everything that runs on it."""
        self._request("kill")

    def add(self) -> None:
        """Start another second node."""
        self._request("add")

    def _request(self, action: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{action}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def stop(self) -> None:
        """Kill the cluster with all its processes."""
        for child in psutil.Process(self._process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
        self._process.kill()
        self._process.wait()
