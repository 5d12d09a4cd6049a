"""Connect to a Ray cluster, or start a local one."""

from __future__ import annotations

import logging
import threading
import warnings
from concurrent.futures import Future

import ray
import ray.data

from pipeline import terminal
from pipeline.cluster.access import check_access, unreachable
from pipeline.cluster.tokens import protect_token
from pipeline.settings import Config, UserError
from pipeline.settings.command_line import stop_like_interrupt
from pipeline.settings.places import ray_address
from pipeline.storage import one_line

_FEW_CORES = 8
"""Cores up to which one operator of Ray Data may use all of them."""
_pending: list[Future[None]] = []
"""The connection that `connect_ahead` has begun, until `connect` takes it."""


def connect(config: Config) -> None:
    """Connect to the configured cluster, or start a local Ray that ends with this process.

    Further calls in the same process do nothing.

    Raises:
        UserError: if the cluster does not answer or refuses this machine's token, or a local Ray does not start.
    """
    if _pending or not ray.is_initialized():
        with terminal.stage("", "connecting to the Ray cluster" if ray_address(config) else "Ray is starting"):
            if _pending:
                _pending.pop().result()
            if not ray.is_initialized():
                _connect(config)
    stop_like_interrupt()  # ray.init has installed a handler of its own
    configure()


def connect_ahead(config: Config) -> None:
    """Start connecting in the background, to save time before a later call of `connect`.

    If the connection fails, `connect` raises the error.
    """
    if ray.is_initialized() or _pending:
        return
    connected: Future[None] = Future()

    def run() -> None:
        try:
            _connect(config)
            connected.set_result(None)
        except Exception as error:
            connected.set_exception(error)
        # Ray's processes die with the thread that started them, so this thread must not end.
        threading.Event().wait()

    threading.Thread(target=run, name="connect", daemon=True).start()
    _pending.append(connected)


def _connect(config: Config) -> None:
    address = ray_address(config)
    if address:
        check_access(address)
    else:
        protect_token()
    local = {"include_dashboard": False, "object_store_memory": config.cluster.object_store_mb * 2**20}
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
            **({} if address else local),
        )
    except Exception as error:  # Ray raises a plain Exception, for example if a node does not start in time
        if address:
            raise unreachable(address, error) from None
        raise UserError(
            f"Ray does not start on this machine ({one_line(error, 200)}): rerun the same command when the machine is "
            "less busy, or name a cluster with --cluster.address HOST:PORT"
        ) from None


def _is_small() -> bool:
    """Tell whether the connected Ray is one node with a few cores."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return len(nodes) == 1 and nodes[0].get("CPU", 0) <= _FEW_CORES


def configure() -> None:
    """Apply this process's settings for a Ray that is already connected."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    if _is_small():  # otherwise a single operator gets only one of two cores
        context.op_resource_reservation_enabled = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # warns that progress bars are off
    warnings.filterwarnings("ignore", module="ray")
