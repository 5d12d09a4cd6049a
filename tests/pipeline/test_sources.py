import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import UserError
from pipeline.sources import RejectedPictureError, decode, find_benchmark, find_pictures, header, read_bytes
from tests.conftest import random_picture


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, kind, **options)
    return sink.getvalue()


RGB = Image.fromarray(random_picture(20, 30))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_files_keep_every_value(kind: str) -> None:
    assert np.array_equal(decode(encoded(RGB, kind), 10**6), np.asarray(RGB))


@pytest.mark.parametrize(
    ("picture", "expected"),
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
def test_every_mode_becomes_rgb(picture: Image.Image, expected: tuple[int, int, int]) -> None:
    pixels = decode(encoded(picture), 10**6)
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
    assert header(content) == (30, 20)
    assert np.array_equal(decode(content, 10**6), np.rot90(np.asarray(RGB), -1))


def test_a_grey_picture_may_stay_grey() -> None:
    assert decode(encoded(Image.new("L", (4, 4), 7)), 10**6, grey_ok=True).shape == (4, 4, 1)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not a picture", "is no picture of a known format"),
        (encoded(RGB)[:500], "cannot be decoded: .*truncated"),
        (encoded(RGB, "JPEG")[:400], "cannot be decoded: .*[Tt]runcated"),
        (encoded(RGB)[:60] + bytes(50) + encoded(RGB)[110:], "cannot be decoded"),
        (encoded(Image.new("RGB", (1001, 1000))), "1001x1000 is more than 1000000 pixels"),
    ],
)
def test_damaged_and_huge_files_are_rejected_with_a_reason(content: bytes, reason: str) -> None:
    with pytest.raises(RejectedPictureError, match=reason):
        decode(content, 10**6)


def test_a_decompression_bomb_is_rejected_before_it_is_unpacked() -> None:
    """A PNG header that promises 60,000 x 60,000 pixels over an empty stream."""
    chunk = b"IHDR" + (60000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    content = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    with pytest.raises(RejectedPictureError):
        decode(content, 10**8)


def test_the_built_in_photographs_are_there() -> None:
    pictures = find_pictures(["builtin"])
    assert len(pictures) == 9
    for picture in pictures:
        assert min(decode(read_bytes(picture.url), 10**7).shape[:2]) >= 300


def test_folders_files_and_patterns(photos: Path) -> None:
    (photos / "sub").mkdir()
    (photos / "notes.txt").write_text("no picture")
    RGB.save(photos / "sub" / "deep.PNG")
    assert [p.name for p in find_pictures([str(photos)])][-1] == "sub/deep.PNG"
    assert [p.name for p in find_pictures([str(photos / "chelsea*")])] == ["chelsea0.png", "chelsea1.png"]
    assert [p.name for p in find_pictures([str(photos / "coffee1.png")])] == ["coffee1.png"]
    assert len({p.name for p in find_pictures([str(photos), str(photos / "sub")])}) == 8


@pytest.mark.parametrize(("source", "message"), [("none", "does not exist"), (".", "holds no picture")])
def test_a_missing_or_empty_source_is_named(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_pictures([str(tmp_path / source)])


def test_benchmark_layouts(tmp_path: Path) -> None:
    (tmp_path / "a/HR").mkdir(parents=True)
    (tmp_path / "a/LR_bicubic/X4").mkdir(parents=True)
    RGB.save(tmp_path / "a/HR/baby.png")
    RGB.save(tmp_path / "a/LR_bicubic/X4/babyx4.png")
    (found,) = find_benchmark("Set5", str(tmp_path / "a"), 4)
    assert found.name == "baby"
    assert found.lr is not None
    assert found.lr.endswith("babyx4.png")
    (found,) = find_benchmark("Set5", str(tmp_path / "a"), 2)
    assert found.lr is None
    (found,) = find_benchmark("Set5", str(tmp_path / "a/HR"), 4)
    assert (found.name, found.lr) == ("baby", None)
    RGB.save(tmp_path / "a/HR/bird.png")
    with pytest.raises(UserError, match="has no LR file for bird"):
        find_benchmark("Set5", str(tmp_path / "a"), 4)
