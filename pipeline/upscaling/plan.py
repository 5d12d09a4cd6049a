"""Find the images that a command enlarges, and name the results. This module imports neither torch nor Ray."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from pipeline import storage
from pipeline.data.images import READABLE_EXTENSIONS
from pipeline.data.left_out import describe_left_out
from pipeline.data.listing import Listing, list_files
from pipeline.data.locations import FileLocation, identity
from pipeline.data.source_images import SourceImage
from pipeline.data.sources import list_source
from pipeline.data.tables import is_table
from pipeline.downloads import download
from pipeline.settings import UserError
from pipeline.settings.fields import absolute_path
from pipeline.storage import one_line, printable
from pipeline.upscaling.formats import FORMATS, check_format
from pipeline.upscaling.journal import Journal

_WEB = re.compile("https?://")
_ARCHIVE_ENDING = re.compile(r"\.(zip|tar|t[gbx]z2?|tar\.\w+)$", re.IGNORECASE)


@dataclass(frozen=True)
class Job:
    """An image and the file that its enlarged form is written to."""

    image: SourceImage
    """Its version changes with its place and its content."""
    name: str
    """Path of the result in the output folder."""
    target: str
    """Absolute path or URL of the result."""

    @property
    def suffix(self) -> str:
        """Lower-case ending of the target, which chooses the format."""
        return PurePosixPath(self.target).suffix.lower()


@dataclass(frozen=True)
class Plan:
    """The images that a command enlarges, and where it writes the results."""

    jobs: list[Job]
    folder: str | None
    """Absolute path or URL of the output folder; None if the output is a single file."""
    summaries: list[str]
    """A line for each input that leaves something out."""


@dataclass(frozen=True)
class Naming:
    """How the files in an output folder are named."""

    suffix: str = ""
    """Text between the name of an image and its ending."""
    ending: str | None = None
    """Ending of all files, with its dot; None for that of each image."""


def make_plan(inputs: Sequence[str], out: str, naming: Naming, cache: str, scratch: str) -> Plan:
    """List the images of all inputs, and name their results.

    If `out` is an existing folder, ends with "/" or has no ending, or if the inputs are not one single image, it is a
    folder. A folder keeps its structure below `out`; if there are several inputs, each folder and archive among them
    gets a folder of its own name.

    Args:
        inputs: files, folders, glob patterns and archives, at local paths or fsspec URLs; or http(s) URLs of images and
            archives.
        out: a file, or a folder or prefix of an object store.
        naming: how files in a folder are named.
        cache: folder or URL that keeps downloaded archives.
        scratch: local folder for downloaded images.

    Raises:
        UserError: if an input does not exist or holds no image, or a result cannot be written.
    """
    if _WEB.match(out):
        raise UserError(f"{printable(out)} is an address on the web, expected a file, a folder or an s3:// prefix")
    place = _absolute(out)
    single = len(inputs) == 1 and _is_single(inputs[0])
    if single and not _is_folder(out):
        check_target(inputs[0], out)
        if naming != Naming():
            raise UserError(f"{printable(out)} is a file, expected a folder, whose files --suffix and --format name")
        return Plan([Job(_single(inputs[0], scratch), PurePosixPath(place).name, place)], None, [])
    place = place.rstrip("/") or "/"
    results = _Results(place)
    images, summaries = [], []
    for source in inputs:
        if is_table(source) and not Path(source).is_dir():
            raise UserError(f"{printable(source)} is a table, expected images, folders, patterns or archives")
        if _is_single(source):
            images.append(_single(source, scratch))
            continue
        listing = list_source(_absolute_if_local(source), cache, READABLE_EXTENSIONS)
        found = results.removed_from(listing.images, source)
        _check_listing(listing, source, len(found))
        if listing.left_out:
            summaries.append(listing.summary())
        top = _top(source) if len(inputs) > 1 else ""
        listed = list(listing.images)
        images += [_renamed(image, top, listed) for image in found]
    _check_folder(place, out)
    return Plan(_jobs(images, place, naming, results), place, summaries)


class _Results:
    """The results of earlier commands in an output folder, which are not taken for images.

    Args:
        folder: absolute path or URL of the folder.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._root = f"{storage.real_name(folder).rstrip('/')}/"

    def removed_from(self, images: Sequence[SourceImage], source: str) -> list[SourceImage]:
        """Return the images of an input without results: all files in the folder, if it lies inside of the input."""
        root = "" if _WEB.match(source) else f"{storage.real_name(_root(source)).rstrip('/')}/"
        inside = bool(root) and self._root != root and self._root.startswith(root)
        return [image for image in images if not self.has(_place(image), everything=inside)]

    def has(self, place: str | None, everything: bool = False) -> bool:
        """Tell whether a place is in the folder, and named by its journal unless every file there is a result."""
        if place is None or not place.startswith(self._root):
            return False
        return everything or storage.unicode_name(place.removeprefix(self._root)) in self._recorded

    @cached_property
    def _recorded(self) -> set[str]:
        return Journal(self._folder).results()


