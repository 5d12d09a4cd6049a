"""GIF and AVIF files, which Pillow decodes; they are no images of a dataset."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image, features

from pipeline.data.formats.metadata import orientation
from pipeline.data.formats.raster import Raster, Samples, as_array, unsupported

_GIF = (b"GIF87a", b"GIF89a")
_AVIF = (b"avif", b"avis")
"""Brands of AVIF images and sequences."""
_LONGEST_BRANDS = 256


@dataclass(frozen=True)
class GifOrAvifFile:
    """A GIF or AVIF file whose header has been read."""

    content: bytes
    kind: str
    """Pillow's name of the format."""
    width: int
    height: int

    def read(self) -> Raster:
        """Decode the image, or the first frame of an animation."""
        with Image.open(io.BytesIO(self.content), formats=(self.kind,)) as file:
            file.load()
            samples, alpha = split_opacity(file)
            exif, profile = file.info.get("exif"), file.info.get("icc_profile")
            return Raster(samples, alpha, profile, orientation(exif, file.info.get("xmp")), exif)


def split_opacity(image: Image.Image) -> tuple[Samples, Samples | None]:
    """Return the samples of Pillow's image, (H, W, 1) grey or (H, W, 3), and its opacity, (H, W), or None."""
    clear = image.has_transparency_data
    grey = image.mode in ("L", "LA", "1")
    plain = image.convert(("LA" if grey else "RGBA") if clear else ("L" if grey else "RGB"))
    pixels = as_array(plain)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return (pixels[:, :, :-1], pixels[:, :, -1]) if clear else (pixels, None)


def is_gif_or_avif(content: bytes) -> bool:
    """Tell by its first bytes if a file is a GIF or AVIF file."""
    return content.startswith(_GIF) or _is_avif(content)


def open_gif_or_avif(content: bytes) -> GifOrAvifFile:
    """Read the header of a GIF or AVIF file.

    Raises:
        RejectedImageError: if the installed Pillow cannot decode AVIF files.
        OSError: if the header is damaged.
    """
    kind = "AVIF" if _is_avif(content) else "GIF"
    if kind == "AVIF" and not features.check("avif"):
        raise unsupported("is an AVIF file, which the installed Pillow cannot decode")
    with Image.open(io.BytesIO(content), formats=(kind,)) as file:
        return GifOrAvifFile(content, kind, file.width, file.height)


def _is_avif(content: bytes) -> bool:
    brands = content[8 : min(int.from_bytes(content[:4]), _LONGEST_BRANDS)]
    return content[4:8] == b"ftyp" and any(brand in brands for brand in _AVIF)
