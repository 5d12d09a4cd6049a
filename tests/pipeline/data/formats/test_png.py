"""PNG files: every combination of colour type, depth, interlacing and transparency; metadata; damage."""

import itertools
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from pipeline.data.formats import png as reader
from pipeline.data.images import decode, read_size
from pipeline.data.rejection import RejectedImageError, RejectionKind
from tests.conftest import random_image
from tests.pipeline.data.formats.encoders import Array, chunk, decode_channels, png, saved

LIMIT = 10**6
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
KINDS = [
    *((0, bits) for bits in (1, 2, 4, 8, 16)),
    *((3, bits) for bits in (1, 2, 4, 8)),
    *((colour, bits) for colour in (2, 4, 6) for bits in (8, 16)),
]
CASES = [
    (colour, bits, transparent, interlaced, size)
    for colour, bits in KINDS
    for transparent in ((False, True) if colour in (0, 2, 3) else (False,))
    for interlaced, size in itertools.product((False, True), ((1, 1), (9, 13)))
]


def eight(samples: Array, bits: int) -> Array:
    """Reduce samples to 8 bits by the documented rule."""
    return samples >> (bits - 8) if bits > 8 else samples.astype(int) * 255 // (2**bits - 1)


def white(pixels: Array, alpha: Array) -> Array:
    """Put pixels on white."""
    opacity = alpha[:, :, None] / 255
    return np.floor(pixels * opacity + 255 * (1 - opacity) + 0.5)


@pytest.mark.parametrize(("colour", "bits", "transparent", "interlaced", "size"), CASES)
def test_every_kind_of_png_keeps_its_values(
    colour: int, bits: int, transparent: bool, interlaced: bool, size: tuple[int, int]
) -> None:
    rng = np.random.default_rng(bits + colour)
    kind = np.uint16 if bits == 16 else np.uint8
    samples = rng.integers(0, 2**bits, (*size, CHANNELS[colour]), kind)
    palette = rng.integers(0, 256, (2 ** min(bits, 8), 3), np.uint8)
    before, alpha, grey = b"", None, colour in (0, 4)
    if colour == 3:
        before, pixels = chunk(b"PLTE", palette.tobytes()), palette[samples[:, :, 0]]
    else:
        pixels = eight(samples[:, :, :1] if grey else samples[:, :, :3], bits)
    if colour in (4, 6):
        alpha = eight(samples[:, :, -1], bits)
    if transparent and colour == 3:
        opacity = rng.integers(0, 256, max(len(palette) - 1, 1), np.uint8)
        before += chunk(b"tRNS", opacity.tobytes())
        alpha = np.append(opacity, [255] * 256)[samples[:, :, 0]]
    elif transparent:
        if bits == 16:  # a colour that differs from the transparent one in its low bits alone is visible
            samples[-1, -1] = samples[0, 0] ^ (1 if size != (1, 1) else 0)
            pixels = eight(samples, 16)
        before += chunk(b"tRNS", struct.pack(f">{CHANNELS[colour]}H", *map(int, samples[0, 0])))
        alpha = np.where((samples == samples[0, 0]).all(axis=2), 0, 255)
    content = png(samples, bits, colour, interlaced=interlaced, before=before)
    assert read_size(content) == size[::-1]
    found, opacity_found = decode_channels(content, LIMIT)
    assert np.array_equal(found, pixels)
    assert (opacity_found is None) == (alpha is None)
    if opacity_found is not None and alpha is not None:
        assert np.array_equal(opacity_found, alpha)
        pixels = white(pixels, alpha)
    assert np.array_equal(decode(content, LIMIT), np.broadcast_to(pixels, (*size, 3)))
    assert np.array_equal(decode(content, LIMIT, as_stored=True), pixels)


PIXELS = random_image(20, 30)
PLAIN = png(PIXELS, 8, 2)
BIG_TEXT = PngImagePlugin.PngInfo()
BIG_TEXT.add_text("workflow", '{"node": 1}' * 200_000, zip=True)
MANY = chunk(b"tEXt", b"a\0b") * 50_000


