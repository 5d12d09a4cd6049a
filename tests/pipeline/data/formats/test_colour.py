"""Colour profiles are applied by their content, and what cannot be applied is ignored."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from pipeline.data.images import decode
from tests.conftest import random_image
from tests.pipeline.data.formats.encoders import Array, bmp, bmp_rows, chunk, decode_channels, png, saved, tiff

LIMIT = 10**6
SRGB = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
DISPLAY_P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
"""Red, green and blue in XYZ, adapted to D50."""


def fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(map(fixed, values))


def gamma(value: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(value * 256))


def srgb_curve() -> bytes:
    parameters = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    return b"para" + bytes(4) + struct.pack(">HH", 3, 0) + b"".join(map(fixed, parameters))


def profile(name: str, curve: bytes, primaries: tuple[tuple[float, float, float], ...] = ()) -> bytes:
    """Build a profile as the ICC specification defines it: RGB with primaries, or grey without."""
    text = name.encode("utf-16-be")
    label = b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(text), 28) + text
    tags = {b"desc": label, b"cprt": label, b"wtpt": xyz(0.9642, 1, 0.8249)}
    if primaries:
        for letter, primary in zip(b"rgb", primaries, strict=True):
            tags[bytes([letter]) + b"XYZ"], tags[bytes([letter]) + b"TRC"] = xyz(*primary), curve
    else:
        tags[b"kTRC"] = curve
    table, data, start = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, content in tags.items():
        table += tag + struct.pack(">II", start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    space = b"RGB " if primaries else b"GRAY"
    size = start + len(data)
    head = struct.pack(">I4sI4s4s4s12s4s", size, bytes(4), 0x04000000, b"mntr", space, b"XYZ ", bytes(12), b"acsp")
    head += bytes(28) + fixed(0.9642) + fixed(1) + fixed(0.8249)
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + data


def srgb_of(linear: Array) -> Array:
    """Encode linear light in 0..1 as sRGB in 0..255 (IEC 61966-2-1)."""
    low, high = 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055
    encoded: Array = np.where(linear <= 0.0031308, low, high) * 255
    return encoded


LINEAR = profile("Linear sRGB", gamma(1), SRGB)
LINEAR_GREY = profile("Linear grey", gamma(1))
PIXELS = random_image(20, 30)
GREY = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)


def test_a_linear_profile_is_applied_although_its_name_contains_srgb() -> None:
    found = decode(saved(Image.fromarray(PIXELS), icc_profile=LINEAR), LIMIT)
    assert np.abs(found - srgb_of(PIXELS / 255)).max() <= 1


@pytest.mark.parametrize(("name", "power"), [("sRGB IEC61966-2.1", 1.8), ("sRGB", 2.2)])
def test_a_gamma_is_applied_whatever_the_name_says(name: str, power: float) -> None:
    found = decode(saved(Image.fromarray(PIXELS), icc_profile=profile(name, gamma(power), SRGB)), LIMIT)
    exponent = round(power * 256) / 256
    assert np.abs(found - srgb_of((PIXELS / 255) ** exponent)).max() <= 1


@pytest.mark.parametrize("name", ["sRGB IEC61966-2.1", "Anything"])
def test_a_profile_with_the_content_of_srgb_changes_nothing(name: str) -> None:
    for content in (
        profile(name, srgb_curve(), SRGB),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    ):
        assert np.array_equal(decode(saved(Image.fromarray(PIXELS), icc_profile=content), LIMIT), PIXELS)
    grey = profile(name, srgb_curve())
    assert np.array_equal(decode(saved(Image.fromarray(GREY[:, :, 0]), icc_profile=grey), LIMIT), GREY.repeat(3, 2))


def test_another_gamut_is_converted_as_littlecms_does() -> None:
    wide = profile("P3", srgb_curve(), DISPLAY_P3)
    source = ImageCms.ImageCmsProfile(io.BytesIO(wide))
    expected = ImageCms.profileToProfile(Image.fromarray(PIXELS), source, ImageCms.createProfile("sRGB"))
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        content = saved(Image.fromarray(PIXELS), kind, icc_profile=wide, **options)
        assert np.array_equal(decode(content, LIMIT), np.asarray(expected)), kind
        assert np.array_equal(decode(content, LIMIT, as_stored=True), PIXELS), kind
    assert np.abs(np.asarray(expected).astype(int) - PIXELS).max() > 20


def grey_file(kind: str, embedded: bytes) -> tuple[bytes, Array]:
    """Return a grey file with a profile, and its values in 0..1."""
    iccp = chunk(b"iCCP", b"a\0\0" + zlib.compress(embedded))
    wide = (np.arange(1024, dtype=np.uint16) * 64).reshape(32, 32, 1)
    if kind == "PNG":
        return png(GREY, 8, 0, before=iccp), GREY / 255
    if kind == "PNG with opacity":
        return png(np.dstack([GREY, np.full_like(GREY, 255)]), 8, 4, before=iccp), GREY / 255
    if kind == "PNG of 16 bits":
        return png(wide, 16, 0, before=iccp), wide / 65535
    if kind == "TIFF of 16 bits":
        return tiff(wide, 16, 1, tags={34675: (7, embedded)}, compression=5), wide / 65535
    if kind == "TIFF, white is 0":
        return tiff(255 - GREY, 8, 0, tags={34675: (7, embedded)}), GREY / 255
    smooth = np.asarray(Image.linear_gradient("L"))[:, :, None]
    return saved(Image.fromarray(smooth[:, :, 0]), "JPEG", quality=100, icc_profile=embedded), smooth / 255


KINDS = ["PNG", "PNG with opacity", "PNG of 16 bits", "TIFF of 16 bits", "TIFF, white is 0", "JPEG"]


@pytest.mark.parametrize("kind", KINDS)
def test_grey_profiles_are_applied_to_grey_of_every_kind(kind: str) -> None:
    """The high byte of a dark linear grey of 16 bits is 0 where sRGB has 12 levels, so all bits are converted."""
    content, values = grey_file(kind, LINEAR_GREY)
    expected = srgb_of(values)
    tolerance = 14 if kind == "JPEG" else 1  # a level of linear black is 13 levels of sRGB
    assert np.abs(decode(content, LIMIT) - expected).max() <= tolerance
    pixels, _ = decode_channels(content, LIMIT)
    assert pixels.shape[2] == 1
    assert np.abs(pixels - expected).max() <= tolerance
    stored = decode(content, LIMIT, as_stored=True)
    assert np.abs(stored - values * 255).max() <= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("embedded", [LINEAR, b"rubbish", LINEAR_GREY[:200]], ids=["RGB", "rubbish", "half"])
def test_a_profile_that_does_not_fit_is_ignored(kind: str, embedded: bytes) -> None:
    content, values = grey_file(kind, embedded)
    assert np.abs(decode(content, LIMIT) - values * 255).max() <= 1


def test_a_grey_profile_in_a_colour_image_is_ignored() -> None:
    assert np.array_equal(decode(saved(Image.fromarray(PIXELS), icc_profile=LINEAR_GREY), LIMIT), PIXELS)


def test_a_profile_is_applied_before_transparency() -> None:
    """Half-transparent middle grey of linear light is 188 in sRGB, on white (188 + 255) / 2."""
    content = saved(Image.new("RGBA", (4, 4), (128, 128, 128, 128)), icc_profile=LINEAR)
    assert np.abs(decode(content, LIMIT).astype(int) - round((188 * 128 + 255 * 127) / 255)).max() <= 1


def test_a_profile_in_a_bmp_file_is_applied() -> None:
    pixels = np.random.default_rng(0).integers(0, 2**24, (7, 11), np.uint32)
    plain = bmp((11, 7), 24, bmp_rows(pixels, 24), header=124)
    content = bytearray(plain + LINEAR)
    content[14 + 56 : 14 + 60] = b"DEBM"
    struct.pack_into("<II", content, 14 + 112, len(plain) - 14, len(LINEAR))
    colours = np.dstack([pixels >> shift & 255 for shift in (16, 8, 0)])
    assert np.abs(decode(bytes(content), LIMIT) - srgb_of(colours / 255)).max() <= 1
