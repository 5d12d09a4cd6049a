"""Decode image files to 8-bit arrays, or reject them with a reason."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from pipeline.data.rejection import RejectedImageError, RejectionKind
from pipeline.storage import one_line
from sr_model.pixels import Pixels

Alpha = npt.NDArray[np.uint8]
"""Opacity, (H, W), from 0 (transparent) to 255 (opaque)."""

T = TypeVar("T")

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
"""Lower-case endings of the files that are taken for images."""
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")  # excludes formats that run programs, such as EPS
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*")

Image.MAX_IMAGE_PIXELS = None  # `decode` checks its own limit before it decompresses anything


def decode(content: bytes, max_pixels: int, as_stored: bool = False) -> Pixels:
    """Decode an image file to 8-bit RGB.

    EXIF orientation is applied. 16-bit samples are reduced to their high byte. An embedded colour profile other than
    sRGB is converted to sRGB. Grey, palette and CMYK images become RGB. Transparent images are put on white. Of an
    animation, only the first frame is decoded.

    Args:
        content: the file's bytes.
        max_pixels: larger images are rejected before they are decompressed.
        as_stored: ignore the colour profile and return a grey image as (H, W, 1), as benchmark protocols require.

    Returns:
        (H, W, 3) uint8; (H, W, 1) for a grey image if `as_stored` is set.

    Raises:
        RejectedImageError: if the file is no image, is damaged or is too large.
    """
    return _decode(content, max_pixels, lambda image: _to_rgb(image, as_stored))


def decode_channels(content: bytes, max_pixels: int) -> tuple[Pixels, Alpha | None]:
    """Decode an image file as `decode` does, but keep grey images grey and return transparency separately.

    Returns:
        (H, W, 3) uint8 or, for a grey image, (H, W, 1) uint8; and the opacity, or None if all of it is opaque.

    Raises:
        RejectedImageError: if the file is no image, is damaged or is too large.
    """
    return _decode(content, max_pixels, _split_alpha)


def _decode(content: bytes, max_pixels: int, convert: Callable[[Image.Image], T]) -> T:
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as file:
            _check_size(file.width, file.height, max_pixels)
            file.load()
            ImageOps.exif_transpose(file, in_place=True)
            return convert(file)
    except RejectedImageError:
        raise
    except UnidentifiedImageError:
        if content[:4] in _TIFF_SIGNATURES:
            return convert(_decode_tiff(content, max_pixels))
        raise _no_image() from None
    except Exception as error:  # Pillow's decoders raise many kinds of exceptions on damaged files
        raise _damaged(error) from None


def read_size(content: bytes) -> tuple[int, int]:
    """Return width and height from the file's header, before the EXIF orientation is applied.

    Raises:
        RejectedImageError: if the file is no image.
    """
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as file:
            return file.size
    except Exception:  # Pillow's parsers raise many kinds of exceptions on damaged files
        if content[:4] in _TIFF_SIGNATURES:
            height, width = _tiff_page(content).shape[:2]
            return width, height
        raise _no_image() from None


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise RejectedImageError(RejectionKind.TOO_LARGE, f"{width}x{height} is more than {max_pixels} pixels")


def _no_image() -> RejectedImageError:
    return RejectedImageError(RejectionKind.NO_IMAGE, "is no image of a known format (PNG, JPEG, WebP, TIFF, BMP)")


def _damaged(error: Exception) -> RejectedImageError:
    return RejectedImageError(RejectionKind.DAMAGED, f"cannot be decoded: {one_line(error)}")


def _split_alpha(image: Image.Image) -> tuple[Pixels, Alpha | None]:
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
        raise RejectedImageError(RejectionKind.UNSUPPORTED, "has floating-point samples, expected 8 or 16 bits")
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
    """Convert an image to sRGB; a profile that is named sRGB or cannot be read is ignored."""
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
    except Exception as error:  # tifffile raises many kinds of exceptions on damaged files
        raise _damaged(error) from None


def _decode_tiff(content: bytes, max_pixels: int) -> Image.Image:
    """Decode a kind of TIFF that Pillow cannot read, such as RGB with 16 bits a channel."""
    page = _tiff_page(content)
    height, width = page.shape[:2]
    _check_size(width, height, max_pixels)
    try:
        pixels = tifffile.imread(io.BytesIO(content), key=0)
    except Exception as error:  # tifffile raises many kinds of exceptions on damaged files
        raise _damaged(error) from None
    if pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or pixels.dtype not in (np.uint8, np.uint16):
        raise RejectedImageError(
            RejectionKind.UNSUPPORTED,
            f"has samples of type {pixels.dtype} and shape {pixels.shape}, expected RGB with 8 or 16 bits",
        )
    eight_bit = (pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels
    return Image.fromarray(eight_bit)