HARMLESS = {
    "text of 2 MB": saved(Image.fromarray(PIXELS), pnginfo=BIG_TEXT),
    "text of 100 MB": png(PIXELS, 8, 2, before=chunk(b"zTXt", b"bomb\0\0" + zlib.compress(bytes(10**8)))),
    "profile of 100 MB": png(PIXELS, 8, 2, before=chunk(b"iCCP", b"bomb\0\0" + zlib.compress(bytes(10**8)))),
    "checksum of gAMA": png(PIXELS, 8, 2, before=chunk(b"gAMA", b"abcd", checksum=0)),
    "checksum of tRNS": png(PIXELS, 8, 2, before=chunk(b"tRNS", b"abcdef", checksum=0)),
    "short tRNS": png(PIXELS, 8, 2, before=chunk(b"tRNS", b"a")),
    "rubbish in eXIf": png(PIXELS, 8, 2, before=chunk(b"eXIf", b"MM\0*rubbish")),
    "rubbish in XMP": png(PIXELS, 8, 2, before=chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0rubbish")),
    "empty pHYs": png(PIXELS, 8, 2, before=chunk(b"pHYs", b"")),
    "100,000 texts": png(PIXELS, 8, 2, before=MANY, after=MANY),
    "pixels again": png(
        PIXELS, 8, 2, before=chunk(b"tEXt", b"a\0b"), after=chunk(b"tEXt", b"") + chunk(b"IDAT", b"again")
    ),
    "no end": PLAIN[:-12],
    "more behind the end": PLAIN + b"anything",
}


@pytest.mark.parametrize("case", HARMLESS)
def test_harmless_chunks_leave_the_image_alone(case: str) -> None:
    assert np.array_equal(decode(HARMLESS[case], LIMIT), PIXELS)


def test_pixels_in_many_small_chunks_are_joined() -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in PIXELS)
    stream = zlib.compress(rows, 0)
    parts = b"".join(chunk(b"IDAT", stream[i : i + 1]) for i in range(len(stream)))
    content = PLAIN[:33] + parts + chunk(b"IEND", b"")
    assert np.array_equal(decode(content, LIMIT), PIXELS)


@pytest.mark.parametrize("where", ["eXIf", "text", "packed text", "XMP", "packed XMP"])
def test_an_orientation_is_found_wherever_writers_put_it(where: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes()
    text = b"\nexif\n%8d\n%s" % (len(raw), raw.hex().encode())
    xmp = b'<x tiff:Orientation="6"/>'
    content = {
        "eXIf": chunk(b"eXIf", raw.removeprefix(b"Exif\0\0")),
        "text": chunk(b"tEXt", b"Raw profile type exif\0" + text),
        "packed text": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)),
        "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        "packed XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)),
    }[where]
    turned = np.rot90(PIXELS, -1)
    assert np.array_equal(decode(png(PIXELS, 8, 2, before=content), LIMIT), turned)
    assert np.array_equal(decode(png(PIXELS, 8, 2, after=content), LIMIT), turned)


