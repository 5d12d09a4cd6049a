"""Ray: connect to a cluster or start a local one, and read off what it has."""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from pipeline.commandline import stop_like_interrupt
from pipeline.config import Config, UserError

# Before Ray is imported: no usage report leaves the machine unasked, and fewer lines that only concern Ray's authors.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING", "0")
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process less; a lost worker is made good anyway
os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # MLflow has it all
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the table of `trials` is the one to read
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # said by `tune`, in a sentence
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # a held-out score isn't in every report

import ray
import ray.data


def connect(config: Config) -> None:
    """Connect to the configured cluster, or start a local Ray that ends with this process; once is enough.

    Raises:
        UserError: if the cluster doesn't answer.
    """
    if _ahead:
        _ahead.pop().result()
    if not ray.is_initialized():
        _connect(config)
    stop_like_interrupt()  # ray.init put its own handler in place
    configure()


def connect_ahead(config: Config) -> None:
    """Begin to connect in the background: seconds that the caller has for something else before it calls `connect`."""
    if ray.is_initialized() or _ahead:
        return
    connected: Future[None] = Future()

    def run() -> None:
        try:
            _connect(config)
            connected.set_result(None)
        except Exception as error:  # raised by `connect`
            connected.set_exception(error)
        threading.Event().wait()  # the kernel ends Ray's processes with the thread that started them

    threading.Thread(target=run, name="connect", daemon=True).start()
    _ahead.append(connected)


_ahead: list[Future[None]] = []


def _connect(config: Config) -> None:
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    local = address in (None, "local")
    try:
        _reach(address or "local")
        ray.init(
            address="local" if local else address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
            **(
                {
                    # Its API tells Ray Train that a trial's controller is gone, whose cores stay reserved until then.
                    "include_dashboard": config.tune.scheduler != "none",
                    "object_store_memory": config.cluster.object_store_mb * 2**20,
                }
                if local
                else {}
            ),
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"no Ray cluster answers at {address}: {reason}; expected HOST:PORT of a head, often port 6379, or nothing"
        ) from None


def configure() -> None:
    """Settings of this process for a Ray that is connected."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.op_resource_reservation_enabled = False  # it leaves a single operator one of two cores
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # says that there are no progress bars
    warnings.filterwarnings("ignore", module="ray")


def _reach(address: str) -> None:
    """Open a connection to HOST:PORT and close it: Ray itself would try for minutes."""
    match = re.fullmatch(r"(?:ray://)?([^/:]+):(\d+)", address)
    if match:
        socket.create_connection((match[1], int(match[2])), timeout=10).close()


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


def map_rows(rows: list[dict[str, Any]], task: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Run a task on every row with Ray Data, one core each, and yield the results as they come, in any order."""
    if not rows:
        return
    blocks = min(len(rows), 1000)
    dataset = ray.data.from_items(rows, override_num_blocks=blocks).map(task, num_cpus=1)
    yield from dataset.iter_rows()
