"""Which images a command enlarges, and where each result is written. This module imports neither torch nor Ray."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from pipeline import storage
from pipeline.data.images import MORE_EXTENSIONS
from pipeline.data.listing import Listing, SourceImage, describe_left_out, list_files
from pipeline.data.locations import FileLocation, identity
from pipeline.data.sources import list_source
from pipeline.downloads import download
from pipeline.settings import UserError
from pipeline.settings.fields import absolute_path
from pipeline.storage import printable
from pipeline.upscaling.formats import FORMATS, check_format

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
    """What a command enlarges."""

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
    place = _absolute(out)
    if _WEB.match(place):
        raise UserError(f"{printable(out)} is an address on the web, expected a file, a folder or an s3:// prefix")
    single = len(inputs) == 1 and _is_single(inputs[0])
    if single and not _is_folder(out):
        check_target(inputs[0], out)
        if naming != Naming():
            raise UserError(f"{printable(out)} is a file, expected a folder, whose files --suffix and --format name")
        return Plan([Job(_single(inputs[0], scratch), PurePosixPath(place).name, place)], None, [])
    place = place.rstrip("/") or "/"
    images, summaries = [], []
    for source in inputs:
        if _is_single(source):
            images.append(_single(source, scratch))
            continue
        listing = list_source(_absolute_if_local(source), cache, MORE_EXTENSIONS)
        inside = place.startswith(f"{_root(source)}/")  # so that results of an earlier command are not taken for images
        found = [image for image in listing.images if not (inside and _is_below(image, place))]
        _check_listing(listing, source, len(found))
        if listing.left_out:
            summaries.append(listing.summary())
        top = _top(source) if len(inputs) > 1 else ""
        images += [_renamed(image, top, listing.images) for image in found]
    _check_folder(place, out)
    return Plan(_jobs(images, place, naming), place, summaries)


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
    if storage.is_url(out):
        return
    file = Path(_absolute(out))
    if file.exists() and not storage.is_url(source) and file.samefile(_absolute(source)):
        raise UserError(f"{printable(out)} is the input image, expected another name for the upscaled image")
    if not file.parent.is_dir():
        raise UserError(f"{printable(out)} cannot be written: {printable(str(file.parent))} is not a folder")
    if not os.access(file.parent, os.W_OK):
        raise UserError(
            f"{printable(out)} cannot be written: there is no permission to write to {printable(str(file.parent))}"
        )


def _jobs(images: Sequence[SourceImage], folder: str, naming: Naming) -> list[Job]:
    """Name the results; an image that is the result of another one is left out."""
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
    results = {target for target, job in jobs.items() if _place(job.image) != target}
    kept = [job for job in jobs.values() if _place(job.image) not in results]
    for job in kept:
        if _place(job.image) == job.target:
            raise UserError(
                f"{printable(job.target)} is an input image, expected another folder for the enlarged images, or "
                "--suffix TEXT"
            )
    return kept


def _place(image: SourceImage) -> str | None:
    """Return the path or URL of an image; None for a member of an archive."""
    return image.location.url if isinstance(image.location, FileLocation) else None


def _is_below(image: SourceImage, folder: str) -> bool:
    return (_place(image) or "").startswith(f"{folder}/")


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
    if not found:
        left_out = describe_left_out(listing.left_out)
        raise UserError(
            f"{printable(source)} holds no image, expected files ending in {', '.join(MORE_EXTENSIONS)}"
            f"{left_out and f'; it has {left_out}'}"
        )


def _root(source: str) -> str:
    """Return the absolute path or URL of a folder, or of the folder in which a pattern begins."""
    parts = _absolute_if_local(source).rstrip("/").split("/")
    sign = next((number for number, part in enumerate(parts) if any(sign in part for sign in "*?[")), len(parts))
    return "/".join(parts[:sign])


def _is_single(source: str) -> bool:
    """Tell whether an input is one image, rather than a folder, a pattern or an archive."""
    path = urlsplit(source).path if _WEB.match(source) else source
    if _ARCHIVE_ENDING.search(path):
        return False
    if _WEB.match(source):
        return True
    if storage.is_url(source):
        return path.lower().endswith(MORE_EXTENSIONS) and not any(sign in path for sign in "*?[")
    return Path(_absolute(source)).is_file()


def _single(source: str, scratch: str) -> SourceImage:
    """Return an image that was named by itself; one on the web is downloaded."""
    if _WEB.match(source):
        name = PurePosixPath(unquote(urlsplit(source).path)).name or "image"
        file = download.fetch(source, scratch)
        version = f"{storage.fingerprint(source)} {download.recorded_sha256(file)}"
        return SourceImage(storage.unicode_name(name), FileLocation(file), version, storage.size(file) or 0)
    place = _absolute(source)
    if storage.is_url(source):
        (image,) = list_files(place, MORE_EXTENSIONS).images
        return _renamed(image, "", [image])
    found = Path(place).stat()
    version = f"{place} {found.st_size} {found.st_mtime}"
    return SourceImage(storage.unicode_name(Path(place).name), FileLocation(place), version, found.st_size)


def _is_folder(out: str) -> bool:
    """Tell whether an output for one image is a folder."""
    if out.endswith("/") or not PurePosixPath(out).suffix:
        return True
    if storage.is_url(out):
        return False
    return Path(_absolute(out)).is_dir()


def _absolute_if_local(source: str) -> str:
    return source if _WEB.match(source) else _absolute(source)


def _absolute(text: str) -> str:
    try:
        return absolute_path(text)
    except ValueError as error:
        raise UserError(f"cannot use {printable(text)!r}: expected {error}") from None
