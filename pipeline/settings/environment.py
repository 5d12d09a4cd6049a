"""Settings of MLflow and of the Ray cluster."""

from __future__ import annotations

import re

from pydantic import BaseModel, Field, field_validator

from pipeline.settings.fields import STRICT

_SECONDS = {"hours": 3600.0, "minutes": 60.0}
_LONGEST = 1e6
"""Hours or minutes after which training stops."""


class Tracking(BaseModel):
    """Settings of MLflow."""

    model_config = STRICT

    uri: str | None = None
    """URI of the MLflow tracking server or database. By default $MLFLOW_TRACKING_URI or, if that is not set, the SQLite
    file mlflow.db in the home folder."""
    experiment: str = Field("super-resolution", min_length=1)
    """Name of the MLflow experiment that collects the runs."""
    register_models: bool = True
    """Register the network of a workflow, or the best cells of a grid, as versions of a model. Turn it off for
    experiments with small networks."""
    register_as: str | None = Field(None, examples=["srresnet-x4"])
    """Name of the registered model, such as "srresnet-x4"; a name also turns `register_models` on. By default the name
    of the network and the scale."""
    system_metrics: bool = True
    """Log the use of CPU, memory, disk, network and GPUs on the driver's machine every ten seconds of training."""

    @field_validator("register_as")
    @classmethod
    def _name_of_a_model(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[^/:@%.\"'\x00-\x1f]{1,250}", value):
            raise ValueError("a name without / : @ % . and quotes, such as srresnet-x4")
        return value


def sqlite_uri(file: str) -> str:
    """Return the URI of a SQLite database in a file, whatever characters its path has.

    SQLAlchemy decodes the path of a URI. MLflow takes the path of a URI that begins with "sqlite:///" as it is when it
    creates the folder, so a path with escapes gets another form of the scheme, for which MLflow creates none.
    """
    escaped = re.sub("[%?#]", lambda match: f"%{ord(match[0]):02X}", file)
    return f"{'sqlite' if escaped == file else 'sqlite+pysqlite'}:///{escaped}"


class Cluster(BaseModel):
    """Settings of the Ray cluster and of its training workers.

    They change the trained weights only by rounding, except for BatchNorm: each worker computes its statistics from its
    own micro-batch.
    """

    model_config = STRICT

    address: str | None = None
    """Address of the Ray cluster, such as HOST:6379. By default $RAY_ADDRESS or, if that is not set, a local Ray that
    stops with the command."""
    workers: int | None = Field(None, ge=1)
    """Number of training workers. By default, there is one per GPU. Without GPUs, there are two, or one on a single
    core."""
    min_workers: int | None = Field(None, ge=1)
    """Smallest number of workers to start with, and to continue with after a node is lost; training grows to `workers`
    when nodes are available. By default, training waits for all of them."""
    resize_s: float = Field(60, gt=0)
    """Seconds between checks for nodes that have joined; the start also waits as long for further nodes. It is used
    only with `min_workers`."""
    cpus_per_worker: int | None = Field(None, ge=1)
    """Number of CPU cores per training worker. By default the cluster's cores are divided evenly."""
    gpu: bool | None = None
    """Train and evaluate on GPUs. By default, they are used if the cluster has any, or if its autoscaler says that it
    can start some."""
    accelerator_type: str | None = Field(None, examples=["H100"])
    """Type of GPU to train and evaluate on, by Ray's name, such as "H100", "A100-80G", "L4" or "T4". By default, any
    type is used."""
    wait_s: float = Field(900, ge=0)
    """Seconds to wait for nodes of a cluster that can grow, until it has room for the workers; with 0, the command
    does not wait. For the replacement of a lost node, training waits as long, or without limit if an autoscaler manages
    the cluster. On a local Ray, no command waits."""
    stop_after: str | None = Field(None, examples=["11.5 hours"])
    """Time after which training stops with a checkpoint, such as "11.5 hours" or "40 minutes", counted from the start
    of the command. Rerun the same command to resume. It does not change the learning rate schedule."""
    max_failures: int = Field(2, ge=-1)
    """Number of times that training restarts from its newest checkpoint after a worker is lost; -1 for no limit."""
    object_store_mb: int = Field(256, ge=80)
    """Size of a local Ray's shared memory in MB."""
    timeout_s: int = Field(600, ge=10)
    """Seconds without progress after which a worker counts as hung and training restarts from its newest checkpoint.
    It must exceed the time of a training step and of scoring one validation image."""

    def stop_at(self, start: float) -> float | None:
        """Return the Unix time at which training stops, for a command that began at `start`; None if it never does."""
        if self.stop_after is None:
            return None
        amount, unit = self.stop_after.split()
        return start + float(amount) * _SECONDS[unit]

    @field_validator("stop_after")
    @classmethod
    def _amount_and_unit(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"(0\.0*[1-9]\d*|[1-9]\d*(\.\d+)?) (hours|minutes)", value):
            raise ValueError('a number of hours or minutes, such as "11.5 hours" or "40 minutes"')
        if value is not None and float(value.split()[0]) > _LONGEST:
            raise ValueError(f"a time of at most {_LONGEST:,.0f} hours or minutes")
        return value
