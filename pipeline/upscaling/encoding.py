"""Encode images as files of any format, with their colour profile, EXIF metadata and resolution."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import IO, Any

import numpy as np
from PIL import Image

from pipeline.data.formats.colour import SRGB, to_srgb_deep
from pipeline.data.formats.metadata import EXIF_PREFIX, MOST_BYTES
from pipeline.data.formats.raster import Samples, blocks
from pipeline.settings import UserError
from pipeline.storage import one_line
from pipeline.upscaling.formats import FORMATS, Format, check_format
from pipeline.upscaling.images import DecodedImage
from pipeline.upscaling.tiff import write_tiff

_LONGEST_JPEG_EXIF = 65_527
"""Bytes of EXIF metadata that fit into a segment of a JPEG file."""
_INCHES_PER_METRE = 1 / 0.0254
_PNG_LEVEL = 3
"""zlib's level: photographs take a third of the time of the default level, and 8 % more bytes."""
_PNG_HEADER = 33
"""Bytes of a PNG file's signature and header chunk, behind which other chunks may follow."""
_OPAQUE_FROM = 128
"""Opacity from which a pixel of a GIF file is opaque; others are wholly transparent."""


def losses(image: DecodedImage, suffix: str) -> list[str]:
    """Return what a format cannot hold of an image; each text completes a sentence that begins with its name."""
    form = FORMATS[suffix]
    found = []
    if image.pixels.dtype == np.uint16 and not form.deep:
        found.append(f"has 16 bits a sample, of which {suffix} holds 8")
    if image.is_transparent and not form.transparent:
        found.append(f"is transparent, which {suffix} cannot hold: it was put on white")
    if image.exif and suffix in (".jpg", ".jpeg") and len(image.exif) > _LONGEST_JPEG_EXIF:
        found.append(f"has {len(image.exif)} bytes of EXIF metadata, more than {suffix} can hold: they are left out")
    if image.exif and form.pillow == "TIFF" and len(image.exif) > MOST_BYTES:
        found.append(f"has {len(image.exif)} bytes of EXIF metadata, of which {suffix} gets at most 1 MB a directory")
    return found


def encode_image(image: DecodedImage, suffix: str, quality: int | None = None) -> bytes:
    """Encode an image; arguments and errors are those of `write_image`."""
    sink = io.BytesIO()
    write_image(image, sink, suffix, quality)
    return sink.getvalue()


def write_image(image: DecodedImage, file: IO[bytes], suffix: str, quality: int | None = None) -> None:
    """Encode an image into a file.

    What the format cannot hold is reduced: 16 bits are rounded to 8, and transparent pixels are put on white.

    Args:
        image: the image.
        file: an empty file, which can be written to at any position.
        suffix: lower-case ending of a file's name, a key of `FORMATS`, which chooses the format.
        quality: from 1 to 100 for JPEG, WebP and AVIF; without it 95, lossless and 90. Other formats are lossless.

    Raises:
        UserError: if there is no such format, or its files cannot be so large.
    """
    with writing(image.size, suffix) as form:
        image = reduced(image, form)
        if form.pillow == "TIFF":
            write_tiff(image, file)
        elif image.pixels.dtype == np.uint16:
            _write_deep_png(image, file)
        else:
            pillow_image = to_palette(image) if form.pillow == "GIF" else to_pillow(image)
            pillow_image.save(file, form.pillow, **pillow_options(image, suffix, quality))


@contextmanager
def writing(size: tuple[int, int], suffix: str) -> Iterator[Format]:
    """Check that a format can hold an image, and turn what its encoder raises into one sentence.

    Args:
        size: width and height in pixels.
        suffix: as for `write_image`.

    Raises:
        UserError: if it cannot, or if the block raises an error of an encoder.
    """
    check_format(suffix)
    form = FORMATS[suffix]
    if form.longest and max(size) > form.longest:
        raise UserError(
            f"an image of {size[0]}x{size[1]} pixels is larger than {suffix} can hold, which is {form.longest} pixels "
            "a side: expected .png or .tif"
        )
    try:
        yield form
    except (ValueError, RuntimeError, struct.error) as error:  # of Pillow, imagecodecs and `write_tiff`
        others = " or ".join(other for other in (".png", ".tif") if FORMATS[other] is not form)
        raise UserError(f"the image cannot be written: {one_line(error)}; expected {others}") from None


