"""Mutated image files are decoded or rejected with a reason."""

import io
import itertools
import random
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.data.images import decode, read_size
from pipeline.data.rejection import RejectedImageError
from tests.conftest import random_image
from tests.fuzz.campaign import Campaign, whole_campaign
from tests.fuzz.mutations import mutate_bytes
from tests.pipeline.data.formats.encoders import bmp, bmp_rows, chunk, decode_channels, png, saved, tiff
from tests.pipeline.data.formats.test_colour import LINEAR, LINEAR_GREY

LIMIT = 200_000
PIXELS = random_image(24, 33)
RGBA = np.dstack([PIXELS, PIXELS[:, :, 0]])
WIDE = PIXELS.astype(np.uint16) * 257
RGB = Image.fromarray(PIXELS)
EXIF = Image.Exif()
EXIF[0x0112] = 6


def png_seeds() -> list[bytes]:
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(LINEAR))
    text = chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0tiff:Orientation="6"') + chunk(
        b"zTXt", b"a\0\0" + zlib.compress(b"b")
    )
    palette = chunk(b"PLTE", PIXELS[0, :16].tobytes()) + chunk(b"tRNS", bytes(range(9)))
    return [
        png(PIXELS, 8, 2, before=profile + text + chunk(b"eXIf", EXIF.tobytes()[6:])),
        png(WIDE, 16, 2, before=chunk(b"tRNS", bytes(6)), interlaced=True),
        png(
            WIDE[:, :, :1],
            16,
            0,
            before=chunk(b"tRNS", b"\1\1") + chunk(b"iCCP", b"a\0\0" + zlib.compress(LINEAR_GREY)),
        ),
        png(PIXELS[:, :, :1] >> 4, 4, 3, before=palette, interlaced=True),
        png(WIDE[:, :, :2], 16, 4),
        saved(RGB, save_all=True, append_images=[RGB.rotate(180)]),
    ]


def jpeg_seeds() -> list[bytes]:
    return [
        saved(RGB, "JPEG", exif=EXIF, icc_profile=LINEAR, comment=b"a comment"),
        saved(RGB, "JPEG", progressive=True, subsampling=0),
        saved(RGB.convert("CMYK"), "JPEG"),
        saved(RGB.convert("L"), "JPEG", icc_profile=LINEAR_GREY, restart_marker_blocks=2),
        saved(RGB, "MPO", save_all=True, append_images=[RGB]),
    ]


def webp_seeds() -> list[bytes]:
    return [
        saved(RGB, "WEBP", exif=EXIF.tobytes(), icc_profile=LINEAR, xmp=b"xmp"),
        saved(RGB, "WEBP", lossless=True),
        saved(Image.fromarray(RGBA), "WEBP", quality=50),
        saved(RGB, "WEBP", save_all=True, append_images=[RGB.rotate(180)]),
    ]


def tiff_seeds() -> list[bytes]:
    tags: dict[int, Any] = {274: (3, [6]), 34675: (7, LINEAR), 700: (1, b"xmp")}
    return [
        *(tiff(PIXELS, 8, 2, compression=c, rows=7, tags=tags) for c in (1, 5, 8, 32773, 50000)),
        tiff(WIDE, 16, 2, compression=5, predictor=2, planar=2, tile=(16, 16), order=">", big=True),
        tiff(WIDE[:, :, :1], 12, 1, tags={34675: (7, LINEAR_GREY)}),
        tiff(PIXELS[:, :, :1] >> 4, 4, 3, tags={320: (3, list(range(48)))}),
        tiff(RGBA, 8, 5, fill_order=2),
        tiff(WIDE[:, :, [0, 1]], 16, 1, tags={338: (3, [1])}),
        saved(RGB, "TIFF", compression="jpeg"),
        saved(RGB.convert("1"), "TIFF", compression="group4"),
        saved(RGB.convert("1"), "TIFF", compression="group3"),
        saved(RGB, "TIFF", save_all=True, append_images=[RGB.rotate(180)]),
    ]


