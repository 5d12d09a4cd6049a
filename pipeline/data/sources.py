"""List and read source images: named datasets, folders, files, glob patterns and archives, local or at any URL."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from pipeline import storage
from pipeline.data import archives, datasets
from pipeline.data.images import EXTENSIONS
from pipeline.data.listing import Listing, SourceImage, describe, describe_left_out, list_files
from pipeline.data.locations import BuiltinLocation, FileLocation, Location
from pipeline.data.rejection import RejectedImageError, RejectionKind
from pipeline.downloads import download
from pipeline.settings import UserError
from pipeline.settings.fields import absolute_path
from pipeline.storage import printable


def list_images(sources: Sequence[str], cache: str) -> list[SourceImage]:
    """List the images of all sources, sorted by name, as `merge` does.

    Args:
        sources: "builtin", "div2k" (or one part, "div2k/train", "div2k/valid"), folders, files, glob patterns, zip or
            tar archives, at local paths or fsspec URLs.
        cache: folder or URL that keeps downloaded archives.

    Raises:
        UserError: if a source does not exist or holds no image.
        OSError: if a download fails.
    """
    return merge(list_sources(sources, cache))


def list_sources(sources: Sequence[str], cache: str) -> list[Listing]:
    """List each of several sources; arguments and errors are those of `list_images`."""
    listings = []
    for source in sources:
        listing = list_source(source, cache)
        if not listing.images:
            left_out = describe_left_out(listing.left_out)
            raise UserError(
                f"source {printable(source)} holds no image, expected files ending in {', '.join(EXTENSIONS)}"
                f"{left_out and f'; it has {left_out}'}"
            )
        listings.append(listing)
    return listings


def merge(listings: Sequence[Listing]) -> list[SourceImage]:
    """Return the images of all listings, sorted by name.

    If a name repeats an earlier one, it gets the number of its source as a prefix.
    """
    merged: dict[str, SourceImage] = {}
    for number, listing in enumerate(listings):
        for image in listing.images:
            name = image.name
            while name in merged:
                name = f"{number}/{name}"
            merged[name] = replace(image, name=name)
    return [merged[name] for name in sorted(merged)]


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
        if not _is_folder(source):
            return archives.list_archive(source, extensions)
    return list_files(source, extensions)


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
