"""Wait for nodes of a cluster that can grow.

A pending placement group tells Ray's autoscaler what is needed. It belongs to this command's job, so the need ends with
the command however it ends. A request with `ray.autoscaler.sdk.request_resources` would outlive a killed command, keep
its nodes, and replace the requests of other jobs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from pipeline import terminal
from pipeline.cluster.resources import Capacity, gpu_type
from pipeline.settings import Config, UserError
from pipeline.settings.places import ray_address

_LOOK_EVERY_S = 1.0


@dataclass(frozen=True)
class Growth:
    """How far the cluster can grow."""

    managed: bool
    """True if an autoscaler manages the nodes."""
    most: Mapping[str, float] | None
    """Largest amount of each resource, such as {"CPU": 64, "GPU": 8}; None if the autoscaler does not tell it."""

    @property
    def has_gpus(self) -> bool:
        """True if the autoscaler says that it may start GPUs."""
        return self.most is not None and self.allows({"GPU": 1})

    def allows(self, needed: Mapping[str, float]) -> bool:
        """Tell whether the cluster can grow, as far as it is known, to these amounts of resources."""
        if self.most is None:
            return self.managed
        return all(self.most.get(kind, 0) >= amount for kind, amount in needed.items())


@dataclass(frozen=True)
class _Need:
    """The workers that a training or a grid would like to have."""

    workers: int
    least: int
    """Workers with which it can start."""
    grows: bool
    """True if it takes in further workers while it runs."""
    cores: int
    gpu: bool
    type: Mapping[str, float]
    """Resources that a worker reserves to get the right type of GPU."""

    @property
    def resources(self) -> dict[str, float]:
        """Cores and GPUs of the workers to wait for."""
        workers = self.least if self.grows else self.workers
        return {"CPU": self.cores * workers, **({"GPU": workers} if self.gpu else {})}

    @property
    def bundle(self) -> dict[str, float]:
        """Resources of a worker."""
        return {"CPU": self.cores, **({"GPU": 1, **self.type} if self.gpu else {})}

    def __str__(self) -> str:
        kind = "GPU" if self.gpu else "worker"
        return f"{self.workers} {kind}{'s' if self.workers > 1 else ''}"


def wait_for_workers(config: Config, trials: int = 1) -> None:
    """Wait until a cluster that can grow has room for the workers, at most `cluster.wait_s` seconds.

    It waits for GPUs if `cluster.gpu` is true, or if it is not set and the autoscaler says that it may start some. It
    waits for cores if an autoscaler manages the cluster. It asks for `cluster.workers` workers, or for one if that is
    not set. If there is room for `cluster.min_workers` of them, it stops waiting when no other has joined for
    `cluster.resize_s` seconds, because the training takes in those that come later. If GPUs may be used and the cluster
    neither has nor starts any, one line says so. A local Ray never waits.

    Args:
        config: holds the settings `cluster`, `tune.concurrent` and `tune.trials_per_gpu`.
        trials: number of trainings in a grid. The grid waits for `tune.concurrent` of them at the same time, and
            continues with one if no more come.

    Raises:
        UserError: if the cluster has not enough room in time.
    """
    if not ray_address(config):
        return
    settings = config.cluster
    growth, capacity = read_growth(), Capacity(config)
    need = _find_need(config, trials, capacity.use_gpu or (settings.gpu is None and growth.has_gpus))
    may_come = growth.allows(need.resources) or (bool(settings.gpu) and growth.most is None)
    if settings.wait_s and may_come and _count(config, need) < need.workers:
        _wait(config, need)
    if settings.gpu is None and not Capacity(config).use_gpu:
        print("this trains on CPUs, because the cluster has no GPU; --cluster.gpu true waits for GPUs", flush=True)


def read_growth() -> Growth:
    """Return how far the connected cluster can grow.

    Not every autoscaler reports the limits of its node groups. One that manages the cluster is seen by the groups that
    its nodes belong to.
    """
    most = None
    if not ray.util.client.ray.is_connected():  # a client has no access to the state of the cluster
        most = ray._private.state.state.get_max_resources_from_cluster_config()
    groups = [node.get("Labels", {}).get(ray._raylet.RAY_NODE_GROUP_KEY) for node in ray.nodes() if node["Alive"]]
    return Growth(any(groups) or most is not None, most)


def _find_need(config: Config, trials: int, gpu: bool) -> _Need:
    settings, tune = config.cluster, config.tune
    one = settings.workers or settings.min_workers or 1
    at_once = min(trials, tune.concurrent or 1)
    cores = settings.cpus_per_worker or 1
    if gpu and one == 1:  # trainings of one worker share GPUs
        shared = min(tune.trials_per_gpu, at_once) if trials > 1 else 1
        cards = -(-at_once // shared)
        return _Need(cards, 1, False, cores, gpu, gpu_type(config))
    grows = settings.min_workers is not None and trials == 1  # a grid is divided once
    return _Need(one * at_once, settings.min_workers or one, grows, cores, gpu, gpu_type(config))


def _count(config: Config, need: _Need) -> int:
    """Return how many of the needed workers fit on the cluster."""
    cluster = config.cluster.model_copy(update={"gpu": need.gpu})
    return Capacity(config.model_copy(update={"cluster": cluster})).workers(need.cores)


def _wait(config: Config, need: _Need) -> None:
    ends = time.monotonic() + config.cluster.wait_s
    joined_at, before = time.monotonic(), 0
    asked = placement_group([need.bundle] * need.workers)
    try:
        with terminal.stage("", f"waiting for {need}") as stage:
            while (there := _count(config, need)) < need.workers:
                now = time.monotonic()
                joined_at, before = (joined_at if there == before else now), there
                if now >= ends or (need.grows and there >= need.least and now - joined_at >= config.cluster.resize_s):
                    break
                stage.update(message=f"waiting for {need}: {there} {'is' if there == 1 else 'are'} there")
                time.sleep(_LOOK_EVERY_S)
    finally:
        remove_placement_group(asked)
    if there < need.least:
        kind = config.cluster.accelerator_type
        gpu = f" with a GPU{f' of type {kind}' if kind else ''}" if need.gpu else ""
        raise UserError(
            f"the cluster has room for {there} of {need.least} workers{gpu} of {need.cores} CPU after "
            f"{config.cluster.wait_s:g} seconds (cluster.wait_s): expected nodes that join, fewer cluster.workers"
            f"{', or cluster.gpu=false to train on CPUs' if need.gpu else ''}"
        )
