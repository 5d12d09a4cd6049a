"""Connect to a Ray cluster, or start a local one."""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import warnings
from concurrent.futures import Future

import ray
import ray.data

from pipeline.settings import Config, UserError
from pipeline.settings.command_line import stop_like_interrupt
from pipeline.storage import one_line

_REACH_TIMEOUT_S = 10

_pending: list[Future[None]] = []
"""The connection that `connect_ahead` has begun, until `connect` takes it."""


def connect(config: Config) -> None:
    """Connect to the configured cluster, or start a local Ray that ends with this process.

    Further calls in the same process do nothing.

    Raises:
        UserError: if the cluster does not answer.
    """
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
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    local = address in (None, "local")
    try:
        _check_reachable(address or "local")
        ray.init(
            address="local" if local else address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
            **(
                {
                    "include_dashboard": False,
                    "object_store_memory": config.cluster.object_store_mb * 2**20,
                }
                if local
                else {}
            ),
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"no Ray cluster answers at {address}: {one_line(error, 200)}; expected HOST:PORT of a head node (the "
            "port is often 6379), or no address to start a local Ray"
        ) from None


def configure() -> None:
    """Apply this process's settings for a Ray that is already connected."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.op_resource_reservation_enabled = False  # with it, a single operator gets only one of two cores
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # warns that progress bars are off
    warnings.filterwarnings("ignore", module="ray")


def _check_reachable(address: str) -> None:
    """Open a connection to HOST:PORT and close it, because Ray itself would retry for minutes."""
    match = re.fullmatch(r"(?:ray://)?([^/:]+):(\d+)", address)
    if match:
        socket.create_connection((match[1], int(match[2])), timeout=_REACH_TIMEOUT_S).close()
