"""Servers and clusters that tests start, kill and restart as real processes."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress

import psutil

from infra.stack import MLflowServer, S3Server, Services, free_port

__all__ = [
    "BUCKET",
    "AutoscalingCluster",
    "GrowingCluster",
    "MLflowServer",
    "S3Server",
    "Services",
    "TwoNodes",
    "free_port",
]

BUCKET = "sr-test"


class ClusterProcess:
    """A Ray cluster in a process of its own.

    The script prints the address of the cluster, and answers each line of its input with "done".
    """

    SCRIPT = ""

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


class TwoNodes(ClusterProcess):
    """A Ray cluster of a head and a second node, with one core each."""

    SCRIPT = """
import sys, time
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
size = {"num_cpus": 1, "object_store_memory": 10**8}
cluster = Cluster(initialize_head=True, head_node_args=size)
node = cluster.add_node(**size)
print(cluster.address, flush=True)
for line in sys.stdin:
    if line == "kill\\n":
        cluster.remove_node(node, allow_graceful=False)
    elif line == "drain\\n":
        preempted = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline_ms = int((time.time() + 60) * 1000)
        accepted, _ = GcsClient(cluster.address).drain_node(node.node_id, preempted, "a test", deadline_ms)
        assert accepted
    else:
        node = cluster.add_node(**size)
    print("done", flush=True)
"""

    def kill(self) -> None:
        """Kill the second node and everything that runs on it."""
        self._request("kill")

    def drain(self) -> None:
        """Announce that the second node will be taken away in a minute."""
        self._request("drain")

    def add(self) -> None:
        """Start another second node."""
        self._request("add")


class GrowingCluster(ClusterProcess):
    """A Ray cluster of a head with two cores, to which nodes with pretended GPUs are added."""

    SCRIPT = """
import sys
from ray.cluster_utils import Cluster
size = {"num_cpus": 2, "object_store_memory": 10**8}
cluster = Cluster(initialize_head=True, head_node_args=size)
print(cluster.address, flush=True)
for line in sys.stdin:
    cluster.add_node(**size, num_gpus=int(line), resources={"accelerator_type:T4": 1})
    print("done", flush=True)
"""

    def add(self, gpus: int) -> None:
        """Start a node with two cores and so many pretended GPUs of type T4."""
        self._request(str(gpus))


class AutoscalingCluster(ClusterProcess):
    """A Ray cluster whose autoscaler starts up to two nodes with two cores and a pretended GPU, and none at first."""

    SCRIPT = """
import json, os, socket, sys, tempfile
os.environ |= {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", "RAY_NODE_TYPE_NAME": "ray.head.default"}
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.cluster_utils import Cluster
with socket.socket() as free:
    free.bind(("", 0))
    port = free.getsockname()[1]
import ray
address = f"{ray._private.services.get_node_ip_address()}:{port}"
head, worker = {"CPU": 2}, {"CPU": 2, "GPU": 1, "object_store_memory": 10**8}
config = {
    "cluster_name": "growing",
    "max_workers": 2,
    "idle_timeout_minutes": 1,
    "provider": {
        "type": "fake_multinode", "use_node_id_as_ip": True, "disable_node_updaters": True,
        "disable_launch_config_check": True, "gcs_address": address,
    },
    "auth": {},
    "available_node_types": {
        "ray.head.default": {"resources": head, "node_config": {}, "max_workers": 0},
        "gpu": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
    "head_node_type": "ray.head.default",
    "docker": {}, "file_mounts": {}, "file_mounts_sync_continuously": False,
    **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter", "initialization_commands")},
    **{f"{kind}setup_commands": [] for kind in ("", "head_", "worker_")},
    **{f"{kind}_start_ray_commands": [] for kind in ("head", "worker")},
}
with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
    json.dump(config, file)
cluster = Cluster(initialize_head=True, head_node_args={
    "num_cpus": 2, "object_store_memory": 10**8, "gcs_server_port": port, "autoscaling_config": file.name,
    "env_vars": {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID},
})
print(cluster.address, flush=True)
sys.stdin.read()
"""
