"""Where images come from: installed packages, DIV2K, folders, files, patterns and archives, local or at any URL."""

from __future__ import annotations

import importlib.util
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import fsspec

from pipeline import storage
from pipeline.data.images import EXTENSIONS, RejectedImageError
from pipeline.settings import UserError
from pipeline.storage import download, one_line

# Colour photographs inside packages that this project depends on: package, file. The two motorcycle images are a
# stereo pair: a held-out pattern must match both or none.
_BUILTIN = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "coffee": ("skimage", "data/coffee.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "grace_hopper": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    "motorcycle_left": ("skimage", "data/motorcycle_left.png"),
    "motorcycle_right": ("skimage", "data/motorcycle_right.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
}


class Archive(NamedTuple):
    """A file on the web."""

    url: str
    size: int
    sha256: str


# Sizes and checksums: github.com/tensorflow/datasets, tensorflow_datasets/url_checksums/div2k.txt.
DIV2K = {
    "train": Archive(
        "https://data.vision.ee.ethz.ch/cvl/DIV2K/DIV2K_train_HR.zip",
        3530603713,
        "9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335",
    ),
    "valid": Archive(
        "https://data.vision.ee.ethz.ch/cvl/DIV2K/DIV2K_valid_HR.zip",
        448993893,
        "20dd31fd84d777bc1cf5d6b7654a3f569c0aec74458ae094122ad1d0489900fc",
    ),
}
"""The official HR archives of DIV2K (Agustsson and Timofte, CVPR workshops 2017): 800 and 100 images."""

_ZIP = (".zip",)
_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_BUILTIN_SCHEME = "builtin://"


@dataclass(frozen=True)
class SourceImage:
    """An image file, not yet opened."""

    name: str
    """Path inside its source, with extension; unique within the listing."""
    url: str
    """Absolute path, fsspec URL, builtin://NAME, or zip://MEMBER::ARCHIVE (tar:// alike)."""
    version: str
    """Changes with the content: size, and modification time, ETag or checksum."""
    bytes: int


def list_images(sources: Sequence[str], cache: str) -> list[SourceImage]:
    """List the images of all sources, sorted by name; names of later sources that repeat one get a prefix.

    Args:
        sources: "builtin", "div2k" (or one part, "div2k/train", "div2k/valid"), folders, files, glob patterns, zip or
            tar archives; local paths or fsspec URLs.
        cache: folder or URL for archives that are downloaded.

    Raises:
        UserError: if a source doesn't exist, cannot be downloaded or holds no image.
    """
    found: dict[str, SourceImage] = {}
    for number, source in enumerate(sources):
        images = _list(source, cache)
        if not images:
            raise UserError(f"source {source} holds no image, expected files ending in {', '.join(EXTENSIONS)}")
        for image in images:
            name = image.name
            while name in found:
                name = f"{number}/{name}"
            found[name] = replace(image, name=name)
    return [found[name] for name in sorted(found)]


def read_bytes(url: str) -> bytes:
    """The content of an image file.

    Raises:
        RejectedImageError: if it is a damaged or encrypted member of an archive.
        OSError: if it cannot be read.
    """
    if url.startswith(_BUILTIN_SCHEME):
        return _builtin_path(url.removeprefix(_BUILTIN_SCHEME)).read_bytes()
    member, _, archive = url.rpartition("::")
    if not member:
        content = storage.read(url)
        if content is None:
            raise FileNotFoundError(f"{url} is gone")
        return content
    kind, _, path = member.partition("://")
    try:
        return storage.patiently(archive, lambda: bytes(_open_archive(kind, archive).cat_file(path)), _BAD_MEMBER)
    except _BAD_MEMBER as error:
        raise RejectedImageError(f"cannot be read from its archive: {one_line(error)}") from None


@dataclass(frozen=True)
class BenchmarkImage:
    """A ground truth and, where the set brings one, its published LR file."""

    name: str
    hr: str
    lr: str | None
    version: str
    """Changes with the files' content."""


def find_benchmark(name: str, source: str, scale: int, cache: str) -> list[BenchmarkImage]:
    """List a benchmark set in one of the layouts that people have.

    - `HR/` or `GTmod12/` beside `LR_bicubic/X4/` or `LRbicx4/`, files named alike or with `x4` appended;
    - `image_SRF_4/*_HR.png` beside `*_LR.png`, or such files alone;
    - images, whose LR is then made here.

    Raises:
        UserError: if there is no such folder, it holds no image, or lacks the LR file of some HR one.
    """
    images = _list(source, cache)
    if not images:
        raise UserError(f"benchmark {name}: {source} holds no image, expected HR/ and LR*/ or images")
    hr: dict[str, SourceImage] = {}
    lr: dict[str, SourceImage] = {}
    for image in images:
        path = PurePosixPath(image.name)
        parent, stem = str(path.parent), path.stem
        if parent.endswith(("HR", "GTmod12")):
            hr[stem] = image
        elif parent.endswith((f"LRbicx{scale}", f"LR_bicubic/X{scale}")):
            lr[stem.removesuffix(f"x{scale}")] = image
        elif pair := re.fullmatch(rf"(.+)_SRF_{scale}_(HR|LR)", stem):
            (hr if pair[2] == "HR" else lr)[pair[1]] = image
    if not hr:
        return [BenchmarkImage(PurePosixPath(p.name).stem, p.url, None, p.version) for p in images]
    missing = sorted(set(hr) - set(lr))
    if lr and missing:
        raise UserError(f"benchmark {name}: {source} has no LR file for {', '.join(missing)}")
    return [
        BenchmarkImage(stem, p.url, lr[stem].url, f"{p.version} {lr[stem].version}")
        if lr
        else BenchmarkImage(stem, p.url, None, p.version)
        for stem, p in sorted(hr.items())
    ]


def _list(source: str, cache: str) -> list[SourceImage]:
    if source == "builtin":
        return _list_builtin()
    name, _, part = source.partition("/")
    if name == "div2k":
        if part not in ("", *DIV2K):
            raise UserError(f"source {source} is unknown, expected div2k, div2k/train or div2k/valid")
        archives = [DIV2K[part]] if part else list(DIV2K.values())
        return [
            image
            for archive in archives
            for image in _list_archive(download.fetch(archive.url, cache, archive.size, archive.sha256))
        ]
    if source.lower().endswith(_ZIP + _TAR):
        web = re.match("https?://", source)
        return _list_archive(download.fetch(source, cache) if web else source)
    return _list_files(source)


def _list_builtin() -> list[SourceImage]:
    images = []
    for name in _BUILTIN:
        path = _builtin_path(name)
        size = path.stat().st_size
        images.append(SourceImage(f"{name}{path.suffix}", f"{_BUILTIN_SCHEME}{name}", str(size), size))
    return images


def _builtin_path(name: str) -> Path:
    package, file = _BUILTIN[name]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"the built-in image {name} needs the package {package}: install it")
    return Path(spec.origin).parent / file


