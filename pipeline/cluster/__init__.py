"""Ray: connections, resources, tasks."""

from pipeline.cluster.connection import configure, connect, connect_ahead
from pipeline.cluster.resources import most_cores, training_resources, trial_resources
from pipeline.cluster.tasks import map_rows

__all__ = [
    "configure",
    "connect",
    "connect_ahead",
    "map_rows",
    "most_cores",
    "training_resources",
    "trial_resources",
]
