"""Images with what their files say about them: decode a file, and enlarge the image with what belongs to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline import terminal
from pipeline.data.formats import metadata
from pipeline.data.formats.colour import SRGB, fits, grey_profile, to_srgb_deep
from pipeline.data.formats.raster import Raster, Samples, eight_bits
from pipeline.data.images import read_image, reasons
from pipeline.upscaling.transparency import cover_hidden_colours

if TYPE_CHECKING:
    from pipeline.networks.upscalers import Upscaler

_SHOWN_FROM_MEGAPIXELS = 4.0
"""Size of an enlarged image from which its progress is shown."""


@dataclass(frozen=True)
class DecodedImage:
    """An upright image, and what its file says about it."""

    pixels: Samples
    """(H, W, 3) RGB or (H, W, 1) grey; uint8 or uint16, with values in the whole range of the type."""
    alpha: Samples | None = None
    """Opacity, (H, W), of the pixels' type, from 0 (transparent) to its largest value; None if the file has none."""
    profile: bytes | None = None
    """ICC profile of the pixels; None for sRGB without a tag."""
    exif: bytes | None = None
    """Block of EXIF metadata, which states an upright image of this size; without the prefix that JPEG files have."""
    density: tuple[float, float] | None = None
    """Pixels per inch across and down; None if the file does not state them."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def is_transparent(self) -> bool:
        """True if a pixel is not wholly opaque."""
        return self.alpha is not None and bool(self.alpha.min() < np.iinfo(self.alpha.dtype).max)


def decode_image(content: bytes, max_pixels: int, keep_profile: bool = False) -> DecodedImage:
    """Decode an image file: PNG, JPEG, WebP, TIFF, BMP, GIF or AVIF; of an animation, the first frame.

    The orientation is applied. Grey stays grey, and 16 bits stay 16 bits; other depths become 8 or 16 bits. CMYK
    becomes sRGB with 8 bits.

    Args:
        content: the file's bytes.
        max_pixels: larger images are rejected before they are decompressed.
        keep_profile: leave the values and their ICC profile as they are. By default colours become sRGB, and an image
            that has a profile gets that of sRGB.

    Raises:
        RejectedImageError: if the file is no image, is damaged, is not supported or exceeds a limit. Its text
            completes a sentence that begins with the image's name.
    """
    with reasons():
        return to_image(read_image(content, max_pixels), keep_profile)


def to_image(raster: Raster, keep_profile: bool = False) -> DecodedImage:
    """Turn what a file stores into an image; see `decode_image`."""
    channels = raster.samples.shape[2]
    profile = raster.profile
    if keep_profile and channels != 4 and fits(profile, channels):
        pixels = raster.samples
    else:
        pixels = to_srgb_deep(raster.samples, profile)
        if profile is not None:
            profile = grey_profile() if channels == 1 else SRGB
    alpha = raster.alpha
    if alpha is not None and alpha.dtype != pixels.dtype:
        alpha = eight_bits(alpha, alpha.dtype.itemsize * 8)
    height, width = pixels.shape[:2]
    return DecodedImage(
        np.ascontiguousarray(pixels),
        None if alpha is None else np.ascontiguousarray(alpha),
        profile,
        metadata.upright(raster.exif, width, height),
        raster.density,
    )


def enlarge_image(
    upscaler: Upscaler, image: DecodedImage, outscale: float | None = None, progress: bool = False
) -> DecodedImage:
    """Enlarge an image.

    Opacity is enlarged by bicubic interpolation. Pixels of opacity 0 first get the colour of the nearest visible pixel,
    so that hidden colours reach no visible edge.

    Args:
        upscaler: the model.
        image: the image; it is not changed.
        outscale: factor of the result's width and height, to which the model's result is resized with a Lanczos
            filter; by default the model's own.
        progress: whether to show how much of a large image is done.

    Returns:
        An image with the type, the profile and the resolution of `image`.
    """
    width, height = image.size
    size = output_size(image.size, upscaler.scale, outscale)
    pixels = image.pixels
    if image.alpha is not None:
        pixels = cover_hidden_colours(pixels, image.alpha)
    lr = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)
    sr: Samples = _enlarge(upscaler, lr, progress).permute(1, 2, 0).cpu().numpy()
    if size != (width * upscaler.scale, height * upscaler.scale):
        channels = [_resized(sr[:, :, channel], size, Image.Resampling.LANCZOS) for channel in range(sr.shape[2])]
        sr = np.stack(channels, axis=2)
    alpha = None if image.alpha is None else _resized(image.alpha, size, Image.Resampling.BICUBIC)
    return replace(image, pixels=sr, alpha=alpha, exif=metadata.upright(image.exif, *size))


def _enlarge(upscaler: Upscaler, lr: Tensor, progress: bool) -> Tensor:
    megapixels = lr.shape[1] * lr.shape[2] * upscaler.scale**2 / 1e6
    if not progress or megapixels < _SHOWN_FROM_MEGAPIXELS:
        return upscaler.enlarge(lr)
    with terminal.stage("upscale", total=megapixels, unit="megapixels") as stage:
        return upscaler.enlarge(lr, lambda done, _: stage.update(done / 1e6))


def output_size(size: tuple[int, int], scale: int, outscale: float | None) -> tuple[int, int]:
    """Return width and height of an enlarged image in pixels.

    Args:
        size: width and height of the image.
        scale: factor of the model.
        outscale: factor of the result; None for that of the model.
    """
    factor = scale if outscale is None else outscale
    return max(round(size[0] * factor), 1), max(round(size[1] * factor), 1)


def _resized(channel: Samples, size: tuple[int, int], kernel: Image.Resampling) -> Samples:
    """Resize (h, w) uint8 or uint16."""
    if channel.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(channel)).resize(size, kernel))
    # Pillow's 16-bit filters wrap values beyond the range, into which a filter overshoots at an edge.
    resized = np.asarray(Image.fromarray(channel.astype(np.float32)).resize(size, kernel))
    rounded: Samples = np.rint(resized).clip(0, 65535).astype(np.uint16)
    return rounded
