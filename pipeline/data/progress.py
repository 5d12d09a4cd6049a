"""Show how far a stage over images has come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from pipeline import terminal


class Work(NamedTuple):
    """The work behind one result."""

    images: int
    bytes: int
    """Size of the image files."""
    rejected: int
    """Images that were rejected."""


@contextmanager
def image_progress(stage: str, total: int) -> Iterator[Callable[[Work], None]]:
    """Show the images, the rates, the rejected images and the time left of a stage while the block runs.

    Args:
        stage: name of the stage.
        total: number of images in all results.

    Yields:
        A function to call with the work behind each result.
    """
    from pipeline import cluster  # here, because what reads images needs no Ray

    done = Work(0, 0, 0)
    with terminal.stage(stage, total=total, unit="images") as shown:

        def add(work: Work) -> None:
            nonlocal done
            done = Work(*map(sum, zip(done, work, strict=True)))
            rates = ""
            if done.images < total and (rate := shown.rate):
                rates = f"{rate:.1f} images/s, {rate * done.bytes / max(done.images, 1) / 1e6:.1f} MB/s, "
            shown.update(done.images, details=f"{rates}{done.rejected} rejected")
            cluster.metrics.count_images(stage, work.images, work.rejected)

        yield add
