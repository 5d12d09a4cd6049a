"""Where pictures come from, and how each kind of file becomes an RGB array.

A source is "builtin", a folder, a file or a glob pattern; folders and files are local paths or any fsspec URL.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import fsspec
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.config import UserError

Pixels = npt.NDArray[np.uint8]
"""(H, W, 3) RGB, or (H, W, 1) grey, 8 bits."""

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")

# Colour photographs inside packages that this project depends on: package, file. The two motorcycle pictures are a
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
Image.MAX_IMAGE_PIXELS = None  # `decode` checks its own limit before anything is unpacked

_BUILTIN_SCHEME = "builtin://"


@dataclass(frozen=True)
class Picture:
    """A picture file, not yet opened."""

    name: str
    """Path inside its source, with extension; unique within the listing."""
    url: str
    """Absolute path, fsspec URL, or builtin://NAME."""
    version: str
    """Changes with the content: size and modification time or ETag."""


class RejectedPictureError(Exception):
    """A file that cannot be used; its text is the reason."""


def find_pictures(sources: Sequence[str]) -> list[Picture]:
    """List the pictures of all sources, sorted by name; names of later sources that repeat one get a suffix.

    Raises:
        UserError: if a source doesn't exist or holds no picture.
    """
    found: dict[str, Picture] = {}
    for number, source in enumerate(sources):
        pictures = _builtin() if source == "builtin" else _list_folder(source)
        if not pictures:
            raise UserError(f"source {source} holds no picture, expected files ending in {', '.join(EXTENSIONS)}")
        for picture in pictures:
            name = picture.name
            while name in found:
                name = f"{number}/{name}"
            found[name] = Picture(name, picture.url, picture.version)
    return [found[name] for name in sorted(found)]


def read_bytes(url: str) -> bytes:
    """The file's content."""
    if url.startswith(_BUILTIN_SCHEME):
        return _builtin_path(url.removeprefix(_BUILTIN_SCHEME)).read_bytes()
    with fsspec.open(url, "rb") as file:
        content: bytes = file.read()
    return content


def decode(content: bytes, max_pixels: int, grey_ok: bool = False) -> Pixels:
    """Decode a picture file.

    EXIF orientation is applied; 16 bits become 8 (the high byte); grey, palette and CMYK become RGB; transparency is
    put on white; of an animation, the first picture is taken.

    Args:
        content: the file.
        max_pixels: larger pictures are rejected before they are unpacked.
        grey_ok: leave a one-channel picture as (H, W, 1), as benchmark protocols ask.

    Raises:
        RejectedPictureError: if the file is no picture, damaged, or too large.
    """
    try:
        with Image.open(io.BytesIO(content)) as file:
            if file.width * file.height > max_pixels:
                raise RejectedPictureError(f"{file.width}x{file.height} is more than {max_pixels} pixels")
            file.load()
            picture: Image.Image = ImageOps.exif_transpose(file)
    except RejectedPictureError:
        raise
    except UnidentifiedImageError:
        raise RejectedPictureError("is no picture of a known format") from None
    except Exception as error:  # Pillow's decoders raise many kinds of exceptions on damaged files
        raise RejectedPictureError(f"cannot be decoded: {' '.join(str(error).split())}") from None
    if picture.mode.startswith("I;16") or picture.mode == "I":
        wide = np.asarray(picture).astype(np.int64)
        picture = Image.fromarray((wide.clip(0, 65535) >> 8).astype(np.uint8))
    if picture.mode == "L" and grey_ok:
        return np.asarray(picture)[:, :, None]
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(picture.convert("RGB"))


def header(content: bytes) -> tuple[int, int]:
    """Width and height as the file's header states them, before its orientation is applied.

    Raises:
        RejectedPictureError: if the file is no picture.
    """
    try:
        with Image.open(io.BytesIO(content)) as file:
            return file.size
    except Exception:  # as in `decode`
        raise RejectedPictureError("is no picture of a known format") from None


@dataclass(frozen=True)
class BenchmarkPicture:
    """A ground truth and, where the set brings one, its published LR file."""

    name: str
    hr: str
    lr: str | None
    version: str
    """Changes with the files' content."""


def find_benchmark(name: str, folder: str, scale: int) -> list[BenchmarkPicture]:
    """List a benchmark set: HR/ beside LR_bicubic/X4 or LRbicx4, or a folder of HR pictures whose LR is made here.

    Raises:
        UserError: if the folder doesn't exist, holds no picture, or lacks the LR file of some HR one.
    """
    stems = {PurePosixPath(p.name): p for p in _list_folder(folder)}
    if not stems:
        raise UserError(f"benchmark {name}: {folder} holds no picture, expected HR/ and LR*/ or pictures")
    hr = {path.stem: picture for path, picture in stems.items() if path.parts[0] == "HR"}
    if not hr:
        return [BenchmarkPicture(path.stem, p.url, None, p.version) for path, p in sorted(stems.items())]
    lr_folders = (f"LRbicx{scale}", f"LR_bicubic/X{scale}")
    lr = {p.stem.removesuffix(f"x{scale}"): picture for p, picture in stems.items() if str(p.parent) in lr_folders}
    missing = sorted(set(hr) - set(lr))
    if lr and missing:
        raise UserError(f"benchmark {name}: {folder} has no LR file for {', '.join(missing)}")
    return [
        BenchmarkPicture(stem, p.url, lr[stem].url, f"{p.version} {lr[stem].version}")
        if lr
        else BenchmarkPicture(stem, p.url, None, p.version)
        for stem, p in sorted(hr.items())
    ]


def _builtin() -> list[Picture]:
    pictures = []
    for name in _BUILTIN:
        path = _builtin_path(name)
        pictures.append(Picture(f"{name}{path.suffix}", f"{_BUILTIN_SCHEME}{name}", str(path.stat().st_size)))
    return pictures


def _builtin_path(name: str) -> Path:
    package, file = _BUILTIN[name]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"the built-in picture {name} needs the package {package}: install it")
    return Path(spec.origin).parent / file


def _list_folder(source: str) -> list[Picture]:
    fs, root = fsspec.url_to_fs(source if "://" in source else str(Path(source).expanduser().absolute()))
    try:
        if any(sign in source for sign in "*?["):
            root, details = str(PurePosixPath(root).parent), fs.glob(root, detail=True)
        elif not fs.exists(root):
            raise UserError(f"source {source} does not exist, expected a folder, file or glob pattern of pictures")
        elif fs.isfile(root):
            root, details = str(PurePosixPath(root).parent), {root: fs.info(root)}
        else:
            details = fs.find(root, detail=True)
    except (OSError, ValueError) as error:
        raise UserError(f"source {source} cannot be listed: {error}") from None
    return [_describe(fs, root, path, info) for path, info in _files(details.items())]


def _files(items: Iterable[tuple[str, dict[str, object]]]) -> Iterable[tuple[str, dict[str, object]]]:
    for path, info in sorted(items):
        if (
            info["type"] == "file"
            and path.lower().endswith(EXTENSIONS)
            and not PurePosixPath(path).name.startswith(".")
        ):
            yield path, info


def _describe(fs: fsspec.AbstractFileSystem, root: str, path: str, info: dict[str, object]) -> Picture:
    mark = info.get("ETag") or info.get("mtime") or info.get("LastModified") or ""
    try:
        name = str(PurePosixPath(path).relative_to(root))
    except ValueError:  # a glob pattern over several folders
        name = path
    url = path if "file" in fs.protocol else fs.unstrip_protocol(path)
    return Picture(name, url, f"{info['size']} {mark}")
