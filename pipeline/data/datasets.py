"""Datasets that are known by name: the built-in photographs and DIV2K."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

from pipeline.data.archives import list_archive
from pipeline.data.listing import Listing
from pipeline.data.locations import BuiltinLocation
from pipeline.data.source_images import SourceImage
from pipeline.downloads import download
from pipeline.settings import UserError

# Colour photographs in packages that this project depends on: package and file. The two motorcycle images are a stereo
# pair, so a held-out pattern must match both or neither.
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


class WebArchive(NamedTuple):
    """An archive on the web."""

    url: str
    size: int
    """Bytes."""
    sha256: str


# Sizes and checksums are those of github.com/tensorflow/datasets, tensorflow_datasets/url_checksums/div2k.txt.
DIV2K = {
    "train": WebArchive(
        "https://data.vision.ee.ethz.ch/cvl/DIV2K/DIV2K_train_HR.zip",
        3530603713,
        "9d0b9c463f6e35b6c62cc6a930ee2224f670b34c1df841a57670f9acf0f6c335",
    ),
    "valid": WebArchive(
        "https://data.vision.ee.ethz.ch/cvl/DIV2K/DIV2K_valid_HR.zip",
        448993893,
        "20dd31fd84d777bc1cf5d6b7654a3f569c0aec74458ae094122ad1d0489900fc",
    ),
}
"""The official HR archives of DIV2K (Agustsson and Timofte, CVPR workshops 2017), 800 and 100 images."""


def is_named(source: str) -> bool:
    """Tell if a source is a dataset's name, perhaps with a part, such as "div2k/valid"."""
    return source == "builtin" or source.split("/")[0] == "div2k"


def list_named(source: str, cache: str) -> Listing:
    """List the images of a dataset that is known by name; DIV2K is downloaded first.

    Args:
        source: "builtin", "div2k", "div2k/train" or "div2k/valid".
        cache: folder or URL that keeps downloads.

    Raises:
        UserError: if there is no such part, or a built-in photograph's package is not installed.
        OSError: if the download fails.
    """
    if source == "builtin":
        return Listing(source, _list_builtin(), [])
    part = source.partition("/")[2]
    if part not in ("", *DIV2K):
        raise UserError(f"source {source} is unknown, expected div2k, div2k/train or div2k/valid")
    archives = [DIV2K[part]] if part else list(DIV2K.values())
    listed = [list_archive(download.fetch(archive.url, cache, archive.size, archive.sha256)) for archive in archives]
    return Listing(source, [p for part in listed for p in part.images], [p for part in listed for p in part.left_out])


def read_builtin(location: BuiltinLocation) -> bytes:
    """Read a built-in photograph.

    Raises:
        OSError: if it cannot be read.
    """
    try:
        return _builtin_path(location.name).read_bytes()
    except UserError as error:
        raise FileNotFoundError(str(error)) from None


def _list_builtin() -> list[SourceImage]:
    images = []
    for name in _BUILTIN:
        path = _builtin_path(name)
        size = path.stat().st_size
        images.append(SourceImage(f"{name}{path.suffix}", BuiltinLocation(name), str(size), size))
    return images


def _builtin_path(name: str) -> Path:
    package, file = _BUILTIN[name]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"the built-in image {name} needs the package {package}: install it")
    return Path(spec.origin).parent / file
