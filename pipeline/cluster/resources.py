"""What a Ray cluster has, and how trainings share it."""

from __future__ import annotations

import ray

from pipeline.settings import Config, UserError


def training_resources(config: Config) -> tuple[int, dict[str, float]]:
    """Number of training workers and what each of them reserves.

    Raises:
        UserError: if the cluster cannot hold them.
    """
    room = _Room(config)
    # Without GPUs, two workers of half the cores beat one worker of all.
    workers = config.cluster.workers or (max(room.gpus, 1) if room.use_gpu else min(room.cpus, 2))
    per_worker = config.cluster.cpus_per_worker or room.cores_each(workers)
    if room.places(per_worker) < workers:
        raise UserError(
            f"cluster.workers is {workers}, with {per_worker} CPU{' and a GPU' if room.use_gpu else ''} each, but the "
            f"cluster has room for {room.places(per_worker)} (CPU {room.cpus}, GPU {room.gpus}, nodes "
            f"{len(room.nodes)}): expected fewer"
        )
    return workers, {"CPU": per_worker, **({"GPU": 1} if room.use_gpu else {})}


def trial_resources(config: Config, trials: int) -> tuple[int, int, dict[str, float]]:
    """How many trainings run at once, the workers of each, and what a worker reserves: the cluster in equal parts.

    Without GPUs, a training gets two cores at least, if there are two.

    Raises:
        UserError: if the cluster cannot hold one.
    """
    room = _Room(config)
    settings = config.cluster
    workers = settings.workers or (max(room.gpus // trials, 1) if room.use_gpu else min(room.cpus, 2))
    wanted = min(trials, config.tune.concurrent or trials)
    least = settings.cpus_per_worker or (1 if room.use_gpu or workers > 1 else min(most_cores(), 2))
    at_once = max(min(wanted, room.places(least) // workers), 1)
    per_worker = settings.cpus_per_worker or room.cores_each(workers * at_once)
    chosen = settings.model_copy(update={"workers": workers, "cpus_per_worker": per_worker})
    _, resources = training_resources(config.model_copy(update={"cluster": chosen}))
    return at_once, workers, resources


def most_cores() -> int:
    """Cores of the node that has the most."""
    return max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])


class _Room:
    """What the cluster has."""

    def __init__(self, config: Config) -> None:
        self.nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        wanted = config.cluster.gpu
        self.use_gpu: bool = any(node.get("GPU") for node in self.nodes) if wanted is None else wanted
        self.cpus, self.gpus = (int(sum(node.get(kind, 0) for node in self.nodes)) for kind in ("CPU", "GPU"))

    def places(self, per_worker: int) -> int:
        """Workers that fit, each within one node."""
        by_cpu = [int(node.get("CPU", 0) // per_worker) for node in self.nodes]
        by_gpu = [int(node.get("GPU", 0)) for node in self.nodes]
        return sum(map(min, by_cpu, by_gpu)) if self.use_gpu else sum(by_cpu)

    def cores_each(self, workers: int) -> int:
        """The most cores that so many workers can each have; 1 where they don't fit at all."""
        return max((n for n in range(1, self.cpus + 1) if self.places(n) >= workers), default=1)
