"""JPEG files: colours, processes, orientation and metadata; libjpeg-turbo by imagecodecs is the reference."""

import io
import struct
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from pipeline.data.formats import jpeg as reader
from pipeline.data.images import decode, read_size
from pipeline.data.rejection import RejectedImageError
from tests.pipeline.data.formats.encoders import assert_rejected, decode_channels, saved

LIMIT = 10**6
SMOOTH = Image.radial_gradient("L").resize((61, 43))
RGB = Image.merge(
    "RGB", (SMOOTH, SMOOTH.rotate(90).resize(SMOOTH.size), Image.linear_gradient("L").resize(SMOOTH.size))
)
CONTENT = saved(RGB, "JPEG", quality=92)


def segment(code: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, code, len(body) + 2) + body


def with_segments(*segments: bytes) -> bytes:
    """Return the image with further segments behind its first one."""
    return CONTENT[:20] + b"".join(segments) + CONTENT[20:]


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("restart", [0, 1])
def test_every_process_equals_an_independent_decoder(
    mode: str, progressive: bool, subsampling: str, restart: int
) -> None:
    content = saved(
        RGB.convert(mode), "JPEG", progressive=progressive, subsampling=subsampling, restart_marker_rows=restart
    )
    reference = imagecodecs.jpeg8_decode(content)
    assert read_size(content) == RGB.size
    stored = decode(content, LIMIT, as_stored=True)
    assert np.array_equal(stored, reference.reshape(stored.shape))
    assert np.array_equal(decode(content, LIMIT), np.broadcast_to(stored, (*stored.shape[:2], 3)))


@pytest.mark.parametrize("outcolorspace", ["rgb", "ycbcr"])
def test_rgb_and_ycbcr_are_told_apart(outcolorspace: str) -> None:
    content = bytes(imagecodecs.jpeg8_encode(np.asarray(RGB), 95, colorspace="rgb", outcolorspace=outcolorspace))
    assert np.abs(decode(content, LIMIT).astype(int) - np.asarray(RGB)).mean() < 5


def test_cmyk_becomes_rgb() -> None:
    cmyk = RGB.convert("CMYK")
    content = saved(cmyk, "JPEG", quality=98)
    assert np.abs(decode(content, LIMIT).astype(int) - np.asarray(cmyk.convert("RGB"))).max() <= 12


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("where", ["EXIF", "XMP"])
def test_the_orientation_is_applied(orientation: int, where: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="%d"/>' % orientation
    content = with_segments(segment(0xE1, exif.tobytes() if where == "EXIF" else xmp))
    turned = {2: [0], 3: [0, 1], 4: [1], 5: [4], 6: [1, 4], 7: [0, 1, 4], 8: [0, 4]}.get(orientation, [])
    image = RGB
    with Image.open(io.BytesIO(CONTENT)) as file:
        image = file.convert("RGB")
    for step in turned:  # Transpose: 0 swaps left and right, 1 swaps top and bottom, 5 transposes
        image = image.transpose(Image.Transpose.TRANSPOSE if step == 4 else Image.Transpose(step))
    assert np.array_equal(decode(content, LIMIT), np.asarray(image))


HARMLESS: dict[str, bytes] = {
    "rubbish in EXIF": with_segments(segment(0xE1, b"Exif\0\0MM\0*rubbish")),
    "empty EXIF": with_segments(segment(0xE1, b"Exif\0\0")),
    "rubbish in Photoshop's segment": with_segments(segment(0xED, b"Photoshop 3.0\x008BIM\4")),
    "rubbish in MPF": with_segments(segment(0xE2, b"MPF\0II*\0rubbish")),
    "half a profile": with_segments(segment(0xE2, b"ICC_PROFILE\0\1\2half")),
    "2 MB of metadata": with_segments(*[segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(65_000))] * 30),
    "9,000 comments": with_segments(*[segment(0xFE, b"x")] * 9000),
    "a video behind the end": CONTENT + b"\xff\xda" * 10**5,
    "no end": CONTENT[:-2] + b"\xff\xd9",
    "fill bytes": CONTENT[:2] + b"\xff" * 9 + CONTENT[2:],
}


@pytest.mark.parametrize("case", HARMLESS)
def test_harmless_metadata_leave_the_image_alone(case: str) -> None:
    assert np.array_equal(decode(HARMLESS[case], LIMIT), imagecodecs.jpeg8_decode(CONTENT))