def bmp_seeds() -> list[bytes]:
    indices = PIXELS[:, :, 0] >> 4
    runs = b"".join(
        b"".join(bytes([len(list(group)), value]) for value, group in itertools.groupby(row.tolist())) + b"\0\0"
        for row in indices
    )
    size = PIXELS.shape[1::-1]
    palette = bytes(range(256)) * 4
    masks = (0xFF, 0xFF00, 0xFF0000, 0xFF000000)
    return [
        bmp(size, 8, runs + b"\0\1", compression=1, palette=palette),
        bmp(size, 4, runs + b"\0\2\1\1\0\5abcdef\0\1", compression=2, palette=palette[:64]),
        bmp(size, 16, bmp_rows(WIDE[:, :, 0], 16), compression=3, masks=(0xF800, 0x7E0, 0x1F)),
        bmp(size, 32, bmp_rows(RGBA.view("<u4")[:, :, 0], 32), header=124, compression=3, masks=masks),
        bmp(size, 1, bmp_rows(indices & 1, 1), header=12, palette=palette[:6]),
        saved(RGB, "BMP"),
    ]


def gif_seeds() -> list[bytes]:
    palette = RGB.quantize(16)
    return [
        saved(palette, "GIF", transparency=3, comment=b"a comment"),
        saved(palette, "GIF", interlace=0),
        saved(palette, "GIF", save_all=True, append_images=[palette.rotate(180)], duration=40, loop=0),
    ]


def avif_seeds() -> list[bytes]:
    return [
        saved(RGB, "AVIF", exif=EXIF, icc_profile=LINEAR, speed=10),
        saved(Image.fromarray(RGBA), "AVIF", speed=10),
        saved(RGB, "AVIF", save_all=True, append_images=[RGB.rotate(180)], speed=10),
    ]


def repair(content: bytes) -> bytes:
    """Set right the checksums of a PNG file, so that a change reaches what reads the chunks."""
    source, target = io.BytesIO(content), io.BytesIO()
    target.write(source.read(8))
    while len(head := source.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        body = source.read(min(length, len(content)))
        source.read(4)
        target.write(head + body + struct.pack(">I", zlib.crc32(kind + body)))
    return target.getvalue()


SEEDS = {"PNG": png_seeds, "JPEG": jpeg_seeds, "WebP": webp_seeds, "TIFF": tiff_seeds, "BMP": bmp_seeds}
MORE_SEEDS = {"GIF": gif_seeds, "AVIF": avif_seeds}
"""Formats that are enlarged, but are no images of a dataset."""
ALL_SEEDS = SEEDS | MORE_SEEDS


def make(kind: str) -> Any:
    seeds = ALL_SEEDS[kind]()

    def mutated(random_: random.Random) -> bytes:
        content = mutate_bytes(random_, seeds)
        return repair(content) if kind == "PNG" and random_.random() < 0.7 else content

    return mutated


def use(content: bytes) -> None:
    """Decode an image in every way, and check the result's form."""
    try:
        size = read_size(content)
    except RejectedImageError:
        size = None
    pixels = decode(content, LIMIT)
    assert size in (pixels.shape[1::-1], pixels.shape[:2])
    assert 0 < pixels.shape[0] * pixels.shape[1] <= LIMIT
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    assert pixels.flags.c_contiguous
    stored = decode(content, LIMIT, as_stored=True)
    channels, alpha = decode_channels(content, LIMIT)
    assert stored.shape == channels.shape == (*pixels.shape[:2], stored.shape[2])
    assert alpha is None or alpha.shape == pixels.shape[:2]


@pytest.mark.parametrize("kind", SEEDS)
@pytest.mark.parametrize("count", [40, pytest.param(1500, marks=whole_campaign)])
def test_mutated_images(kind: str, count: int) -> None:
    Campaign(kind, make(kind), use, (RejectedImageError,)).run(count)


def use_channels(content: bytes) -> None:
    """Decode an image of a format that only `read_image` takes."""
    channels, alpha = decode_channels(content, LIMIT)
    assert 0 < channels.shape[0] * channels.shape[1] <= LIMIT
    assert alpha is None or alpha.shape == channels.shape[:2]


@pytest.mark.parametrize("kind", MORE_SEEDS)
@pytest.mark.parametrize("count", [25, pytest.param(750, marks=whole_campaign)])
def test_mutated_images_of_other_formats(kind: str, count: int) -> None:
    Campaign(kind, make(kind), use_channels, (RejectedImageError,)).run(count)


@pytest.mark.parametrize("kind", SEEDS)
def test_the_seeds_are_whole(kind: str) -> None:
    for content in SEEDS[kind]():
        use(content)


@pytest.mark.parametrize("kind", MORE_SEEDS)
def test_the_seeds_of_other_formats_are_whole(kind: str) -> None:
    for content in MORE_SEEDS[kind]():
        use_channels(content)
