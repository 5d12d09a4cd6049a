"""Settings of MLflow and of the Ray cluster."""

from __future__ import annotations

from pydantic import BaseModel, Field

from pipeline.settings.fields import STRICT


class Tracking(BaseModel):
    """MLflow."""

    model_config = STRICT

    uri: str | None = None
    """Tracking server or database; $MLFLOW_TRACKING_URI, else a SQLite file in the home of outputs."""
    experiment: str = Field("super-resolution", min_length=1)
    """Experiment that the runs belong to."""


class Cluster(BaseModel):
    """Where the work runs; changes no result beyond rounding, but for BatchNorm.

    Its statistics are those of a worker's micro-batch on CPU, and of all workers' micro-batches on GPUs.
    """

    model_config = STRICT

    address: str | None = None
    """Ray cluster; $RAY_ADDRESS, else a local Ray that ends with the command."""
    workers: int | None = Field(None, ge=1)
    """Training workers; where not given one a GPU, without GPUs two (or one on a single core)."""
    min_workers: int | None = Field(None, ge=1)
    """Go on with fewer workers, down to this number, after a node was lost, and with `workers` again when one is back;
    where not given, wait for a replacement."""
    resize_s: float = Field(60, gt=0)
    """Seconds between looks for a lost worker's replacement, where `min_workers` is given."""
    cpus_per_worker: int | None = Field(None, ge=1)
    """CPU cores of a training worker; an equal share of the cluster's where not given."""
    gpu: bool | None = None
    """Train on GPUs; where not given, if the cluster has any."""
    max_failures: int = Field(2, ge=-1)
    """Restarts of training from its newest checkpoint after a worker was lost; -1 for any number."""
    object_store_mb: int = Field(256, ge=80)
    """MB of shared memory of a local Ray."""
    timeout_s: int = Field(600, ge=10)
    """Seconds without progress after which a worker counts as hung and training restarts from its newest checkpoint;
    longer than a step and than any held-out image takes."""
