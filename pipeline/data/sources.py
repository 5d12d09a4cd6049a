"""List and read source images: named datasets, folders, files, patterns, archives and tables, local or at any URL."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pipeline import storage
from pipeline.data import archives, datasets, tables
from pipeline.data.images import EXTENSIONS
from pipeline.data.left_out import Leftovers, describe_left_out
from pipeline.data.listing import Listing, describe, list_files
from pipeline.data.locations import BuiltinLocation, FileLocation, Location
from pipeline.data.rejection import RejectedImageError, RejectionKind
from pipeline.data.source_images import SourceImage, SourceImages, merge_images
from pipeline.data.walks import in_parallel
from pipeline.downloads import download
from pipeline.settings import UserError
from pipeline.settings.fields import absolute_path
from pipeline.storage import printable

_SOURCES = 8
"""Sources that are listed at the same time."""


def list_images(sources: Sequence[str], cache: str) -> SourceImages:
    """List the images of all sources, sorted by name, as `merge` does.

    Args:
        sources: "builtin", "div2k" (or one part, "div2k/train", "div2k/valid"), folders, files, glob patterns, zip or
            tar archives, Parquet or CSV tables of URLs, and patterns of archives or tables, at local paths or fsspec
            URLs. A folder that holds archives, but no image, stands for its archives.
        cache: folder or URL that keeps downloaded archives.

    Raises:
        UserError: if a source does not exist or holds no image.
        OSError: if a download fails.
    """
    return merge(list_sources(sources, cache))


def list_sources(sources: Sequence[str], cache: str) -> list[Listing]:
    """List each of several sources, some of them at the same time; arguments and errors are those of `list_images`."""
    threads = ThreadPoolExecutor(_SOURCES, "source")
    try:
        here = len(sources) == 1
        calls = [None if here or _is_download(each) else threads.submit(list_source, each, cache) for each in sources]
        listings = [
            call.result() if call else list_source(source, cache) for source, call in zip(sources, calls, strict=True)
        ]
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
    for listing in listings:
        if not listing.images:
            left_out = describe_left_out(listing.left_out)
            raise UserError(
                f"source {printable(listing.source)} holds no image, expected files ending in {', '.join(EXTENSIONS)}"
                f"{left_out and f'; it has {left_out}'}"
            )
    return listings


def _is_download(source: str) -> bool:
    """Tell whether listing a source may show the progress of a download."""
    return datasets.is_named(source) or re.match("https?://", source) is not None


def merge(listings: Sequence[Listing]) -> SourceImages:
    """Return the images of all listings, sorted by name.

    If a name repeats an earlier one, it gets the number of its source as a prefix.
    """
    return merge_images([listing.images for listing in listings])


def list_source(source: str, cache: str, extensions: tuple[str, ...] = EXTENSIONS) -> Listing:
    """List one source; it may hold no image.

    Args:
        source: as for `list_images`.
        cache: as for `list_images`.
        extensions: lower-case endings of the files that are taken for images.

    Raises:
        UserError: if the source does not exist or cannot be listed.
        OSError: if a download fails.
    """
    if datasets.is_named(source):
        return datasets.list_named(source, cache)
    if archives.is_archive(source):
        if re.match("https?://", source):
            return archives.list_archive(download.fetch(source, cache), extensions)
        if _is_pattern(source):
            return _list_archives(source, extensions)
        if not _is_folder(source):
            return archives.list_archive(source, extensions)
    if tables.is_table(source):
        if _is_pattern(source):
            return _list_several(source, tables.ENDINGS, lambda table: tables.list_table(_url(table), extensions))
        if not _is_folder(source):
            return tables.list_table(source, extensions)
    listing = list_files(source, extensions)
    if not listing.images and any(archives.may_be_archive(entry.name) for entry in listing.left_out):
        return _list_archives(source, extensions)
    return listing


def _list_archives(source: str, extensions: tuple[str, ...]) -> Listing:
    """List the images in the archives of a folder or pattern; the name of an image begins with that of its archive."""

    def list_one(archive: SourceImage) -> Listing:
        listing = archives.list_archive(_url(archive), extensions)
        images = (replace(image, name=f"{archive.name}/{image.name}") for image in listing.images)
        left_out = [replace(entry, name=f"{archive.name}/{entry.name}") for entry in listing.left_out]
        return Listing(listing.source, SourceImages.of(images), left_out)

    return _list_several(source, archives.ENDINGS, list_one)


def _list_several(source: str, endings: tuple[str, ...], list_one: Callable[[SourceImage], Listing]) -> Listing:
    """List the archives or tables of a folder or pattern, many at the same time, as one source."""
    found = list_files(source, endings)
    listings = list(in_parallel(list_one, found.images))
    left_out = Leftovers(entry for listing in [found, *listings] for entry in listing.left_out)
    return Listing(source, merge(listings), left_out.entries())


def _url(file: SourceImage) -> str:
    assert isinstance(file.location, FileLocation)
    return file.location.url


def _is_pattern(source: str) -> bool:
    """Tell whether a path or URL with such signs as "*" names nothing that exists."""
    return any(sign in source for sign in "*?[") and not storage.exists(absolute_path(source))


def _is_folder(source: str) -> bool:
    fs, path = storage.locate(absolute_path(source))
    try:
        return bool(fs.isdir(path))
    except Exception:  # a store does not answer; reading the archive tries again and says why
        return False


def read_bytes(location: Location, max_bytes: int | None = None) -> bytes:
    """Read an image file.

    Args:
        location: the location of its `SourceImage`.
        max_bytes: a larger file is rejected before it is read or decompressed.

    Raises:
        RejectedImageError: if it is too large, or a damaged or encrypted member of an archive.
        OSError: if it cannot be read.
    """
    if isinstance(location, BuiltinLocation):
        return datasets.read_builtin(location)
    if max_bytes is not None:
        size = storage.size(location.url) if isinstance(location, FileLocation) else location.size
        if size and size > max_bytes:
            detail = f"has {size} bytes, more than an image of max_pixels can have"
            raise RejectedImageError(RejectionKind.TOO_LARGE, detail)
    if not isinstance(location, FileLocation):
        return archives.read_member(location)
    fs, path = storage.locate(location.url)
    if storage.is_local(fs) and Path(path).exists() and not Path(path).is_file():
        raise OSError(f"{location} is no regular file")
    content = storage.read(location.url)
    if content is None:
        raise FileNotFoundError(f"{location} is gone")
    return content


def is_unchanged(location: Location, version: str) -> bool:
    """Tell whether a local file still has the version that its `SourceImage` states, without reading it.

    Args:
        location: the location of the `SourceImage`.
        version: its version.

    Returns:
        False if that is unknown, as it is for files elsewhere and members of archives.
    """
    if not isinstance(location, FileLocation):
        return False
    fs, path = storage.locate(location.url)
    with suppress(FileNotFoundError):
        return storage.is_local(fs) and describe("", location, fs.info(path)).version == version
    return False


def byte_limit(max_pixels: int) -> int:
    """Return the size of an uncompressed 16-bit RGBA file of so many pixels, with room for metadata."""
    return 8 * max_pixels + 2**26