def reduced(image: DecodedImage, form: Format, deep: bool = True) -> DecodedImage:
    """Return an image without what a format cannot hold.

    Colours of a profile become sRGB where the format has no profiles, or none of grey. An image is put on white where
    it has no opacity, and 16 bits are rounded to 8 where it has no more, or if `deep` is not set.
    """
    pixels, alpha, profile = image.pixels, image.alpha, image.profile
    if profile and not (form.metadata and (form.grey or pixels.shape[2] == 3)):
        pixels, profile = to_srgb_deep(pixels, profile), SRGB if form.metadata else None
    if alpha is not None and not form.transparent:
        pixels, alpha = (_on_white(pixels, alpha) if image.is_transparent else pixels), None
    if pixels.dtype == np.uint16 and not (form.deep and deep):
        pixels, alpha = _rounded(pixels), None if alpha is None else _rounded(alpha)
    return replace(image, pixels=pixels, alpha=alpha, profile=profile)


def _on_white(pixels: Samples, alpha: Samples) -> Samples:
    largest = np.uint64(np.iinfo(pixels.dtype).max)
    flat = np.empty_like(pixels)
    for part in blocks(*alpha.shape):
        opacity = alpha[part, :, None].astype(np.uint64)
        flat[part] = (pixels[part] * opacity + largest * (largest - opacity) + largest // 2) // largest
    return flat


def _rounded(values: Samples) -> Samples:
    """Round 16 bits to 8: v 255 / 65535."""
    eight = np.empty(values.shape, np.uint8)
    for part in blocks(len(values), values[:1].size):
        eight[part] = (values[part].astype(np.uint32) + 128) // 257
    return eight


def to_pillow(image: DecodedImage) -> Image.Image:
    """Return an image of 8 bits as Pillow's, of mode L, RGB, LA or RGBA."""
    pillow_image = Image.fromarray(image.pixels[:, :, 0] if image.pixels.shape[2] == 1 else image.pixels)
    if image.alpha is not None:
        pillow_image.putalpha(Image.fromarray(image.alpha))
    return pillow_image


def to_palette(image: DecodedImage) -> Image.Image:
    """Return an image of 8 bits with a palette of 255 colours; transparent pixels have the index 255."""
    pillow_image = to_pillow(replace(image, alpha=None)).convert("RGB")
    if image.alpha is None:
        return pillow_image.quantize(256)
    hidden = image.alpha < _OPAQUE_FROM
    indices = np.array(coloured := pillow_image.quantize(255))
    indices[hidden] = 255
    shown = Image.fromarray(indices, "P")
    shown.putpalette(coloured.getpalette() or [])
    shown.info["transparency"] = 255
    return shown


def pillow_options(image: DecodedImage, suffix: str, quality: int | None) -> dict[str, Any]:
    """Return Pillow's options for a file: metadata, quality and chroma."""
    chosen: dict[str, Any] = {}
    exif = image.exif if image.exif and FORMATS[suffix].metadata else None
    match FORMATS[suffix].pillow:
        case "PNG":
            chosen["compress_level"] = _PNG_LEVEL
        case "JPEG":
            chosen |= {"quality": quality or 95, "subsampling": "4:4:4"}
            exif = exif if exif and len(exif) <= _LONGEST_JPEG_EXIF else None
        case "WEBP":
            chosen |= {"quality": quality} if quality else {"lossless": True}
        case "AVIF":
            chosen |= {"quality": quality or 90, "subsampling": "4:4:4"}
        case "GIF":
            chosen |= {"transparency": 255} if image.alpha is not None else {}
    if exif:
        chosen["exif"] = EXIF_PREFIX + exif
    if FORMATS[suffix].metadata and image.profile:
        chosen["icc_profile"] = image.profile
    if image.density:
        chosen["dpi"] = image.density
    return chosen


def _write_deep_png(image: DecodedImage, file: IO[bytes]) -> None:
    """Write a PNG file of 16 bits, which Pillow cannot do for colours."""
    import imagecodecs

    samples = image.pixels if image.alpha is None else np.dstack([image.pixels, image.alpha])
    coded = memoryview(imagecodecs.png_encode(samples[:, :, 0] if samples.shape[2] == 1 else samples, level=_PNG_LEVEL))
    file.write(coded[:_PNG_HEADER])
    if image.profile:
        file.write(_chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(image.profile)))
    if image.density:
        across, down = (round(value * _INCHES_PER_METRE) for value in image.density)
        file.write(_chunk(b"pHYs", struct.pack(">IIB", across, down, 1)))
    if image.exif:
        file.write(_chunk(b"eXIf", image.exif))
    file.write(coded[_PNG_HEADER:])


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))
