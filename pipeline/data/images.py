"""What each kind of image file becomes: an 8-bit RGB array, or a reason why not."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from pipeline.storage import one_line
from sr_model.pixels import Pixels

Alpha = npt.NDArray[np.uint8]
"""(H, W) opacity, 8 bits."""

T = TypeVar("T")

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")  # and none of those that run programs, such as EPS

Image.MAX_IMAGE_PIXELS = None  # `decode` checks its own limit before anything is unpacked


class RejectedImageError(Exception):
    """A file that cannot be used; its text is the reason."""


def decode(content: bytes, max_pixels: int, as_stored: bool = False) -> Pixels:
    """Decode an image file.

    EXIF orientation is applied; 16 bits become 8 (the high byte); an embedded colour profile other than sRGB is
    converted to sRGB; grey, palette and CMYK become RGB; transparency is put on white; of an animation, the first
    image is taken.

    Args:
        content: the file.
        max_pixels: larger images are rejected before they are unpacked.
        as_stored: as benchmark protocols ask, ignore a colour profile, and leave one channel as (H, W, 1).

    Raises:
        RejectedImageError: if the file is no image, damaged, or too large.
    """
    return _decode(content, max_pixels, lambda image: _to_rgb(image, as_stored))


def decode_channels(content: bytes, max_pixels: int) -> tuple[Pixels, Alpha | None]:
    """As `decode`, but grey stays (H, W, 1), and transparency is given by itself.

    Raises:
        RejectedImageError: as `decode`.
    """
    return _decode(content, max_pixels, _split)


def _decode(content: bytes, max_pixels: int, convert: Callable[[Image.Image], T]) -> T:
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as file:
            if file.width * file.height > max_pixels:
                raise RejectedImageError(f"{file.width}x{file.height} is more than {max_pixels} pixels")
            file.load()
            ImageOps.exif_transpose(file, in_place=True)
            return convert(file)
    except RejectedImageError:
        raise
    except UnidentifiedImageError:
        if content[:4] in (b"II*\0", b"MM\0*"):
            return convert(_decode_tiff(content, max_pixels))
        raise RejectedImageError(_UNKNOWN) from None
    except Exception as error:  # Pillow's decoders raise many kinds of exceptions on damaged files
        raise RejectedImageError(f"cannot be decoded: {one_line(error)}") from None


def header(content: bytes) -> tuple[int, int]:
    """Width and height as the file's header states them, before its orientation is applied.

    Raises:
        RejectedImageError: if the file is no image.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as file:
            return file.size
    except Exception:  # as in `decode`
        if content[:4] in (b"II*\0", b"MM\0*"):
            height, width = _tiff_page(content).shape[:2]
            return width, height
        raise RejectedImageError(_UNKNOWN) from None


_UNKNOWN = "is no image of a known format (PNG, JPEG, WebP, TIFF, BMP)"


def _split(image: Image.Image) -> tuple[Pixels, Alpha | None]:
    alpha = None
    grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        alpha = np.asarray(rgba.getchannel("A"))
        image = image if grey else rgba.convert("RGB")
    if grey and not image.mode.startswith("I"):
        image = image.convert("L")
    return _to_rgb(image, as_stored=grey), alpha


def _to_rgb(image: Image.Image, as_stored: bool) -> Pixels:
    if image.mode.startswith("I"):
        wide = np.asarray(image)
        grey = (wide >> 8).astype(np.uint8) if wide.dtype == np.uint16 else (wide.clip(0, 65535) >> 8).astype(np.uint8)
        return grey[:, :, None] if as_stored else np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise RejectedImageError("has floating-point samples, expected 8 or 16 bits")
    if as_stored and image.mode == "L":
        return np.asarray(image)[:, :, None]
    profile = None if as_stored else image.info.get("icc_profile")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    if image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("RGB")
    image = _to_srgb(image, profile)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Apply a profile; one that is sRGB by its name, or cannot be read, is ignored."""
    if not profile:
        return image
    try:
        parsed = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(parsed).lower().replace(" ", ""):
            return image
        converted = ImageCms.profileToProfile(image, parsed, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return image
    return image if converted is None else converted


def _tiff_page(content: bytes) -> tifffile.TiffPage:
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            return file.pages.first
    except Exception as error:  # as in `decode`
        raise RejectedImageError(f"cannot be decoded: {one_line(error)}") from None


def _decode_tiff(content: bytes, max_pixels: int) -> Image.Image:
    """The kinds of TIFF that Pillow doesn't know, such as 16 bits of three channels."""
    page = _tiff_page(content)
    height, width = page.shape[:2]
    if height * width > max_pixels:
        raise RejectedImageError(f"{width}x{height} is more than {max_pixels} pixels")
    try:
        pixels = tifffile.imread(io.BytesIO(content), key=0)
    except Exception as error:  # as in `decode`
        raise RejectedImageError(f"cannot be decoded: {one_line(error)}") from None
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or pixels.dtype not in (np.uint8, np.uint16):
        raise RejectedImageError(f"has samples {pixels.dtype} of shape {pixels.shape}, expected RGB of 8 or 16 bits")
    eight_bit = (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
    return Image.fromarray(eight_bit)