def _check_folder(place: str, out: str) -> None:
    """Check that an output folder is there, or can be made."""
    if storage.is_url(place) or (Path(place).is_dir() and os.access(place, os.W_OK)):
        return
    names_image = PurePosixPath(place).suffix.lower() in FORMATS
    if not Path(place).is_dir() and (names_image or os.path.lexists(place)):
        raise UserError(f"{printable(out)} is not a folder, expected one for the enlarged images")
    parent = next(folder for folder in (Path(place), *Path(place).parents) if os.path.lexists(folder))
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        reason = "there is no permission to write to" if parent.is_dir() else "a folder cannot be made in"
        raise UserError(f"{printable(out)} cannot be written: {reason} {printable(str(parent))}")


def check_target(source: str, out: str) -> None:
    """Check that the result of one image can be written to a file.

    Raises:
        UserError: if the name has no ending of an image, or the file cannot be written there.
    """
    check_format(PurePosixPath(out).suffix.lower(), out)
    place, image = _absolute(out), _absolute_if_local(source)
    file = Path(place)
    if storage.is_url(place) or storage.is_url(image):
        same = not _WEB.match(image) and storage.real_name(image) == storage.real_name(place)
    else:
        same = file.exists() and file.samefile(image)
    if same:
        raise UserError(f"{printable(out)} is the input image, expected another name for the upscaled image")
    if storage.is_url(place):
        return
    if not file.parent.is_dir():
        raise UserError(f"{printable(out)} cannot be written: {printable(str(file.parent))} is not a folder")
    if not os.access(file.parent, os.W_OK):
        raise UserError(
            f"{printable(out)} cannot be written: there is no permission to write to {printable(str(file.parent))}"
        )


def _jobs(images: Sequence[SourceImage], folder: str, naming: Naming, earlier: _Results) -> list[Job]:
    """Name the results; an image that an earlier command has made of another one is left out."""
    jobs: dict[str, Job] = {}
    for image in images:
        path = PurePosixPath(image.name)
        ending = naming.ending or (path.suffix if path.suffix.lower() in FORMATS else ".png")
        check_format(ending.lower(), ending)
        name = f"{path.with_suffix('')}{naming.suffix}{ending}"
        job = Job(image, name, f"{folder.rstrip('/')}/{name}")
        if (other := jobs.get(job.target)) and other.image.location != image.location:
            raise UserError(
                f"{other.image.location} and {image.location} would both become {printable(job.target)}: expected "
                "images of different names; enlarge them into two folders"
            )
        jobs[job.target] = job
    writers = {storage.real_name(target): job for target, job in jobs.items()}
    kept = []
    for job in jobs.values():
        place = _place(job.image)
        writer = writers.get(place) if place else None
        if writer is None:
            kept.append(job)
        elif writer is job or not earlier.has(place):
            raise UserError(
                f"{printable(writer.target)} is an input image, expected another folder for the enlarged images, or "
                "--suffix TEXT"
            )
    return kept


def _place(image: SourceImage) -> str | None:
    """Return the real path or URL of an image; None for a member of an archive."""
    return storage.real_name(image.location.url) if isinstance(image.location, FileLocation) else None


