"""Run a blocking call in a thread while the main thread keeps working."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def run_in_thread(call: Callable[[], T], name: str, meanwhile: Callable[[], None], every_s: float = 1.0) -> T:
    """Run a call in a daemon thread and wait for it, calling `meanwhile` in this thread at regular intervals.

    Ray Train and Ray Tune replace the interrupt handler if they run in the main thread, so they run in another one.

    Args:
        call: the blocking call.
        name: name of the thread.
        meanwhile: called about every `every_s` seconds, and once more after the call has ended.
        every_s: seconds between two calls of `meanwhile`.

    Returns:
        The value that `call` returned.

    Raises:
        BaseException: the exception that `call` raised.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    ended = False
    while not ended:
        thread.join(every_s)
        ended = not thread.is_alive()
        meanwhile()
    return outcome.result()
