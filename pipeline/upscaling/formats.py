"""The formats that an enlarged image can be written in, by the ending of a file's name."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import features

from pipeline.settings import UserError
from pipeline.storage import printable


@dataclass(frozen=True)
class Format:
    """The properties of an image that files of a format can hold."""

    pillow: str
    """Pillow's name of the format."""
    deep: bool = False
    """True for 16 bits a sample."""
    transparent: bool = True
    grey: bool = True
    """True for grey pixels and profiles of grey; otherwise grey becomes RGB."""
    metadata: bool = True
    """True for an ICC profile and EXIF metadata."""
    lossy: bool = False
    """True if a quality can be chosen."""
    animated: bool = False
    """True for several frames that are shown one after the other."""
    longest: int | None = None
    """Largest width and height in pixels."""


_JPEG = Format("JPEG", transparent=False, lossy=True, longest=65_500)
_TIFF = Format("TIFF", deep=True)

FORMATS = {
    ".png": Format("PNG", deep=True, animated=True),
    ".webp": Format("WEBP", grey=False, lossy=True, animated=True, longest=16_383),
    ".avif": Format("AVIF", grey=False, lossy=True, longest=65_536),
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".gif": Format("GIF", grey=False, metadata=False, animated=True, longest=65_535),
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".bmp": Format("BMP", transparent=False, metadata=False),
}
"""Formats by lower-case ending."""


def check_format(suffix: str, name: str | None = None) -> None:
    """Check that files with this ending can be written.

    Args:
        suffix: the lower-case ending.
        name: the file's name, for the message.

    Raises:
        UserError: if they cannot.
    """
    if suffix not in FORMATS:
        endings = ", ".join(FORMATS)
        raise UserError(f"{printable(name or suffix)} is not the name of an image, expected one that ends in {endings}")
    if suffix == ".avif" and not features.check("avif"):
        raise UserError("the installed Pillow cannot write .avif files, expected another ending, such as .webp")
