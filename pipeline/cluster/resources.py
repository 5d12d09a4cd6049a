"""Divide a Ray cluster's cores and GPUs between trainings and their workers."""

from __future__ import annotations

import math
from collections.abc import Mapping

import ray
from ray._common.utils import RESOURCE_CONSTRAINT_PREFIX

from pipeline.settings import Config, UserError

_UNITS = 10_000
"""Ray counts resources in ten thousandths."""


def training_resources(config: Config, per_gpu: int = 1) -> tuple[int, dict[str, float]]:
    """Return the number of training workers and the resources that each of them reserves.

    Args:
        config: holds the settings `cluster`.
        per_gpu: number of workers that share a GPU; more than 1 only for trainings of a single worker.

    Raises:
        UserError: if the workers do not fit on the cluster.
    """
    capacity = Capacity(config, per_gpu)
    # Without GPUs, two workers with half of the cores each are faster than one worker with all of them.
    workers = config.cluster.workers or (max(capacity.gpus, 1) if capacity.use_gpu else min(capacity.cpus, 2))
    least = config.cluster.min_workers or workers
    if least > workers:
        raise UserError(f"cluster.min_workers is {least}, expected no more than the number of workers, {workers}")
    # Workers that join later get as many cores as those that fit now.
    at_first = min(max(capacity.workers(1), least), workers)
    per_worker = config.cluster.cpus_per_worker or capacity.cores_per_worker(at_first)
    if capacity.workers(per_worker) < least:
        key = "min_workers" if config.cluster.min_workers else "workers"
        raise UserError(
            f"cluster.{key} is {least}, with {per_worker} CPU{capacity.gpu_in_words} each, but "
            f"the cluster has room for {capacity.workers(per_worker)} (CPU {capacity.cpus}, GPU {capacity.gpus}, nodes "
            f"{len(capacity.nodes)}): expected fewer"
        )
    gpu = {"GPU": share_of_gpu(per_gpu), **gpu_type(config)} if capacity.use_gpu else {}
    return workers, {"CPU": per_worker, **gpu}


def trial_resources(config: Config, trials: int) -> tuple[int, int, dict[str, float]]:
    """Divide the cluster equally between the trainings of a grid.

    Without GPUs, each training gets at least two cores if there are two. With GPUs, trainings of one worker share them
    as `tune.trials_per_gpu` allows, if more trainings could run at the same time than there are GPUs.

    Args:
        config: holds the settings `cluster`, `tune.concurrent` and `tune.trials_per_gpu`.
        trials: number of trainings in the grid.

    Returns:
        The number of trainings that run at the same time, the workers of each, and the resources of each worker.

    Raises:
        UserError: if not even one training fits on the cluster.
    """
    capacity = Capacity(config)
    settings = config.cluster
    workers = settings.workers or (max(capacity.gpus // trials, 1) if capacity.use_gpu else min(capacity.cpus, 2))
    wanted = min(trials, config.tune.concurrent or trials)
    shared = 1
    if capacity.use_gpu and workers == 1:
        shared = workers_per_gpu(wanted, capacity.gpus, config.tune.trials_per_gpu)
        capacity = Capacity(config, shared)
    least = settings.cpus_per_worker or (1 if capacity.use_gpu or workers > 1 else min(most_cores(), 2))
    at_once = max(min(wanted, capacity.workers(least) // workers), 1)
    per_worker = settings.cpus_per_worker or capacity.cores_per_worker(workers * at_once)
    chosen = settings.model_copy(update={"workers": workers, "cpus_per_worker": per_worker})
    _, resources = training_resources(config.model_copy(update={"cluster": chosen}), shared)
    return at_once, workers, resources


def workers_per_gpu(wanted: int, gpus: int, most: int) -> int:
    """Return how many workers share a GPU: as few as suffice for all that are wanted, and no more than `most`."""
    return max(min(-(-wanted // max(gpus, 1)), most), 1)


def gpu_type(config: Config) -> dict[str, float]:
    """Return what a worker with a GPU reserves so that it runs on a node with `cluster.accelerator_type`."""
    kind = config.cluster.accelerator_type
    return {f"{RESOURCE_CONSTRAINT_PREFIX}{kind}": 0.001} if kind else {}  # of a node's 1, so it limits no worker


def share_of_gpu(workers: int) -> float:
    """Return the part of a GPU that each of so many workers reserves, rounded down as Ray counts, so that all fit."""
    return 1 if workers == 1 else math.floor(_UNITS / workers) / _UNITS


def count_sharing(resources: Mapping[str, float]) -> int:
    """Return how many workers with these resources share a GPU; 1 without GPUs."""
    return int(1 / resources.get("GPU", 1) + 1e-9)  # a part is rounded down by less than would make room for one more


def most_cores() -> int:
    """Return the number of cores of the largest node."""
    return max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])


class Capacity:
    """Cores and GPUs of the connected cluster.

    Args:
        config: the setting `cluster.gpu` decides if GPUs are used; if it is not set, they are used if there are any. Of
            the GPUs, only those of `cluster.accelerator_type` count.
        per_gpu: number of workers that share a GPU.
    """

    def __init__(self, config: Config, per_gpu: int = 1) -> None:
        self.nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if kind := config.cluster.accelerator_type:
            typed = f"{RESOURCE_CONSTRAINT_PREFIX}{kind}"
            self.nodes = [node if typed in node else {**node, "GPU": 0} for node in self.nodes]
        self._kind = kind
        wanted = config.cluster.gpu
        self.use_gpu: bool = any(node.get("GPU") for node in self.nodes) if wanted is None else wanted
        self.cpus, self.gpus = (int(sum(node.get(kind, 0) for node in self.nodes)) for kind in ("CPU", "GPU"))
        self._per_gpu = per_gpu

    @property
    def gpu_in_words(self) -> str:
        """The GPU that each worker needs, as the end of a list; "" if it needs none."""
        return f" and a GPU{f' of type {self._kind}' if self._kind else ''}" if self.use_gpu else ""

    def workers(self, cores: int) -> int:
        """Return how many workers with so many cores fit, each within one node."""
        by_cpu = [int(node.get("CPU", 0) // cores) for node in self.nodes]
        by_gpu = [int(node.get("GPU", 0)) * self._per_gpu for node in self.nodes]
        return sum(map(min, by_cpu, by_gpu)) if self.use_gpu else sum(by_cpu)

    def cores_per_worker(self, workers: int) -> int:
        """Return the most cores that each of so many workers can have, or 1 if they do not fit at all."""
        return max((n for n in range(1, self.cpus + 1) if self.workers(n) >= workers), default=1)
