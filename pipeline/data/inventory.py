"""The inventory: content hash and size of every source image, cached so that unchanged files are not read again."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline import cluster, storage
from pipeline.data import sources
from pipeline.data.images import read_size
from pipeline.data.listing import SourceImage
from pipeline.data.manifest import ImageRecord
from pipeline.data.progress import Work, print_progress
from pipeline.data.rejection import RejectedImageError, Rejection, RejectionKind
from pipeline.settings import Config
from pipeline.storage import one_line

_SAVE_EVERY_S = 30


@dataclass(frozen=True)
class InspectedImage:
    """An image file that has been read once: its hash, and the size that its header states."""

    name: str
    url: str
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
    cache = _load_cache(cache_url)
    unknown = [image for image in images if image.url not in cache or cache[image.url].version != image.version]
    if unknown:
        cluster.connect(config)
        limit = byte_limit(config.preprocess.max_pixels)
        results = cluster.map_tasks(inspect, [InspectionTask(image, limit) for image in unknown])
        saved = time.monotonic()
        try:
            for result in print_progress(results, _work, len(unknown), "inventory"):
                cache[result.url] = result
                if time.monotonic() - saved > _SAVE_EVERY_S:
                    _save_cache(cache_url, cache)
                    saved = time.monotonic()
        finally:  # an interrupted inventory keeps its results, too
            _save_cache(cache_url, cache)
    return [replace(cache[image.url], name=image.name) for image in images]


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
        content = sources.read_bytes(image.url)
        digest = hashlib.sha256(content).hexdigest()
        size = read_size(content)
    except RejectedImageError as error:
        rejected = error.rejection
    except OSError as error:
        rejected = Rejection(RejectionKind.UNREADABLE, f"cannot be read: {one_line(error)}")
    return InspectedImage(image.name, image.url, image.version, digest, *size, image.bytes, rejected)


def byte_limit(max_pixels: int) -> int:
    """Return the size of an uncompressed 16-bit RGBA file of so many pixels, with room for metadata."""
    return 8 * max_pixels + 2**26


def _work(image: InspectedImage) -> Work:
    return Work(images=1, bytes=image.bytes, rejected=int(image.rejected is not None))


def _load_cache(url: str) -> dict[str, InspectedImage]:
    """Return the cached results by the URL of the file; a damaged cache counts as empty."""
    try:
        cached = storage.read_document(url, list[InspectedImage])
    except storage.DamagedFileError as error:
        print(f"{error}; all images are read again", flush=True)
        cached = None
    return {image.url: image for image in cached or []}


def _save_cache(url: str, cache: dict[str, InspectedImage]) -> None:
    # A file without a hash could not be read, or was too large for this run's settings; the next run tries again.
    storage.write_document(url, [image for image in cache.values() if image.sha256])