def _list_files(source: str) -> list[SourceImage]:
    fs, path = fsspec.url_to_fs(_absolute(source))

    def find() -> tuple[str, dict[str, dict[str, Any]]]:
        if any(sign in source for sign in "*?["):
            return str(PurePosixPath(path).parent), fs.glob(path, detail=True)
        info = fs.info(path)
        if info["type"] == "file":
            return str(PurePosixPath(path).parent), {path: info}
        return path, fs.find(path, detail=True)

    try:
        root, details = storage.patiently(_absolute(source), find)
    except FileNotFoundError:
        raise UserError(f"source {source} does not exist, expected a folder, archive, file or glob pattern") from None
    except (OSError, ValueError) as error:
        raise UserError(f"source {source} cannot be listed: {one_line(error)}") from None
    local = "file" in fs.protocol
    return [
        _describe(root, path, path if local else fs.unstrip_protocol(path), info)
        for path, info in _images(details.items())
    ]


def _list_archive(source: str) -> list[SourceImage]:
    """The images in a zip or tar archive, which are read out of it without unpacking it."""
    kind = "zip" if source.lower().endswith(_ZIP) else "tar"
    archive = _absolute(source)
    _open_archive.cache_clear()  # the file may have changed since
    try:
        details = storage.patiently(archive, lambda: _open_archive(kind, archive).find("", detail=True), _BAD_MEMBER)
    except FileNotFoundError:
        raise UserError(f"source {source} does not exist, expected a {kind} archive") from None
    except (OSError, *_BAD_MEMBER) as error:
        reason = one_line(error)
        raise UserError(f"source {source} cannot be read: {reason}, expected a whole {kind} archive") from None
    return [_describe("", path, f"{kind}://{path}::{archive}", info) for path, info in _images(details.items())]


_BAD_MEMBER = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError)
"""What damaged or encrypted archives raise, `NotImplementedError` included."""


@lru_cache(maxsize=8)
def _open_archive(kind: str, archive: str) -> fsspec.AbstractFileSystem:
    compression = _COMPRESSION.get(PurePosixPath(archive.lower()).suffix)
    return fsspec.filesystem(kind, fo=archive, **({"compression": compression} if compression else {}))


_COMPRESSION = {".gz": "gzip", ".tgz": "gzip", ".bz2": "bz2", ".xz": "xz"}
"""Of a tar archive; its members are then best read in order, since a step back begins at the start."""


def _absolute(source: str) -> str:
    return source if "://" in source else str(Path(source).expanduser().absolute())


def _images(items: Iterable[tuple[str, dict[str, Any]]]) -> Iterable[tuple[str, dict[str, Any]]]:
    for path, info in sorted(items):
        hidden = PurePosixPath(path).name.startswith(".")
        if info["type"] == "file" and path.lower().endswith(EXTENSIONS) and not hidden:
            yield path, info


def _describe(root: str, path: str, url: str, info: dict[str, Any]) -> SourceImage:
    marks = ("ETag", "CRC", "mtime", "LastModified", "chksum")
    mark = next((info[mark] for mark in marks if info.get(mark)), "")
    try:
        name = str(PurePosixPath(path).relative_to(root))
    except ValueError:  # a glob pattern over several folders
        name = path
    size = int(info["size"] or 0)
    return SourceImage(name, url, f"{size} {mark}", size)
