"""The pixels of a decoded file, and operations that all formats share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.data.rejection import RejectedImageError, RejectionKind

if TYPE_CHECKING:
    from sr_model.pixels import Pixels  # which imports torch

Alpha = npt.NDArray[np.uint8]
"""Opacity, (H, W), from 0 (transparent) to 255 (opaque)."""

Samples = npt.NDArray[Any]
"""(H, W, C), uint8 or uint16."""

_BLOCK = 2**20
"""Pixels that are converted at once, so that intermediate results take little memory."""

Image.MAX_IMAGE_PIXELS = None  # the caller compares the size in the header with its own limit


@dataclass(frozen=True)
class Raster:
    """An image as its file stores it, before orientation and colour profile are applied."""

    samples: Samples
    """(H, W, C): 1 channel is grey, 3 are RGB, 4 are CMYK, in which the largest value is full ink. uint8, or uint16 if
    the file has more than 8 bits a sample; values use the whole range of their type."""
    alpha: Samples | None = None
    """Opacity, (H, W), of the samples' type, from 0 (transparent) to its largest value (opaque); None if the file has
    none."""
    profile: bytes | None = None
    """Embedded ICC profile."""
    orientation: int = 1
    """EXIF orientation, 1 to 8; other values mean 1."""
    exif: bytes | None = None
    """Block of EXIF metadata as it is stored, perhaps damaged, without the prefix that JPEG files have."""
    density: tuple[float, float] | None = None
    """Pixels per inch across and down; None if the file does not state them."""


class ImageFile(Protocol):
    """A file whose header has been read and whose pixels can be decoded."""

    @property
    def width(self) -> int:
        """Pixels, before the orientation is applied."""

    @property
    def height(self) -> int:
        """Pixels, before the orientation is applied."""

    def read(self) -> Raster:
        """Decode the pixels.

        Raises:
            RejectedImageError: if they cannot be decoded.
            Exception: decoders raise many kinds of exceptions on damaged files.
        """


def damaged(reason: str) -> RejectedImageError:
    """Return the error for a file that is incomplete or contradicts its format."""
    return RejectedImageError(RejectionKind.DAMAGED, f"cannot be decoded: {reason}")


def unsupported(property_: str) -> RejectedImageError:
    """Return the error for an intact file with a property that is not read; the text completes "the image ..."."""
    return RejectedImageError(RejectionKind.UNSUPPORTED, property_)


def excessive(property_: str) -> RejectedImageError:
    """Return the error for a file that exceeds a limit of the decoders; the text completes "the image ..."."""
    return RejectedImageError(RejectionKind.TOO_LARGE, property_)


def blocks(height: int, width: int) -> Iterator[slice]:
    """Yield slices of rows that cover an image, each of about a million pixels."""
    rows = max(_BLOCK // max(width, 1), 1)
    return (slice(top, top + rows) for top in range(0, height, rows))


def eight_bits(values: Samples, bits: int) -> npt.NDArray[np.uint8]:
    """Reduce samples of `bits` bits to 8: more bits lose their low ones, fewer are scaled to 0..255, rounded down."""
    if bits == 8:
        return values.astype(np.uint8, copy=False)
    if bits < 8:
        levels = np.arange(2**bits, dtype=np.uint32)
        scaled: npt.NDArray[np.uint8] = (levels * 255 // levels[-1]).astype(np.uint8)[values]
        return scaled
    reduced = np.empty(values.shape, np.uint8)
    for rows in blocks(len(values), values[:1].size):
        reduced[rows] = values[rows] >> (bits - 8)
    return reduced


def whole_range(values: Samples, bits: int) -> Samples:
    """Scale samples of `bits` bits to the range of their type: to 8 bits as `eight_bits` does, above that to 16.

    The 8 high bits of a sample stay the same.
    """
    if bits <= 8:
        return eight_bits(values, bits)
    if bits < 16:
        for rows in blocks(len(values), values[:1].size):
            values[rows] = values[rows] << (16 - bits) | values[rows] >> (2 * bits - 16)
    return values


def unpack_bits(rows: npt.NDArray[np.uint8], bits: int, count: int) -> Samples:
    """Unpack samples of 1 to 15 bits, most significant bit first, each row beginning at a byte.

    Args:
        rows: (n, bytes of a row) uint8.
        bits: bits of a sample.
        count: samples in a row.

    Returns:
        (n, count) uint8, or uint16 above 8 bits.
    """
    kind = np.uint8 if bits <= 8 else np.uint16
    unpacked: Samples = np.empty((len(rows), count), kind)
    for part in blocks(len(rows), count * bits):
        single = np.unpackbits(rows[part], axis=1)[:, : count * bits].reshape(-1, count, bits)
        values = np.zeros(single.shape[:2], kind)
        for bit in range(bits):
            values = (values << 1) | single[:, :, bit]
        unpacked[part] = values
    return unpacked


def oriented(pixels: Samples, orientation: int) -> Samples:
    """Apply an EXIF orientation to (H, W, ...); the result may be a view."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def on_white(pixels: Pixels, alpha: Alpha) -> Pixels:
    """Put (H, W, C) on white: p a + 255 (1 - a), rounded; a colour whose alpha is 0 leaves no trace."""
    if alpha.min() == 255:
        return pixels
    flat = np.empty_like(pixels)
    for part in blocks(*alpha.shape):
        opacity = alpha[part, :, None].astype(np.uint16)  # which the sum fits: it is 255^2 + 127 at most
        flat[part] = (pixels[part] * opacity + 255 * (255 - opacity) + 127) // 255
    return flat


def as_array(image: Image.Image, kind: type[np.integer[Any]] | None = None) -> npt.NDArray[Any]:
    """Copy the pixels out of Pillow as (H, W) or (H, W, C); a whole copy at once would take three times the memory.

    Args:
        image: the image.
        kind: type of the result; by default that of the image.
    """
    pixels: npt.NDArray[Any] | None = None
    for rows, part in _parts(image):
        if pixels is None:
            pixels = np.empty((image.height, *part.shape[1:]), kind or part.dtype)
        pixels[rows] = part
    assert pixels is not None
    return pixels


def add_to(pixels: npt.NDArray[Any], image: Image.Image) -> None:
    """Add the values of Pillow's pixels to an array of the same shape."""
    for rows, part in _parts(image):
        pixels[rows] += part


def _parts(image: Image.Image) -> Iterator[tuple[slice, npt.NDArray[Any]]]:
    """Yield blocks of rows and their pixels."""
    for rows in blocks(image.height, image.width):
        yield rows, np.asarray(image.crop((0, rows.start, image.width, min(rows.stop, image.height))))
