import io
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.images import decode, read_size
from pipeline.data.rejection import RejectedImageError, RejectionKind
from tests.conftest import ROOT, random_image
from tests.pipeline.data.formats.test_colour import LINEAR


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
        (b"", RejectionKind.NO_IMAGE, "is no image of a known format"),
        (b"not an image", RejectionKind.NO_IMAGE, "is no image of a known format"),
        (encoded(RGB)[:500], RejectionKind.DAMAGED, "cannot be decoded: .*truncated"),
        (encoded(RGB, "JPEG")[:400], RejectionKind.DAMAGED, "cannot be decoded: .*[Tt]runcated"),
        (encoded(RGB)[:60] + bytes(50) + encoded(RGB)[110:], RejectionKind.DAMAGED, "cannot be decoded"),
        (encoded(Image.new("RGB", (1001, 1000))), RejectionKind.TOO_LARGE, "1001x1000 is more than 1000000 pixels"),
    ],
    ids=["empty", "text", "half a PNG", "half a JPEG", "zeros in a PNG", "large"],
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


def test_only_the_first_frame_of_an_animation_is_decoded() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime")]
    for kind in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert (decode(content, 10**6) == [255, 0, 0]).all(), kind


def test_formats_that_run_programs_are_not_opened() -> None:
    with pytest.raises(RejectedImageError, match="is no image of a known format"):
        decode(encoded(RGB, "EPS"), 10**6)


def test_a_benchmarks_image_keeps_its_values_whatever_its_profile_says() -> None:
    content = encoded(RGB, icc_profile=LINEAR)
    assert np.array_equal(decode(content, 10**6, as_stored=True), np.asarray(RGB))
    assert not np.array_equal(decode(content, 10**6), np.asarray(RGB))


WITH_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from pipeline.data.images import decode, read_size
from pipeline.data.rejection import RejectedImageError
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**25, used + 2**25))
for file in sys.argv[1:]:
    content = Path(file).read_bytes()
    assert read_size(content) == (4000, 4000)
    try:
        decode(content, 10**9)
    except RejectedImageError as error:
        print(error.rejection.kind.name, error)
"""


def test_a_lack_of_memory_is_said_and_is_not_taken_for_damage(tmp_path: Path) -> None:
    """Memory suffices to read the header of an image of 16 megapixels, but not to decode it."""
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP"):
        options = {"compression": "tiff_lzw"} if kind == "TIFF" else {}
        Image.new("1" if kind == "BMP" else "RGB", (4000, 4000)).save(tmp_path / kind, kind, **options)
    command = [sys.executable, "-c", WITH_LITTLE_MEMORY, *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    sentence = "UNREADABLE cannot be decoded now: there is not enough memory to decode it"
    assert done.stdout.splitlines() == [sentence] * 5


SEED_FILES = [encoded(RGB, kind) for kind in ("PNG", "JPEG", "WEBP", "TIFF", "BMP")]


@given(st.sampled_from(SEED_FILES), st.data())
def test_whatever_is_wrong_with_a_file_is_a_rejection_with_a_reason(content: bytes, data: st.DataObject) -> None:
    changed = bytearray(content[: data.draw(st.integers(0, len(content)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if changed:
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    for function in (lambda content: decode(content, 10**6), read_size):
        reason = None
        try:
            function(bytes(changed))
        except RejectedImageError as error:
            reason = str(error).removeprefix("cannot be decoded: ")
        assert reason != ""
