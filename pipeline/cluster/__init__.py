"""Connect to Ray, wait for its nodes, divide its resources, run tasks on it, report metrics."""

from pipeline.cluster import metrics
from pipeline.cluster.background import run_in_thread
from pipeline.cluster.connection import configure, connect, connect_ahead
from pipeline.cluster.resources import count_sharing, most_cores, training_resources, trial_resources
from pipeline.cluster.tasks import GpuPool, TaskError, gpu_pool, map_tasks
from pipeline.cluster.waiting import read_growth, wait_for_workers

__all__ = [
    "GpuPool",
    "TaskError",
    "configure",
    "connect",
    "connect_ahead",
    "count_sharing",
    "gpu_pool",
    "map_tasks",
    "metrics",
    "most_cores",
    "read_growth",
    "run_in_thread",
    "training_resources",
    "trial_resources",
    "wait_for_workers",
]
