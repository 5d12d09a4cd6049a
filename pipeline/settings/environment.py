"""Settings of MLflow and of the Ray cluster."""

from __future__ import annotations

import re

from pydantic import BaseModel, Field

from pipeline.settings.fields import STRICT


class Tracking(BaseModel):
    """Settings of MLflow."""

    model_config = STRICT

    uri: str | None = None
    """URI of the MLflow tracking server or database. By default $MLFLOW_TRACKING_URI or, if that is not set, the SQLite
    file mlflow.db in the home folder."""
    experiment: str = Field("super-resolution", min_length=1)
    """Name of the MLflow experiment that collects the runs."""
    register_models: bool = True
    """Register the best cells of a grid as versions of a model. Turn it off for tries with small networks."""


def sqlite_uri(file: str) -> str:
    """Return the URI of a SQLite database in a file, whatever characters its path has.

    SQLAlchemy decodes the path of a URI. MLflow takes the path of a URI that begins with "sqlite:///" as it is when it
    creates the folder, so a path with escapes gets another form of the scheme, for which MLflow creates none.
    """
    escaped = re.sub("[%?#]", lambda match: f"%{ord(match[0]):02X}", file)
    return f"{'sqlite' if escaped == file else 'sqlite+pysqlite'}:///{escaped}"


class Cluster(BaseModel):
    """Settings of the Ray cluster and of its training workers.

    They change the trained weights only by rounding, except for BatchNorm: on CPUs each worker computes its statistics
    from its own micro-batch, on GPUs from the micro-batches of all workers.
    """

    model_config = STRICT

    address: str | None = None
    """Address of the Ray cluster, such as HOST:6379. By default $RAY_ADDRESS or, if that is not set, a local Ray that
    stops with the command."""
    workers: int | None = Field(None, ge=1)
    """Number of training workers. By default one per GPU; without GPUs two, or one on a single core."""
    min_workers: int | None = Field(None, ge=1)
    """Smallest number of workers to continue with after a node is lost; training returns to `workers` when a node is
    available again. By default training waits for a replacement."""
    resize_s: float = Field(60, gt=0)
    """Seconds between checks for a lost worker's replacement. Used only with `min_workers`."""
    cpus_per_worker: int | None = Field(None, ge=1)
    """Number of CPU cores per training worker. By default the cluster's cores are divided evenly."""
    gpu: bool | None = None
    """Train on GPUs. By default they are used if the cluster has any."""
    max_failures: int = Field(2, ge=-1)
    """Number of times that training restarts from its newest checkpoint after a worker is lost; -1 for no limit."""
    object_store_mb: int = Field(256, ge=80)
    """Size of a local Ray's shared memory in MB."""
    timeout_s: int = Field(600, ge=10)
    """Seconds without progress after which a worker counts as hung and training restarts from its newest checkpoint.
    Must exceed the time of a training step and of scoring one validation image."""
