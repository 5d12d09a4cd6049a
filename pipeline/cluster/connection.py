"""Ray: connect to a cluster or start a local one, and read off what it has."""

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
        reason = one_line(error, 200)
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
