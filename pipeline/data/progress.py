"""Print how far a long stage has come."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

T = TypeVar("T")

_PRINT_EVERY_S = 2
_RATE_OVER_S = 30


class Work(NamedTuple):
    """The work behind one result."""

    images: int
    bytes: int
    """Size of the image files."""
    rejected: int
    """Images that were rejected."""


def print_progress(results: Iterable[T], work: Callable[[T], Work], total: int, stage: str) -> Iterator[T]:
    """Pass results on and print the progress every few seconds, with the rates of the last half minute.

    Args:
        results: the results of a stage, as they become ready.
        work: returns the work behind a result.
        total: number of images in all results.
        stage: name of the stage.

    Yields:
        The results.
    """
    start = printed = time.monotonic()
    done = size = rejected = 0
    recent: deque[tuple[float, int, int]] = deque([(start, 0, 0)])
    for result in results:
        yield result
        finished = work(result)
        done += finished.images
        size += finished.bytes
        rejected += finished.rejected
        now = time.monotonic()
        if done < total and now - printed < _PRINT_EVERY_S:
            continue
        printed = now
        recent.append((now, done, size))
        while len(recent) > 2 and now - recent[0][0] > _RATE_OVER_S:
            recent.popleft()
        seconds = max(now - recent[0][0], 1e-9)
        rate, megabytes = (done - recent[0][1]) / seconds, (size - recent[0][2]) / seconds / 1e6
        print(
            f"{stage}: {done} of {total} images, {rate:.1f} images/s, {megabytes:.1f} MB/s, "
            f"{rejected} rejected, about {(total - done) / max(rate, 1e-9):.0f} s left",
            flush=True,
        )
