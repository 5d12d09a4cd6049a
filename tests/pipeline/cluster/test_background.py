import threading
import time

import pytest

from pipeline.cluster import run_in_thread


def test_the_value_comes_back_and_meanwhile_is_called_at_intervals_and_at_the_end() -> None:
    threads: list[str] = []
    calls: list[bool] = []
    ended = threading.Event()

    def call() -> int:
        threads.append(threading.current_thread().name)
        time.sleep(0.2)
        ended.set()
        return 7

    assert run_in_thread(call, "worker", lambda: calls.append(ended.is_set()), every_s=0.05) == 7
    assert threads == ["worker"]
    assert calls[0] is False
    assert calls[-1] is True


def test_an_exception_is_raised_in_the_callers_thread() -> None:
    ended: list[bool] = []

    def call() -> None:
        raise ValueError("no such file")

    with pytest.raises(ValueError, match="no such file"):
        run_in_thread(call, "worker", lambda: ended.append(True))
    assert ended