def _renamed(image: SourceImage, top: str, listed: Sequence[SourceImage]) -> SourceImage:
    """Name an image by its path in the output folder: below `top`, and never outside."""
    name = image.name
    if name.startswith("/") or storage.is_url(name):  # a pattern that matches files in several folders
        folders = [posixpath.dirname(other.name) for other in listed]
        name = posixpath.relpath(name, posixpath.commonpath(folders) if len(set(folders)) > 1 else folders[0])
    parts = [part for part in f"{top}/{name}".split("/") if part not in ("", ".", "..")]
    return replace(image, name="/".join(parts), version=f"{identity(image.location)} {image.version}")


def _top(source: str) -> str:
    """Return the name of a folder or archive; "" for a pattern."""
    place = urlsplit(source).path if _WEB.match(source) else _absolute(source)
    if any(sign in place for sign in "*?[") and not Path(place).exists():
        return ""
    return _ARCHIVE_ENDING.sub("", PurePosixPath(place.rstrip("/")).name)


def _check_listing(listing: Listing, source: str, found: int) -> None:
    if listing.images and not found:
        raise UserError(f"{printable(source)} holds only results of earlier commands, expected other images")
    if not found:
        left_out = describe_left_out(listing.left_out)
        raise UserError(
            f"{printable(source)} holds no image, expected files ending in {', '.join(READABLE_EXTENSIONS)}"
            f"{left_out and f'; it has {left_out}'}"
        )


def _root(source: str) -> str:
    """Return the absolute path or URL of a folder, or of the folder in which a pattern begins."""
    parts = _absolute_if_local(source).rstrip("/").split("/")
    sign = next((number for number, part in enumerate(parts) if any(sign in part for sign in "*?[")), len(parts))
    return "/".join(parts[:sign]) or "/"


def _is_single(source: str) -> bool:
    """Tell whether an input is one image, rather than a folder, a pattern or an archive."""
    path = urlsplit(source).path if _WEB.match(source) else source
    if _ARCHIVE_ENDING.search(path):
        return False
    if _WEB.match(source):
        return True
    place = _absolute(source)
    if storage.is_url(place):
        return path.lower().endswith(READABLE_EXTENSIONS) and not any(sign in path for sign in "*?[")
    return Path(place).is_file()


def _single(source: str, scratch: str) -> SourceImage:
    """Return an image that was named by itself; one on the web is downloaded."""
    if _WEB.match(source):
        name = PurePosixPath(unquote(urlsplit(source).path)).name or "image"
        file = download.fetch(source, scratch)
        version = f"{storage.fingerprint(source)} {download.recorded_sha256(file)}"
        return SourceImage(storage.unicode_name(name), FileLocation(file), version, storage.size(file) or 0)
    place = _absolute(source)
    if storage.is_url(place):
        images = list_files(place, READABLE_EXTENSIONS).images
        if len(images) != 1:
            name = printable(source)
            raise UserError(f"{name} is a folder, expected an image, or {name}/* for the images in the folder")
        return _renamed(images[0], "", images)
    found = Path(place).stat()
    version = f"{place} {found.st_size} {found.st_mtime}"
    return SourceImage(storage.unicode_name(Path(place).name), FileLocation(place), version, found.st_size)


def _is_folder(out: str) -> bool:
    """Tell whether an output for one image is a folder."""
    if out.endswith("/") or not PurePosixPath(out).suffix:
        return True
    place = _absolute(out)
    return not storage.is_url(place) and Path(place).is_dir()


def _absolute_if_local(source: str) -> str:
    return source if _WEB.match(source) else _absolute(source)


def _absolute(text: str) -> str:
    """Return the absolute path of a local file or folder, or a URL whose file system is installed."""
    try:
        place = absolute_path(text)
    except ValueError as error:
        raise UserError(f"cannot use {printable(text)!r}: expected {error}") from None
    try:
        fs, path = storage.locate(place)
    except (ValueError, ImportError, OSError) as error:
        raise UserError(
            f"cannot use {one_line(text)}: {one_line(error).rstrip('.')}; expected a path, or the URL of a file system "
            "whose package is installed, such as s3://"
        ) from None
    return path if storage.is_local(fs) else place