def scans(count: int) -> bytes:
    """Return a progressive image whose last scan is repeated."""
    content = saved(RGB, "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * count + content[-2:]


def twelve_bits() -> bytes:
    return bytes(imagecodecs.jpeg8_encode(np.asarray(SMOOTH).astype(np.uint16) << 4, bitspersample=12))


REJECTED: dict[str, tuple[bytes, str, str]] = {
    "12 bits": (twelve_bits(), "UNSUPPORTED", "is a JPEG file with 12-bit samples, expected 8 bits"),
    "2 components": (
        CONTENT.replace(b"\xff\xc0\0\x11\x08\0\x2b\0\x3d\3", b"\xff\xc0\0\x11\x08\0\x2b\0\x3d\2"),
        "UNSUPPORTED",
        "is a JPEG file with 2 components, expected 1, 3 or 4",
    ),
    "no height": (
        CONTENT.replace(b"\xff\xc0\0\x11\x08\0\x2b", b"\xff\xc0\0\x11\x08\0\0"),
        "DAMAGED",
        "its header states a size of 61x0",
    ),
    "3,000 scans": (scans(3000), "TOO_LARGE", f"scans, more than {reader.MAX_SCANS}, the limit of this decoder"),
    "20,000 comments": (
        with_segments(*[segment(0xFE, b"x")] * 20_000),
        "TOO_LARGE",
        "has more than 10000 marker segments, the limit of this decoder",
    ),
    "4 bytes": (CONTENT[:4], "DAMAGED", "its header is truncated"),
    "header": (CONTENT[:300], "DAMAGED", "its header is truncated"),
    "half": (CONTENT[: len(CONTENT) // 2], "DAMAGED", "truncated"),
    "end at once": (CONTENT[:20] + b"\xff\xd9", "DAMAGED", "it has no frame header or no scan"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_the_reason_of_a_rejection_is_true(case: str) -> None:
    assert_rejected(*REJECTED[case])


def test_many_scans_below_the_limit_are_decoded() -> None:
    assert decode(scans(40), LIMIT).shape == (43, 61, 3)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"lossless": True}),
        ("RGBA", {"lossless": True, "exact": True}),
        ("RGB", {"quality": 80}),
        ("RGBA", {"quality": 80}),
        ("L", {"lossless": True}),
        ("RGB", {"lossless": True, "exif": b"Exif\0\0MM\0*rubbish"}),
        ("RGB", {"lossless": True, "icc_profile": b"rubbish"}),
        ("RGB", {"lossless": True, "xmp": b"rubbish"}),
    ],
)
def test_webp_files_equal_an_independent_decoder(mode: str, options: dict[str, Any]) -> None:
    image = RGB.convert(mode)
    if mode == "RGBA":
        image.putalpha(SMOOTH)
    content = saved(image, "WEBP", **options)
    reference = imagecodecs.webp_decode(content)
    assert read_size(content) == image.size
    pixels, alpha = decode_channels(content, LIMIT)
    assert np.array_equal(pixels, reference[:, :, :3])
    assert (alpha is None) == (mode != "RGBA")
    if alpha is not None:
        assert np.array_equal(alpha, reference[:, :, 3])


@pytest.mark.parametrize("lossless", [False, True])
def test_the_first_frame_of_a_webp_animation_is_decoded(lossless: bool) -> None:
    frames = [Image.new("RGB", (20, 30), colour) for colour in ("red", "lime")]
    content = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=lossless)
    assert np.abs(decode(content, LIMIT).astype(int) - [255, 0, 0]).max() <= 4
    assert read_size(content) == (20, 30)


def test_a_damaged_webp_file_is_rejected_with_a_reason() -> None:
    content = saved(RGB, "WEBP")
    large = b"RIFF" + bytes(4) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\x3f\0\xff\x3f\0"
    for damaged, reason in (
        (content[:12], "its header is cut off or of an unknown kind"),
        (content[:12] + b"VP9 " + content[16:], "its header is cut off or of an unknown kind"),
        (content[: len(content) // 2], "cannot be decoded: "),
        (large, "16384x16384 is more than 1000000 pixels"),
    ):
        with pytest.raises(RejectedImageError, match=reason):
            decode(damaged, LIMIT)