def header(*values: int) -> bytes:
    return PLAIN[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", *values)) + PLAIN[33:]


REJECTED = [
    (header(0, 5, 8, 2, 0, 0, 0), "DAMAGED", "cannot be decoded: its header states a size of 0x5"),
    (header(5, 5, 4, 2, 0, 0, 0), "DAMAGED", "header states 4 bits and colour type 2, which the format does not"),
    (PLAIN[:20], "DAMAGED", "its header is cut off"),
    (PLAIN[:8], "DAMAGED", "its header is cut off"),
    (PLAIN[:29] + b"abcd" + PLAIN[33:], "DAMAGED", "its header has a wrong checksum"),
    (PLAIN[:-16] + b"abcd" + PLAIN[-12:], "DAMAGED", "a chunk of its pixels has a wrong checksum"),
    (PLAIN[:700], "DAMAGED", "truncated"),
    (PLAIN[:33] + PLAIN[-12:], "DAMAGED", "it has no pixels"),
    (png(PIXELS[:, :, :1], 8, 3), "DAMAGED", "its palette is missing or has a wrong size"),
    (png(PIXELS, 8, 2, before=chunk(b"ABCD", b"")), "UNSUPPORTED", "has the unknown critical chunk 'ABCD'"),
    (PLAIN[:8] + chunk(b"CgBI", bytes(4)) + PLAIN[8:], "UNSUPPORTED", "is a PNG file in Apple's own variant"),
    (png(PIXELS, 8, 2, before=chunk(b"cICP", b"\x09\x10\0\1")), "UNSUPPORTED", "has high dynamic range (PQ)"),
    (
        png(PIXELS, 8, 2, before=chunk(b"tEXt", b"") * reader.MAX_CHUNKS),
        "TOO_LARGE",
        "has more than 250000 chunks, the limit of this decoder",
    ),
]


@pytest.mark.parametrize("number", range(len(REJECTED)))
def test_the_reason_of_a_rejection_is_true(number: int) -> None:
    content, kind, detail = REJECTED[number]
    with pytest.raises(RejectedImageError) as rejected:
        decode(content, LIMIT)
    assert rejected.value.rejection.kind is RejectionKind[kind]
    assert detail in str(rejected.value)


def damage(stream: bytes, how: str, place: float) -> bytes:
    """Change a compressed stream; the checksum of its chunk is right afterwards."""
    at = int(place * len(stream))
    if how == "flipped bit":
        return stream[:at] + bytes([stream[at] ^ 1 << at % 8]) + stream[at + 1 :]
    if how == "other filters":
        plain = bytearray(zlib.decompress(stream))
        plain[0] = at % 7
        return zlib.compress(bytes(plain))
    other = {
        "whole": stream,
        "cut off": stream[:at],
        "wrong checksum": stream[:-1] + bytes([stream[-1] ^ 1]),
        "more after the end": stream + bytes(at % 20),
        "zeros instead of the end": stream[:at] + bytes(30),
        "a row too few": zlib.compress(zlib.decompress(stream)[: -1 - at % 30]),
        "a row too many": zlib.compress(zlib.decompress(stream) + bytes(at % 99)),
    }
    return other[how]


@given(data=st.data())
def test_the_fast_decoder_decides_like_pillow(data: st.DataObject) -> None:
    """Both give the same pixels, or the same reason for which there are none, whatever chunks the pixels lie in."""
    size = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30))
    plain = saved(Image.fromarray(random_image(*size, seed=data.draw(st.integers(0, 99)))), "PNG")
    kinds = ["whole", "flipped bit", "cut off", "wrong checksum", "other filters", "more after the end"]
    kinds += ["zeros instead of the end", "a row too few", "a row too many"]
    begin = plain.index(b"IDAT")
    stream = plain[begin + 4 : begin + 4 + struct.unpack_from(">I", plain, begin - 4)[0]]
    stream = damage(stream, data.draw(st.sampled_from(kinds)), data.draw(st.floats(0, 1, exclude_max=True)))
    kinds = ["", "tEXt", "gAMA", "tIME"]
    extra = {"": b"", "tEXt": b"a\0b", "gAMA": struct.pack(">I", 100_000), "tIME": bytes([7, 208, 1, 1, 0, 0, 0])}
    kind = data.draw(st.sampled_from(kinds))
    before = chunk(kind.encode(), extra[kind]) if kind else b""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=3)))
    pieces = [stream[first:last] for first, last in itertools.pairwise([0, *cuts, len(stream)])]

    def result(*pieces: bytes) -> bytes | str:
        content = plain[:33] + before + b"".join(chunk(b"IDAT", part) for part in pieces) + chunk(b"IEND", b"")
        try:
            return decode(content, LIMIT).tobytes()
        except RejectedImageError as error:
            return str(error)

    def fail(_: bytes) -> None:
        raise ValueError

    fast = result(*pieces)
    assert result(stream) == fast
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("imagecodecs.spng_decode", fail)
        assert result(*pieces) == fast
