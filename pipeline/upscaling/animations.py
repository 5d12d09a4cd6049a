"""Animated GIF, WebP and PNG files: decode them frame by frame, and encode enlarged frames as an animation."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from PIL import Image

from pipeline.data.formats import png, webp
from pipeline.data.formats.gif_avif import split_opacity
from pipeline.data.formats.metadata import orientation
from pipeline.data.formats.raster import Raster, excessive
from pipeline.data.images import reasons, upright
from pipeline.upscaling.encoding import pillow_options, reduced, to_palette, to_pillow, writing
from pipeline.upscaling.images import DecodedImage, to_image

_ANIMATED_WEBP = 2
"""Bit of an extended WebP header that states an animation."""
_KEEP, _CLEAR = 1, 2
"""Disposal of a GIF frame before the next one is shown: it stays, or its place becomes transparent."""


@dataclass(frozen=True)
class Frame:
    """A frame of an animation, as a whole image: earlier frames are in it as far as they stay visible."""

    image: DecodedImage
    duration: float
    """Milliseconds for which it is shown."""


@dataclass(frozen=True)
class Animation:
    """An animation whose header has been read."""

    count: int
    """Number of frames."""
    plays: int
    """How often it is shown; 0 for endlessly."""
    frames: Iterator[Frame]
    """The frames in their order, decoded one after the other."""


@contextmanager
def open_animation(
    content: bytes, max_pixels: int, keep_profile: bool = False, only_count: bool = False
) -> Iterator[Animation | None]:
    """Read the header of an animated file.

    Args:
        content: the bytes of a file of any kind.
        max_pixels: animations whose frames together have more pixels are rejected before they are decompressed.
        keep_profile: as for `decode_image`.
        only_count: whether the limit holds for a single frame, because the caller decodes none from the animation.

    Yields:
        The animation; None if the file has a single frame or none. Its frames raise `RejectedImageError` if they are
        damaged.

    Raises:
        RejectedImageError: if the file is damaged or exceeds a limit.
    """
    kind = _animated_kind(content)
    if kind is None:
        yield None
        return
    with reasons():
        if kind == "WEBP":  # Pillow allocates the image when it opens the file
            header = webp.open_webp(content)
            _check_size(header.width, header.height, 1, max_pixels)
        file = Image.open(io.BytesIO(content), formats=(kind,))
    with file:
        with reasons():
            first = 1 if getattr(file, "default_image", False) else 0  # an image that is no frame
            count = getattr(file, "n_frames", 1) - first
            _check_size(*file.size, 1 if only_count else count, max_pixels)
        if count < 2:
            yield None
            return
        frames = _frames(file, range(first, first + count), keep_profile)
        yield Animation(count, int(file.info.get("loop", 1)), frames)


def write_animation(
    frames: Sequence[Frame], plays: int, file: IO[bytes], suffix: str, quality: int | None = None
) -> None:
    """Encode an animation. Pixels of 16 bits are rounded to 8.

    Args:
        frames: two frames or more of one size.
        plays: how often it is shown; 0 for endlessly.
        file: an empty file, which can be written to at any position.
        suffix: lower-case ending of a format that can be animated.
        quality: as for `write_image`.

    Raises:
        UserError: as `write_image`.
    """
    with writing(frames[0].image.size, suffix) as form:
        images = [reduced(frame.image, form, deep=False) for frame in frames]
        transparent = any(image.is_transparent for image in images)
        coloured = next((image for image in images if image.pixels.shape[2] == 3), None)
        options: dict[str, Any] = pillow_options(coloured or images[0], suffix, quality)
        options |= {"save_all": True, "duration": [round(frame.duration) for frame in frames]}
        if form.pillow == "GIF":
            pillow_images = [to_palette(image) for image in images]
            options |= {"disposal": _CLEAR if transparent else _KEEP, "optimize": False}
            options |= {} if plays == 1 else {"loop": plays}
        else:
            mode = ("RGB" if coloured or not form.grey else "L") + ("A" if transparent else "")
            pillow_images = [to_pillow(image).convert(mode) for image in images]
            options |= {"loop": plays}
        if form.pillow == "PNG":  # each frame replaces the last one, opacity included
            options |= {"disposal": 0, "blend": 0}
        pillow_images[0].save(file, form.pillow, append_images=pillow_images[1:], **options)


def _animated_kind(content: bytes) -> str | None:
    """Return Pillow's name of the format of a file that may be animated, by its first bytes."""
    if content.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if webp.is_webp(content) and content[12:16] == b"VP8X" and content[20] & _ANIMATED_WEBP:
        return "WEBP"
    if content.startswith(png.SIGNATURE) and b"acTL" in content[: max(content.find(b"IDAT"), 0)]:
        return "PNG"
    return None


def _check_size(width: int, height: int, count: int, max_pixels: int) -> None:
    if width * height * count > max_pixels:
        frames = f"{count} frames of " if count > 1 else ""
        raise excessive(f"has {frames}{width}x{height}, more than {max_pixels} pixels")


def _frames(file: Image.Image, numbers: range, keep_profile: bool) -> Iterator[Frame]:
    for number in numbers:
        with reasons():
            file.seek(number)
            file.load()
            samples, alpha = split_opacity(file)
            info = file.info
            exif = info.get("exif")
            stated = orientation(exif, info.get("xmp"))
            raster = upright(Raster(samples, alpha, info.get("icc_profile"), stated, exif, info.get("dpi")))
            yield Frame(to_image(raster, keep_profile), float(info.get("duration", 0)))
