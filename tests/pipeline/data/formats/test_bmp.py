"""BMP files: every header, depth, mask and compression; the pixels are known arrays."""

import itertools
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data.formats import bmp as reader
from pipeline.data.images import decode, read_size
from pipeline.data.rejection import RejectedImageError
from tests.conftest import random_image
from tests.pipeline.data.formats.encoders import Array, assert_rejected, bmp, bmp_rows, decode_channels, saved
from tests.pipeline.data.formats.test_png import white

LIMIT = 10**6
SIZE = (7, 11)
HEADERS = (12, 40, 52, 56, 64, 108, 124)
MASKS: dict[str, tuple[int, tuple[int, ...]]] = {
    "555": (16, (0x7C00, 0x3E0, 0x1F)),
    "565": (16, (0xF800, 0x7E0, 0x1F)),
    "444": (16, (0xF00, 0xF0, 0xF)),
    "1555": (16, (0x7C00, 0x3E0, 0x1F, 0x8000)),
    "4444": (16, (0xF00, 0xF0, 0xF, 0xF000)),
    "888": (32, (0xFF0000, 0xFF00, 0xFF)),
    "888, red last": (32, (0xFF, 0xFF00, 0xFF0000)),
    "8888": (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)),
    "8888, opacity first": (32, (0xFF000000, 0xFF0000, 0xFF00, 0xFF)),
    "10 bits": (32, (0x3FF00000, 0xFFC00, 0x3FF)),
    "10 bits and 2": (32, (0x3FF00000, 0xFFC00, 0x3FF, 0xC0000000)),
}


def component(pixels: Array, mask: int) -> Array:
    """Return what a mask selects, scaled to 0..255 and rounded down."""
    bits = [bit for bit in range(32) if mask >> bit & 1]
    values = (pixels.astype(np.int64) & mask) >> bits[0]
    return values >> (len(bits) - 8) if len(bits) > 8 else values * 255 // (2 ** len(bits) - 1)


def check(content: bytes, colours: Array, alpha: Array | None = None) -> None:
    """Check that a file is decoded to colours, (H, W, C), and an opacity."""
    assert read_size(content) == colours.shape[1::-1]
    found, found_alpha = decode_channels(content, LIMIT)
    assert np.array_equal(found, colours)
    assert (found_alpha is None) == (alpha is None)
    if found_alpha is not None and alpha is not None:
        assert np.array_equal(found_alpha, alpha)
        colours = white(colours, alpha)
    assert np.array_equal(decode(content, LIMIT), np.broadcast_to(colours, (*colours.shape[:2], 3)))
    assert np.array_equal(decode(content, LIMIT, as_stored=True), colours)


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("colours", ["random", "grey", "two"])
def test_palettes_of_every_header_are_read(header: int, bits: int, colours: str) -> None:
    """Pillow takes a short grey palette for 8-bit or 1-bit grey, whatever the depth."""
    rng = np.random.default_rng(bits)
    count = 2 if colours == "two" and header != 12 else 2**bits
    palette = random_image(1, count)[0]
    if colours != "random":
        palette = np.repeat(
            np.linspace(0, count - 1 if colours == "grey" else 255, count, dtype=np.uint8)[:, None], 3, 1
        )
    top_down = header == 40
    indices = rng.integers(0, count, SIZE, np.uint8)
    stored = palette[:, ::-1] if header == 12 else np.pad(palette[:, ::-1], ((0, 0), (0, 1)))
    content = bmp(
        SIZE[::-1], bits, bmp_rows(indices, bits, top_down), header=header, palette=stored.tobytes(),
        colours=count % 2**bits, top_down=top_down,
    )  # fmt: skip
    expected = palette[indices]
    check(content, expected if colours == "random" else expected[:, :, :1])


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("bits", [16, 24, 32])
def test_pixels_without_masks_are_read(header: int, bits: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 2**bits, SIZE, np.uint32)
    masks = (0x7C00, 0x3E0, 0x1F) if bits == 16 else (0xFF0000, 0xFF00, 0xFF)
    content = bmp(SIZE[::-1], bits, bmp_rows(pixels, bits), header=header)
    check(content, np.dstack([component(pixels, mask) for mask in masks]))


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("header", [40, 52, 56, 108, 124])
def test_pixels_with_masks_are_read(name: str, header: int) -> None:
    bits, masks = MASKS[name]
    if header == 52:
        masks = masks[:3]
    pixels = np.random.default_rng(0).integers(0, 2**bits, SIZE, np.uint32)
    compression = 6 if header == 40 and len(masks) == 4 else 3
    content = bmp(SIZE[::-1], bits, bmp_rows(pixels, bits), header=header, compression=compression, masks=masks)
    colours = np.dstack([component(pixels, mask) for mask in masks[:3]])
    check(content, colours, component(pixels, masks[3]) if len(masks) == 4 else None)


@pytest.mark.parametrize("name", ["1555", "8888"])
def test_an_opacity_of_0_everywhere_means_opaque(name: str) -> None:
    """Photoshop and clipboards write such files, and Windows and Photoshop show them."""
    bits, masks = MASKS[name]
    pixels = np.random.default_rng(0).integers(0, 2**bits, SIZE, np.uint32) & ~np.uint32(masks[3])
    content = bmp(SIZE[::-1], bits, bmp_rows(pixels, bits), header=124, compression=3, masks=masks)
    check(content, np.dstack([component(pixels, mask) for mask in masks[:3]]))


def palette_of(bits: int) -> tuple[Array, bytes]:
    palette = random_image(1, 2**bits)[0]
    return palette, np.pad(palette[:, ::-1], ((0, 0), (0, 1))).tobytes()


