"""Divide a cluster between the trainings of a grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline import cluster
from pipeline.settings import Config, with_values
from pipeline.training.preflight import check_gpus

_CONTEXT_MB = 500
"""MB of a GPU that a process needs beside the memory that torch counts."""


@dataclass(frozen=True)
class Share:
    """The part of the cluster that one training gets."""

    at_once: int
    """Number of trainings that run at the same time."""
    workers: int
    """Workers of each training."""
    resources: Mapping[str, float]
    """Resources of each worker, such as {"CPU": 4, "GPU": 1}."""
    memory_mb: float | None = None
    """MB of a GPU for each of the trainings that share it; None if a training has its GPUs for itself."""

    @property
    def per_gpu(self) -> int:
        """Number of trainings that share a GPU; 1 without GPUs."""
        return cluster.count_sharing(self.resources)

    def give_to(self, config: Config) -> Config:
        """Return the settings of a training with those of its share; a `train.memory_mb` that is set stays."""
        values: dict[str, Any] = {
            "cluster.workers": self.workers,
            "cluster.cpus_per_worker": int(self.resources["CPU"]),
        }
        if self.memory_mb is not None and config.train.memory_mb is None:
            values["train.memory_mb"] = self.memory_mb
        return with_values(config, values)

    def __str__(self) -> str:
        resources = ", ".join(f"{amount:g} {kind}" for kind, amount in self.resources.items())
        return f"{self.workers} worker{'s' if self.workers > 1 else ''} of {resources}"


def find_share(config: Config, trials: int, trains: bool) -> Share:
    """Find the part of the connected cluster that each training of a grid gets.

    Args:
        config: settings of the grid.
        trials: number of trainings in the grid.
        trains: False if all trainings are finished. The cluster is then neither waited for nor checked.

    Raises:
        UserError: if not even one training fits on the cluster, or torch cannot train on one of its GPUs.
    """
    if not trains:
        whole = {"cluster.gpu": False, "cluster.workers": None, "cluster.cpus_per_worker": None}
        return Share(*cluster.trial_resources(with_values(config, whole), trials))
    cluster.wait_for_workers(config, trials)
    share = Share(*cluster.trial_resources(config, trials))
    if "GPU" not in share.resources:
        return share
    sizes = [facts.card.memory_mb for facts in check_gpus(config, share.workers) if facts.card]
    if share.per_gpu == 1 or not sizes:
        return share
    part = max(min(sizes) / share.per_gpu - _CONTEXT_MB, _CONTEXT_MB)
    return Share(share.at_once, share.workers, share.resources, part)
