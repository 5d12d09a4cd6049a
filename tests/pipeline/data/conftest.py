import shutil
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from benchmarks.simulated import Objects, serve


@pytest.fixture
def store() -> Iterator[Objects]:
    """An empty store that answers at once."""
    objects = Objects()
    serve(objects)
    yield objects
    serve(Objects())


class DiskUsage(NamedTuple):
    """Space on a disk, with the attributes of the result of `shutil.disk_usage`."""

    total: float
    used: float
    free: float


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """A function that sets the size and the free bytes of every disk; half of 1 TB is free at first."""

    def set_usage(total: float, free: float) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(total, total - free, free))

    set_usage(1e12, 5e11)
    return set_usage
