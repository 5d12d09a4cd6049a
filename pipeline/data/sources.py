"""List and read source images: named datasets, folders, files, glob patterns and archives, local or at any URL."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from pipeline import storage
from pipeline.data import archives, datasets
from pipeline.data.images import EXTENSIONS
from pipeline.data.listing import SourceImage, list_files
from pipeline.settings import UserError
from pipeline.storage import download


def list_images(sources: Sequence[str], cache: str) -> list[SourceImage]:
    """List the images of all sources, sorted by name.

    If a later source repeats a name, its image's name gets the source's number as a prefix.

    Args:
        sources: "builtin", "div2k" (or one part, "div2k/train", "div2k/valid"), folders, files, glob patterns, zip or
            tar archives, at local paths or fsspec URLs.
        cache: folder or URL that keeps downloaded archives.

    Raises:
        UserError: if a source does not exist or holds no image.
        OSError: if a download fails.
    """
    listed: dict[str, SourceImage] = {}
    for number, source in enumerate(sources):
        images = list_source(source, cache)
        if not images:
            raise UserError(f"source {source} holds no image, expected files ending in {', '.join(EXTENSIONS)}")
        for image in images:
            name = image.name
            while name in listed:
                name = f"{number}/{name}"
            listed[name] = replace(image, name=name)
    return [listed[name] for name in sorted(listed)]


def list_source(source: str, cache: str) -> list[SourceImage]:
    """List the images of one source as `list_images` does; the list may be empty."""
    if datasets.is_named(source):
        return datasets.list_named(source, cache)
    if archives.is_archive(source):
        on_web = re.match("https?://", source)
        return archives.list_archive(download.fetch(source, cache) if on_web else source)
    return list_files(source)


def read_bytes(url: str) -> bytes:
    """Read an image file by the URL of its `SourceImage`.

    Raises:
        RejectedImageError: if it is a damaged or encrypted member of an archive.
        OSError: if it cannot be read.
    """
    if datasets.is_builtin(url):
        return datasets.read_builtin(url)
    if archives.is_member(url):
        return archives.read_member(url)
    content = storage.read(url)
    if content is None:
        raise FileNotFoundError(f"{url} is gone")
    return content
