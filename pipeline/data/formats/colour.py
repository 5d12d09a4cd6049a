"""Colours to sRGB, by the content of the embedded profile."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from pipeline.data.formats.raster import Samples, blocks, eight_bits
from sr_model.pixels import Pixels

MAX_PROFILE_BYTES = 2**24
"""A larger profile is ignored. The largest printer profiles have about 4 MB."""

_SPACES = {"L": "GRAY", "I;16": "GRAY", "RGB": "RGB ", "CMYK": "CMYK"}
"""The colour space that a profile must have, by Pillow's name of the kind of image."""
_TOLERANCE = 2
"""A profile that changes no probed colour by more levels is sRGB. Those of HP, Nikon and Canon change colours by 1 at
most; one with sRGB's primaries and a gamma of 2.2 changes dark greys by 9."""


def to_srgb(samples: Samples, profile: bytes | None) -> Pixels:
    """Convert colours to 8-bit sRGB.

    A profile is ignored if it cannot be read or does not belong to the samples' colour space. If it equals sRGB, the
    samples keep their values.

    Args:
        samples: (H, W, C) uint8 grey, RGB or CMYK; or uint16 grey, which is converted before it is reduced to 8 bits.
        profile: ICC profile; None stands for sRGB, or for CMYK without one Pillow's conversion.

    Returns:
        (H, W, 1) for grey, else (H, W, 3).
    """
    usable = profile if profile and len(profile) <= MAX_PROFILE_BYTES else None
    if samples.shape[2] == 1:
        depth = samples.dtype.itemsize * 8
        table = _grey_table(usable, depth) if usable else None
        return eight_bits(samples, depth) if table is None else table[samples]
    mode = "RGB" if samples.shape[2] == 3 else "CMYK"
    transform = _transform(usable, mode) if usable else None
    if transform is None and mode == "RGB":
        return samples
    converted = np.empty((*samples.shape[:2], 3), np.uint8)
    for rows in blocks(*samples.shape[:2]):
        image = _image(samples[rows], mode)
        converted[rows] = np.asarray(transform.apply(image) if transform else image.convert("RGB"))
    return converted


def _image(samples: Samples, mode: str) -> Image.Image:
    """Return (H, W, C) as an image of Pillow."""
    size = samples.shape[1], samples.shape[0]
    return Image.frombytes(mode, size, np.ascontiguousarray(samples).tobytes())


@lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform of colours to sRGB; None if the profile equals sRGB or cannot be used."""
    levels = np.round(np.linspace(0, 255, 17)).astype(np.uint8)
    lattice = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    probe = np.concatenate([np.arange(256, dtype=np.uint8).reshape(1, -1, 1).repeat(3, axis=2), lattice], axis=1)
    try:
        transform = _build(profile, mode, ImageCms.Flags.NONE)
        if transform is None or mode == "CMYK":
            return transform
        seen = np.asarray(transform.apply(_image(probe, mode)))
    except Exception:  # Pillow and LittleCMS raise many kinds of exceptions on damaged profiles
        return None
    return transform if _differ(seen, probe) else None


@lru_cache(maxsize=4)
def _grey_table(profile: bytes, bits: int) -> npt.NDArray[np.uint8] | None:
    """Return the sRGB value of each grey, (2^bits,); None if the profile has the curve of sRGB or cannot be used."""
    greys = np.arange(2**bits, dtype=np.uint8 if bits == 8 else np.uint16).reshape(1, -1, 1)
    mode = "L" if bits == 8 else "I;16"
    try:
        # LittleCMS optimises a grey curve into 33 points, which is wrong by up to 10 levels in linear light.
        transform = _build(profile, mode, ImageCms.Flags.NOOPTIMIZE)
        if transform is None:
            return None
        table = np.asarray(transform.apply(_image(greys, mode)))[0, :, 1]
    except Exception:  # as above
        return None
    return table if _differ(table, eight_bits(greys, bits).ravel()) else None


def _build(profile: bytes, mode: str, flags: ImageCms.Flags) -> ImageCms.ImageCmsTransform | None:
    parsed = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if parsed.profile.xcolor_space != _SPACES[mode]:
        return None
    return ImageCms.buildTransform(parsed, ImageCms.createProfile("sRGB"), mode, "RGB", flags=flags)


def _differ(seen: npt.NDArray[np.uint8], expected: npt.NDArray[np.uint8]) -> bool:
    return bool(np.abs(seen.astype(int) - expected).max() > _TOLERANCE)
