import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from pipeline.data.images import decode, read_size
from pipeline.data.rejection import RejectedImageError, RejectionKind
from tests.conftest import random_image


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


RGB = Image.fromarray(random_image(20, 30))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_files_keep_every_value(kind: str) -> None:
    assert np.array_equal(decode(encoded(RGB, kind), 10**6), np.asarray(RGB))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (4, 4), 100), (100, 100, 100)),
        (Image.new("RGB", (4, 4), (10, 20, 30)).quantize(4), (10, 20, 30)),
        (Image.fromarray(np.full((4, 4), 0x8001, np.uint16)), (0x80, 0x80, 0x80)),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (9, 8, 7, 255)), (9, 8, 7)),
        (Image.new("LA", (4, 4), (50, 255)), (50, 50, 50)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb(image: Image.Image, expected: tuple[int, int, int]) -> None:
    pixels = decode(encoded(image), 10**6)
    assert pixels.shape == (4, 4, 3)
    assert (pixels == np.array(expected)).all()


def test_cmyk_becomes_rgb() -> None:
    pixels = decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100), 10**6)
    assert np.abs(pixels.astype(int) - [255, 0, 0]).max() <= 2


def test_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(RGB, "PNG", exif=exif)
    assert decode(content, 10**6).shape == (30, 20, 3)
    assert read_size(content) == (30, 20)
    assert np.array_equal(decode(content, 10**6), np.rot90(np.asarray(RGB), -1))


def test_a_benchmarks_grey_image_stays_grey() -> None:
    assert decode(encoded(Image.new("L", (4, 4), 7)), 10**6, as_stored=True).shape == (4, 4, 1)
    wide = Image.fromarray(np.full((4, 4), 0x8001, np.uint16))
    assert (decode(encoded(wide), 10**6, as_stored=True) == np.full((4, 4, 1), 0x80)).all()


@pytest.mark.parametrize(
    ("content", "kind", "detail"),
    [
        (b"not an image", RejectionKind.NO_IMAGE, "is no image of a known format"),
        (encoded(RGB)[:500], RejectionKind.DAMAGED, "cannot be decoded: .*truncated"),
        (encoded(RGB, "JPEG")[:400], RejectionKind.DAMAGED, "cannot be decoded: .*[Tt]runcated"),
        (encoded(RGB)[:60] + bytes(50) + encoded(RGB)[110:], RejectionKind.DAMAGED, "cannot be decoded"),
        (encoded(Image.new("RGB", (1001, 1000))), RejectionKind.TOO_LARGE, "1001x1000 is more than 1000000 pixels"),
    ],
)
def test_damaged_and_huge_files_are_rejected_with_a_reason(content: bytes, kind: RejectionKind, detail: str) -> None:
    with pytest.raises(RejectedImageError, match=detail) as rejected:
        decode(content, 10**6)
    assert rejected.value.rejection.kind is kind


def test_a_decompression_bomb_is_rejected_before_it_is_unpacked() -> None:
    """A PNG header that promises 60,000 x 60,000 pixels over an empty stream."""
    chunk = b"IHDR" + (60000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    content = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    with pytest.raises(RejectedImageError, match="60000x60000 is more than 100000000 pixels"):
        decode(content + (0).to_bytes(4, "big") + b"IDAT", 10**8)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_files_are_decoded_with_small_errors(kind: str) -> None:
    smooth = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    assert np.abs(decode(encoded(smooth, kind, quality=95), 10**6).astype(int) - np.asarray(smooth)).max() <= 4


@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bits_of_three_channels_keep_the_high_byte(channels: int) -> None:
    wide = np.random.default_rng(0).integers(0, 65536, (6, 5, channels), np.uint16)
    wide[..., 3:] = 65535
    sink = io.BytesIO()
    tifffile.imwrite(sink, wide, photometric="rgb", extrasamples=["unassalpha"] if channels == 4 else None)
    assert read_size(sink.getvalue()) == (5, 6)
    assert np.array_equal(decode(sink.getvalue(), 10**6), wide[..., :3] >> 8)
    with pytest.raises(RejectedImageError, match="5x6 is more than 29 pixels"):
        decode(sink.getvalue(), 29)


def test_only_the_first_frame_of_an_animation_is_decoded() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime")]
    for kind in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert (decode(content, 10**6) == [255, 0, 0]).all(), kind


def test_a_colour_profile_is_applied_unless_it_is_srgb_or_a_benchmark_is_read() -> None:
    """The same values mean a stronger red in Display P3 than in sRGB."""
    stored = Image.new("RGB", (4, 4), (128, 64, 64))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert (decode(encoded(stored, icc_profile=srgb), 10**6) == [128, 64, 64]).all()
    wide = wide_gamut_profile()
    red, green, blue = decode(encoded(stored, icc_profile=wide), 10**6)[0, 0].tolist()
    assert red > 128
    assert green < 64
    for other in (stored.convert("RGBA"), stored.quantize()):
        assert (decode(encoded(other, icc_profile=wide), 10**6) == [red, green, blue]).all(), other.mode
    assert (decode(encoded(stored, icc_profile=wide), 10**6, as_stored=True) == [128, 64, 64]).all()
    assert (decode(encoded(stored, icc_profile=b"rubbish"), 10**6) == [128, 64, 64]).all()


def wide_gamut_profile() -> bytes:
    """Build a matrix profile with sRGB's curve and the primaries of Display P3, as the ICC specification defines it."""

    def fixed(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(*values: float) -> bytes:
        return b"XYZ " + bytes(4) + b"".join(map(fixed, values))

    curve = (
        b"para"
        + bytes(4)
        + struct.pack(">HH", 3, 0)
        + b"".join(map(fixed, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)))
    )
    text = "wide".encode("utf-16-be")
    name = b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(text), 28) + text
    tags = {
        b"desc": name, b"cprt": name, b"wtpt": xyz(0.9642, 1, 0.8249),
        b"rXYZ": xyz(0.5151, 0.2412, -0.0011), b"gXYZ": xyz(0.2920, 0.6922, 0.0419),
        b"bXYZ": xyz(0.1571, 0.0666, 0.7841),
        b"rTRC": curve, b"gTRC": curve, b"bTRC": curve,
    }  # fmt: skip
    table, data, start = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, content in tags.items():
        table += tag + struct.pack(">II", start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    size = start + len(data)
    head = struct.pack(">I4sI4s4s4s12s4s", size, bytes(4), 0x04000000, b"mntr", b"RGB ", b"XYZ ", bytes(12), b"acsp")
    head += bytes(28) + fixed(0.9642) + fixed(1) + fixed(0.8249)
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + data


def test_formats_that_run_programs_are_not_opened() -> None:
    with pytest.raises(RejectedImageError, match="is no image of a known format"):
        decode(encoded(RGB, "EPS"), 10**6)


def test_floating_point_is_refused() -> None:
    with pytest.raises(RejectedImageError, match="floating-point samples") as rejected:
        decode(encoded(Image.new("F", (4, 4), 0.5), "TIFF"), 10**6)
    assert rejected.value.rejection.kind is RejectionKind.UNSUPPORTED
