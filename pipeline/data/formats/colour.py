"""Colours to sRGB, by the content of the embedded profile."""

from __future__ import annotations

import io
import struct
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from pipeline.data.formats.raster import Samples, blocks, eight_bits

if TYPE_CHECKING:
    from sr_model.pixels import Pixels  # which imports torch

MAX_PROFILE_BYTES = 2**24
"""A larger profile is ignored. The largest printer profiles have about 4 MB."""

_SPACES = {"L": "GRAY", "I;16": "GRAY", "RGB": "RGB ", "CMYK": "CMYK"}
"""The colour space that a profile must have, by Pillow's name of the kind of image."""
_NO_OPTIMIZATION = int(ImageCms.Flags.NOOPTIMIZE)
"""Keeps LittleCMS from approximating curves by a few points."""
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


def to_srgb_deep(samples: Samples, profile: bytes | None) -> Samples:
    """Convert colours to sRGB as `to_srgb` does, but keep 16 bits of grey and RGB.

    Args:
        samples: (H, W, C) uint8 or uint16 grey, RGB or CMYK.
        profile: as for `to_srgb`.

    Returns:
        (H, W, C) of the same type for grey and RGB; (H, W, 3) uint8 for CMYK.
    """
    channels = samples.shape[2]
    if samples.dtype == np.uint8 or channels == 4:
        return to_srgb(eight_bits(samples, samples.dtype.itemsize * 8), profile)
    usable = profile if profile and len(profile) <= MAX_PROFILE_BYTES else None
    if usable is None or (_grey_table(usable, 16) if channels == 1 else _transform(usable, "RGB")) is None:
        return samples
    if channels == 1:
        greys = np.arange(2**16, dtype=np.uint16).reshape(1, -1)
        deep: Samples = _transform_deep(greys, usable, "gray")[0, :, 1][samples]
        return deep
    converted = np.empty_like(samples)
    for rows in blocks(*samples.shape[:2]):
        converted[rows] = _transform_deep(np.ascontiguousarray(samples[rows]), usable, "rgb")
    return converted


def _transform_deep(samples: Samples, profile: bytes, space: str) -> Samples:
    """Convert uint16 grey (H, W) or RGB (H, W, 3) to sRGB, (H, W, 3) uint16."""
    import imagecodecs  # because Pillow passes 8 bits of colours to LittleCMS

    converted: Samples = imagecodecs.cms_transform(
        samples, profile, SRGB, colorspace=space, outcolorspace="rgb", outdtype="uint16", flags=_NO_OPTIMIZATION
    )
    return converted


def fits(profile: bytes | None, channels: int) -> bool:
    """Tell whether a profile can be read and is one of grey (1 channel) or RGB (3 channels)."""
    if not profile or len(profile) > MAX_PROFILE_BYTES:
        return False
    try:
        parsed = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile
    except Exception:  # LittleCMS raises many kinds of exceptions on damaged profiles
        return False
    return bool(parsed.xcolor_space == ("GRAY" if channels == 1 else "RGB "))


def grey_profile() -> bytes:
    """Return the ICC profile of grey with the curve of sRGB."""
    import imagecodecs

    level = np.linspace(0, 1, 1024)
    curve = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
    return _dated(imagecodecs.cms_profile("gray", transferfunction=curve.astype(np.float32)))


def _dated(profile: bytes) -> bytes:
    """Return a profile with a fixed date of creation, so that equal images become equal files."""
    return profile[:24] + struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + profile[36:]


SRGB = _dated(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
"""ICC profile of sRGB (IEC 61966-2-1)."""


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
