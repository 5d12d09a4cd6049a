"""The inventory: content hash and size of every source image, cached so that unchanged files are not read again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline import storage
from pipeline.data import sources
from pipeline.data.images import read_size
from pipeline.data.listing import SourceImage
from pipeline.data.locations import Location, identity
from pipeline.data.manifest import ImageRecord
from pipeline.data.progress import Work, image_progress
from pipeline.data.rejection import RejectedImageError, Rejection, RejectionKind
from pipeline.settings import Config
from pipeline.storage import one_line, printable

if TYPE_CHECKING:
    from pipeline import cluster

INSPECTION = 2
"""Version of how an image is inspected; a rejection by another version is not reused."""
_SAVE_EVERY_S = 30


@dataclass(frozen=True)
class InspectedImage:
    """An image file that has been read once: its hash, and the size that its header states."""

    name: str
    location: Location
    version: str
    """The version of the `SourceImage` when it was read."""
    sha256: str
    """Hash of the file; empty if it could not be read."""
    width: int
    """Pixels, before the EXIF orientation is applied."""
    height: int
    bytes: int
    """Size of the file."""
    rejected: Rejection | None

    def record(self, *, held_out: bool = False, tiles: int = 0, rejected: Rejection | None = None) -> ImageRecord:
        """Return the image's record for the manifest."""
        return ImageRecord(self.name, self.sha256, self.width, self.height, tiles, held_out, rejected or self.rejected)


def take_inventory(config: Config, images: Sequence[SourceImage], cache_url: str) -> list[InspectedImage]:
    """Inspect all images; only new and changed files are read.

    Args:
        config: names the cluster and limits the size of files by `preprocess.max_pixels`.
        images: the listed files.
        cache_url: file that keeps the results between runs.

    Returns:
        The inspected images, in the order of `images`.
    """
    from pipeline import cluster  # here, because `inspect` and what uses its results need no Ray

    cache = _load_cache(cache_url)
    known = {image.name: cache[key] for image in images if (key := identity(image.location)) in cache}
    unknown = [image for image in images if image.name not in known or not known[image.name].is_of(image)]
    read: dict[str, InspectedImage] = {}
    if unknown:
        cluster.connect(config)
        limit = sources.byte_limit(config.preprocess.max_pixels)
        tasks = [InspectionTask(image, limit) for image in unknown]
        results = cluster.map_tasks(inspect, tasks, seconds=_seconds, memory=_memory)
        saved = time.monotonic()
        try:
            with image_progress("inventory", len(unknown)) as add:
                for result in results:
                    inspected = _failed(result) if isinstance(result, cluster.TaskError) else result
                    read[inspected.name] = inspected
                    if inspected.sha256:  # otherwise it could not be read, so the next run tries again
                        cache[identity(inspected.location)] = _CachedImage.of(inspected)
                    add(_work(inspected))
                    if time.monotonic() - saved > _SAVE_EVERY_S:
                        _save_cache(cache_url, cache)
                        saved = time.monotonic()
        finally:  # an interrupted inventory keeps its results, too
            _save_cache(cache_url, cache)
    return [read.get(image.name) or known[image.name].inspected(image) for image in images]


@dataclass(frozen=True)
class _CachedImage:
    """An entry of inventory.json."""

    name: str
    url: str
    """Path or URL of the file, or of the archive that it is in, as `identity` returns it."""
    version: str
    sha256: str
    width: int
    height: int
    bytes: int
    rejected: Rejection | None
    member: str = ""
    """Name in the archive."""
    inspection: int = 1
    """The version of `INSPECTION` that made this entry."""

    @classmethod
    def of(cls, image: InspectedImage) -> _CachedImage:
        """Return the entry for an image that was read."""
        url, member = identity(image.location)
        reason = image.rejected and replace(image.rejected, detail=printable(image.rejected.detail))
        return cls(
            image.name, url, image.version, image.sha256, image.width, image.height, image.bytes, reason, member,
            INSPECTION,
        )  # fmt: skip

    def is_of(self, image: SourceImage) -> bool:
        """Tell whether the image has not changed since, and would be judged in the same way."""
        return self.version == image.version and (self.rejected is None or self.inspection == INSPECTION)

    def inspected(self, image: SourceImage) -> InspectedImage:
        """Return the result for an image whose version is that of this entry."""
        size = self.width, self.height
        return InspectedImage(image.name, image.location, self.version, self.sha256, *size, self.bytes, self.rejected)


@dataclass(frozen=True)
class InspectionTask:
    """A file to inspect."""

    image: SourceImage
    max_bytes: int
    """A larger file is rejected without reading it."""


def inspect(task: InspectionTask) -> InspectedImage:
    """Hash a file and read the size from its header; it runs as a Ray Data task."""
    image, digest, size = task.image, "", (0, 0)
    rejected = None
    try:
        if image.bytes > task.max_bytes:
            raise RejectedImageError(
                RejectionKind.TOO_LARGE, f"has {image.bytes} bytes, more than an image of max_pixels can have"
            )
        content = sources.read_bytes(image.location)
        digest = hashlib.sha256(content).hexdigest()
        size = read_size(content)
    except RejectedImageError as error:
        rejected = error.rejection
        if rejected.kind is RejectionKind.UNREADABLE:
            digest = ""  # the next run tries again
    except OSError as error:
        rejected = Rejection(RejectionKind.UNREADABLE, f"cannot be read: {one_line(error)}")
    return InspectedImage(image.name, image.location, image.version, digest, *size, image.bytes, rejected)


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


def _load_cache(url: str) -> dict[tuple[str, str], _CachedImage]:
    """Return the cached results by the identity of the location; a damaged cache counts as empty."""
    cached = storage.read_expendable(url, list[_CachedImage], "all images are read again")
    return {(entry.url, entry.member): entry for entry in cached or []}


def _save_cache(url: str, cache: dict[tuple[str, str], _CachedImage]) -> None:
    storage.write_document(url, list(cache.values()))
