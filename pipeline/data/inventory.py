"""The inventory: content hash and size of every source image, cached so that unchanged files are not read again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipeline.data import sources
from pipeline.data.failures import PAUSES_S, Rejects
from pipeline.data.images import read_size
from pipeline.data.inspected import InspectedImage, InspectedImages, found_rows
from pipeline.data.inventory_files import InventoryFiles
from pipeline.data.progress import Work, image_progress
from pipeline.data.random_numbers import Ints
from pipeline.data.rejection import RejectedImageError, Rejection, RejectionKind
from pipeline.data.source_images import SourceImage, SourceImages
from pipeline.settings import Config
from pipeline.storage import one_line

if TYPE_CHECKING:
    from pipeline import cluster

_ROUND = 2**17
"""Images whose tasks exist at the same time."""


def take_inventory(config: Config, images: Iterable[SourceImage], cache_url: str) -> InspectedImages:
    """Inspect all images; only new and changed files are read.

    Args:
        config: names the cluster and limits the size of files by `preprocess.max_pixels`.
        images: the listed files, each with a name of its own.
        cache_url: folder that keeps the results between runs.

    Returns:
        The inspected images, in the order of `images`.

    Raises:
        UserError: if files are read, as soon as more images are rejected than `preprocess.max_reject_share` allows.
    """
    images = SourceImages.of(images)
    cache = InventoryFiles(cache_url)
    known = cache.find(images)
    unknown = np.flatnonzero(known < 0)
    found = cache.take(known[known >= 0])
    if len(unknown):
        rejects = Rejects(config, len(images))
        bad = found["kind"].is_valid()
        rejected = images.take(np.flatnonzero(known >= 0)[bad.to_numpy()])
        rejects.add([image.record() for image in InspectedImages(rejected, found.filter(bad))])
        try:
            new = _read(config, images, unknown, cache, rejects)
        finally:  # an interrupted inventory keeps its results, too
            cache.close()
        order = np.argsort(np.concatenate([np.flatnonzero(known >= 0), unknown]))
        found = pa.concat_tables([found, new]).take(order)
    return InspectedImages(images, found)


def _read(config: Config, images: SourceImages, rows: Ints, cache: InventoryFiles, rejects: Rejects) -> pa.Table:
    """Inspect the images of some rows; return what was found in them, in the same order."""
    from pipeline import cluster  # here, because `inspect` and what uses its results need no Ray

    cluster.connect(config)
    limit = sources.byte_limit(config.preprocess.max_pixels)
    tables = []
    with image_progress("inventory", len(rows)) as add:
        for start in range(0, len(rows), _ROUND):
            tasks = [InspectionTask(image, limit) for image in images.take(rows[start : start + _ROUND])]
            read: dict[str, InspectedImage] = {}
            for result in cluster.map_tasks(inspect, tasks, seconds=_seconds, memory=_memory, pauses=PAUSES_S):
                inspected = _failed(result) if isinstance(result, cluster.TaskError) else result
                read[inspected.name] = inspected
                if inspected.sha256:  # otherwise it could not be read, so the next run tries again
                    cache.add(inspected)
                add(_work(inspected))
                if inspected.rejected:
                    rejects.add([inspected.record()])
            tables.append(found_rows([read[task.image.name] for task in tasks]))
    return pa.concat_tables(tables)


@dataclass(frozen=True)
class InspectionTask:
    """A file to inspect."""

    image: SourceImage
    max_bytes: int
    """A larger file is rejected without reading it."""


def inspect(task: InspectionTask) -> InspectedImage:
    """Hash a file and read the size from its header; it runs as a Ray Data task."""
    image, digest, size = task.image, "", (0, 0)
    length, rejected = image.bytes, None
    try:
        if image.bytes > task.max_bytes:
            raise RejectedImageError(
                RejectionKind.TOO_LARGE, f"has {image.bytes} bytes, more than an image of max_pixels can have"
            )
        content = sources.read_bytes(image.location, None if image.bytes else task.max_bytes)
        length = image.bytes or len(content)
        digest = hashlib.sha256(content).hexdigest()
        size = read_size(content)
    except RejectedImageError as error:
        rejected = error.rejection
        if rejected.kind is RejectionKind.UNREADABLE:
            digest = ""  # the next run tries again
    except OSError as error:
        rejected = Rejection(RejectionKind.UNREADABLE, f"cannot be read: {one_line(error)}")
    return InspectedImage(image.name, image.location, image.version, digest, *size, length, rejected)


def _seconds(task: InspectionTask) -> float:
    """Estimate the time of an inspection: a request to a store, or reading from a slow disk."""
    return 0.02 + task.image.bytes / 1e8


def _memory(task: InspectionTask) -> int:
    """Estimate the bytes of memory that an inspection takes, of which the file is the most."""
    return 2 * min(task.image.bytes, task.max_bytes)


def _failed(error: cluster.TaskError[InspectionTask]) -> InspectedImage:
    """Return the result for an image whose inspection raised an exception."""
    image = error.task.image
    rejected = Rejection(RejectionKind.UNREADABLE, f"cannot be inspected: {error.reason}")
    return InspectedImage(image.name, image.location, image.version, "", 0, 0, image.bytes, rejected)


def _work(image: InspectedImage) -> Work:
    return Work(images=1, bytes=image.bytes, rejected=int(image.rejected is not None))