@pytest.mark.parametrize("compression", [1, 2])
def test_runs_are_decoded(compression: int) -> None:
    """The example of Microsoft's documentation: runs, single pixels, a move and the ends of rows."""
    bits = 8 if compression == 1 else 4
    palette, stored = palette_of(bits)
    if compression == 1:
        runs = bytes.fromhex("03040506 00034556 67000278 00020501 02780000 091e0001")
        rows = [[4] * 3 + [6] * 5 + [0x45, 0x56, 0x67], [0x78] * 2, []]
        first, second = rows[0] + [0x78] * 2, [0] * 18 + [0x78] * 2
        expected = [first, second, [0x1E] * 9]
    else:
        runs = bytes.fromhex("03040506 00064556 67000478 00020501 04780000 091e0001")
        first = [0, 4, 0, 0, 6, 0, 6, 0, 4, 5, 5, 6, 6, 7, 7, 8, 7, 8]
        expected = [first, [0] * 23 + [7, 8, 7, 8], [1, 14, 1, 14, 1, 14, 1, 14, 1]]
    width = max(map(len, expected))
    indices = np.array([row + [0] * (width - len(row)) for row in expected])
    content = bmp((width, 3), bits, runs, compression=compression, palette=stored)
    check(content, palette[indices][::-1])


@pytest.mark.parametrize("compression", [1, 2])
def test_runs_of_random_images_are_decoded(compression: int) -> None:
    rng, bits = np.random.default_rng(0), 8 if compression == 1 else 4
    palette, stored = palette_of(bits)
    indices = rng.integers(0, 2**bits, (20, 6), np.uint8).repeat(rng.integers(1, 9, 6), axis=1)
    runs = b""
    for row in indices[::-1]:
        for value, group in itertools.groupby(row.tolist()):
            count = len(list(group))
            runs += bytes([count, value if bits == 8 else value * 17])
        runs += b"\0\0"
    content = bmp(indices.shape[::-1], bits, runs + b"\0\1", compression=compression, palette=stored)
    check(content, palette[indices])


def test_files_of_pillow_are_read() -> None:
    image = Image.fromarray(random_image(*SIZE))
    for mode in ("1", "L", "P", "RGB"):
        converted = image.convert(mode)
        assert np.array_equal(decode(saved(converted, "BMP"), LIMIT), np.asarray(converted.convert("RGB"))), mode


def test_an_embedded_profile_is_found() -> None:
    pixels = np.random.default_rng(0).integers(0, 2**24, SIZE, np.uint32)
    rows = bmp_rows(pixels, 24)
    plain = bmp(SIZE[::-1], 24, rows, header=124)
    profile = b"a profile"
    content = bytearray(plain + profile)
    content[14 + 56 : 14 + 60] = b"DEBM"
    struct.pack_into("<II", content, 14 + 112, len(plain) - 14, len(profile))
    assert reader.open_bmp(bytes(content)).profile == profile
    check(bytes(content), np.dstack([component(pixels, mask) for mask in (0xFF0000, 0xFF00, 0xFF)]))


PIXELS = bmp_rows(np.zeros(SIZE, np.uint32), 24)


def plain(bits: int = 24, size: tuple[int, int] = SIZE[::-1], pixels: bytes = PIXELS, **options: Any) -> bytes:
    return bmp(size, bits, pixels, **options)


REJECTED = {
    "short": (b"BM", "DAMAGED", "its header is cut off"),
    "header": (plain()[:30], "DAMAGED", "its header is cut off"),
    "text": (b"BM is how this text begins, which is no image", "UNSUPPORTED", "is a BMP file with a header of"),
    "no width": (plain(size=(0, 5)), "DAMAGED", "its header states a size of 0x5"),
    "negative width": (plain(size=(-3, 5)), "DAMAGED", "its header states a size of -3x5"),
    "cut off": (plain()[:-9], "DAMAGED", "its pixels are cut off"),
    "JPEG": (
        plain(compression=4),
        "UNSUPPORTED",
        "is a BMP file with compression 4, expected none, RLE or colour masks",
    ),
    "OS/2's RLE24": (plain(header=64, compression=4), "UNSUPPORTED", "is a BMP file with compression 4"),
    "3 bits": (plain(3), "UNSUPPORTED", "is a BMP file with 3 bits a pixel and compression 0, which do not fit"),
    "RLE of 24 bits": (plain(compression=1), "UNSUPPORTED", "is a BMP file with 24 bits a pixel and compression 1"),
    "gap in a mask": (
        plain(32, pixels=bytes(400), compression=3, masks=(0xF0F, 0xF0, 0xF000)),
        "UNSUPPORTED",
        "is a BMP file with the colour mask 0xf0f, expected adjacent bits of a pixel",
    ),
    "wide mask": (
        plain(16, pixels=bytes(400), compression=3, masks=(0xF0000, 0xF0, 0xF)),
        "UNSUPPORTED",
        "is a BMP file with the colour mask 0xf0000",
    ),
    "palette": (plain(8, pixels=b""), "DAMAGED", "its palette is cut off"),
    "runs": (plain(8, pixels=b"\3\4", compression=1, palette=palette_of(8)[1]), "DAMAGED", "its pixels are cut off"),
    "single pixels": (
        plain(8, pixels=b"\0\x09abc", compression=1, palette=palette_of(8)[1]),
        "DAMAGED",
        "its pixels are cut off",
    ),
}


@pytest.mark.parametrize("case", REJECTED)
def test_the_reason_of_a_rejection_is_true(case: str) -> None:
    assert_rejected(*REJECTED[case])


def test_too_many_runs_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_RUNS", 100)
    content = plain(8, pixels=b"\1\1" * 101, compression=1, palette=palette_of(8)[1])
    with pytest.raises(RejectedImageError, match="has more than 100 runs, the limit of this decoder"):
        decode(content, LIMIT)
