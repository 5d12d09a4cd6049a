"""Connect to Ray, divide its resources, run tasks on it."""

from pipeline.cluster.background import run_in_thread
from pipeline.cluster.connection import configure, connect, connect_ahead
from pipeline.cluster.resources import most_cores, training_resources, trial_resources
from pipeline.cluster.tasks import TaskError, map_tasks

__all__ = [
    "TaskError",
    "configure",
    "connect",
    "connect_ahead",
    "map_tasks",
    "most_cores",
    "run_in_thread",
    "training_resources",
    "trial_resources",
]
