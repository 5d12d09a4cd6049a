"""Decode image files, or reject them with a reason.

Formats are read in `formats`. docs/guides/data.md lists the memory that each of them takes and the limits of decoding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import UnidentifiedImageError

from pipeline.data.formats import bmp, directory, gif_avif, jpeg, png, tiff, webp
from pipeline.data.formats.colour import to_srgb
from pipeline.data.formats.metadata import density_in
from pipeline.data.formats.raster import ImageFile, Raster, damaged, eight_bits, on_white, oriented
from pipeline.data.rejection import RejectedImageError, RejectionKind
from pipeline.storage import one_line

if TYPE_CHECKING:
    from sr_model.pixels import Pixels  # which imports torch

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
"""Lower-case endings of the files that are taken for images of a dataset."""
READABLE_EXTENSIONS = (*EXTENSIONS, ".gif", ".avif")
"""Lower-case endings of the files that `read_image` decodes."""

PEAK_BYTES = 24
"""Bytes a pixel that decoding an image of up to 4 samples takes at most."""

_Readers = tuple[tuple[Callable[[bytes], bool], Callable[[bytes], ImageFile]], ...]
_READERS: _Readers = (
    (lambda content: content.startswith(png.SIGNATURE), png.open_png),
    (lambda content: content.startswith(jpeg.SIGNATURE), jpeg.open_jpeg),
    (webp.is_webp, webp.open_webp),
    (lambda content: content.startswith(directory.SIGNATURES), tiff.open_tiff),
    (lambda content: content.startswith(bmp.SIGNATURE), bmp.open_bmp),
)
"""Tests of a file's first bytes, with the functions that read its header. No format runs programs, as EPS would."""
_ALL_READERS: _Readers = (*_READERS, (gif_avif.is_gif_or_avif, gif_avif.open_gif_or_avif))


def decode(content: bytes, max_pixels: int, as_stored: bool = False) -> Pixels:
    """Decode an image file to 8-bit RGB.

    EXIF orientation is applied. Samples of more than 8 bits are reduced to their 8 high bits, and samples of fewer bits
    are scaled to 0..255 and rounded down. Colours of an embedded profile become sRGB; a profile that equals sRGB,
    cannot be read or has another colour space is ignored. Grey, palette and CMYK images become RGB. Transparent images
    are put on white. The first frame of an animation, or the first image of a file with several, is decoded.

    Args:
        content: the file's bytes.
        max_pixels: larger images are rejected before they are decompressed.
        as_stored: ignore the colour profile and return a grey image as (H, W, 1), as benchmark protocols require.

    Returns:
        (H, W, 3) uint8; (H, W, 1) for a grey image if `as_stored` is set.

    Raises:
        RejectedImageError: if the file is no image, is damaged, is not supported or exceeds a limit. Its kind is
            UNREADABLE if there is not enough memory, which may be otherwise at a later try.
    """
    with reasons():
        raster = _read(_open(content, _READERS), max_pixels)
        depth = raster.samples.dtype.itemsize * 8
        stored = raster.samples if raster.samples.shape[2] == 1 else eight_bits(raster.samples, depth)
        pixels = to_srgb(stored, None if as_stored else raster.profile)
        if raster.alpha is not None:
            pixels = on_white(pixels, eight_bits(raster.alpha, depth))
        if pixels.shape[2] == 1 and not as_stored:
            pixels = np.repeat(pixels, 3, axis=2)
        return np.ascontiguousarray(pixels)


def read_image(content: bytes, max_pixels: int) -> Raster:
    """Decode an image file with all bits of its samples, as it is stored, but upright. GIF and AVIF are read, too.

    Args:
        content: the file's bytes.
        max_pixels: larger images are rejected before they are decompressed.

    Returns:
        The image, whose orientation has been applied and is 1. Its arrays may be views.

    Raises:
        RejectedImageError: as `decode`.
    """
    with reasons():
        return _read(_open(content, _ALL_READERS), max_pixels)


def read_size(content: bytes) -> tuple[int, int]:
    """Return width and height from the file's header, before the EXIF orientation is applied.

    Raises:
        RejectedImageError: if the file is no image, or its header is damaged, not supported or exceeds a limit.
    """
    with reasons():
        file = _open(content, _READERS)
        return file.width, file.height


def _read(file: ImageFile, max_pixels: int) -> Raster:
    if file.width * file.height > max_pixels:
        detail = f"{file.width}x{file.height} is more than {max_pixels} pixels"
        raise RejectedImageError(RejectionKind.TOO_LARGE, detail)
    try:
        raster = file.read()
    except RejectedImageError:
        raise
    except Exception:
        # Decoders in C report a lack of memory like damage. An allocation of the size that they need tells.
        np.empty(PEAK_BYTES * file.width * file.height, np.uint8)
        raise
    return upright(raster)


def upright(raster: Raster) -> Raster:
    """Apply the orientation of an image, and take its resolution from EXIF metadata if only they state one."""
    density = raster.density or (density_in(raster.exif) if raster.exif else None)
    if density and raster.orientation in (5, 6, 7, 8):
        density = density[1], density[0]
    samples = oriented(raster.samples, raster.orientation)
    alpha = None if raster.alpha is None else oriented(raster.alpha, raster.orientation)
    return replace(raster, samples=samples, alpha=alpha, density=density, orientation=1)


def _open(content: bytes, readers: _Readers) -> ImageFile:
    for recognises, open_file in readers:
        if recognises(content):
            return open_file(content)
    known = "PNG, JPEG, WebP, TIFF, BMP" + (", GIF, AVIF" if readers is _ALL_READERS else "")
    raise RejectedImageError(RejectionKind.NO_IMAGE, f"is no image of a known format ({known})")


@contextmanager
def reasons() -> Iterator[None]:
    """Turn every exception of a decoder into a rejection with a reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what is decided here
            yield
    except RejectedImageError:
        raise
    except MemoryError:
        detail = "cannot be decoded now: there is not enough memory to decode it"
        raise RejectedImageError(RejectionKind.UNREADABLE, detail) from None
    except UnidentifiedImageError:  # whose text is the address of a Python object
        raise damaged("its header is damaged") from None
    except Exception as error:  # Pillow's decoders raise many kinds of exceptions on damaged files
        raise damaged(one_line(error) or type(error).__name__) from None
