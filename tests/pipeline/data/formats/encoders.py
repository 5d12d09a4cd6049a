"""Writers of PNG, TIFF and BMP files from arrays that the tests know, with every property that the formats allow."""

import io
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipeline.data.formats.colour import to_srgb_deep
from pipeline.data.formats.raster import eight_bits
from pipeline.data.images import decode, read_image
from pipeline.data.rejection import RejectedImageError, RejectionKind

Array = npt.NDArray[Any]

ADAM7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
"""First row, first column, and steps of rows and columns of each pass of an interlaced PNG."""


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Encode an image with Pillow."""
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def pack(samples: Array, bits: int, order: str = ">") -> bytes:
    """Pack (rows, samples of a row) into bytes, the most significant bit first; each row begins at a byte."""
    if bits in (8, 16, 32, 64):
        return samples.astype(samples.dtype.newbyteorder("<" if order == "<" else ">")).tobytes()
    single = (samples[:, :, None].astype(np.uint32) >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(single.reshape(len(samples), -1).astype(np.uint8), axis=1).tobytes()


def chunk(kind: bytes, body: bytes, checksum: int | None = None) -> bytes:
    """Make a PNG chunk."""
    right = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", right if checksum is None else checksum)


def png(
    samples: Array, bits: int, colour: int, *, interlaced: bool = False, before: bytes = b"", after: bytes = b""
) -> bytes:
    """Encode (H, W, C) as a PNG file of a colour type.

    Args:
        samples: unscaled samples, or indices of a palette.
        bits: bits of a sample.
        colour: 0 grey, 2 RGB, 3 palette, 4 grey with opacity, 6 RGBA.
        interlaced: store the seven passes of Adam7.
        before: chunks before the pixels.
        after: chunks behind the pixels.
    """
    height, width = samples.shape[:2]
    passes = [samples[y::dy, x::dx] for y, x, dy, dx in (ADAM7 if interlaced else [(0, 0, 1, 1)])]
    rows = b"".join(b"\0" + pack(row.reshape(1, -1), bits) for part in passes if part.shape[1] for row in part)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced))
    end = chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(rows)) + after + end


_CODECS: dict[int, Callable[[bytes], bytes | bytearray]] = {
    1: lambda stored: stored,
    5: imagecodecs.lzw_encode,
    8: imagecodecs.zlib_encode,
    32773: imagecodecs.packbits_encode,
    32946: imagecodecs.zlib_encode,
    50000: imagecodecs.zstd_encode,
}
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def tiff(
    samples: Array,
    bits: int,
    photometric: int,
    *,
    order: str = "<",
    big: bool = False,
    compression: int = 1,
    planar: int = 1,
    predictor: int = 1,
    tile: tuple[int, int] | None = None,
    rows: int | None = None,
    fill_order: int = 1,
    tags: dict[int, tuple[int, Sequence[int] | bytes]] | None = None,
    segments: Iterable[bytes] | None = None,
    codec: Callable[[Array], bytes] | None = None,
) -> bytes:
    """Encode (H, W, C) unscaled samples as a TIFF file.

    Args:
        samples: the samples; their dtype counts for 8 bits and more.
        bits: bits of a sample.
        photometric: number of the photometric interpretation.
        order: "<" or ">", the byte order.
        big: write BigTIFF.
        compression: number of the compression.
        planar: 1 for samples beside each other, 2 for planes.
        predictor: 2 stores differences.
        tile: height and width of tiles; None for strips.
        rows: rows of a strip; None for one strip.
        fill_order: 2 stores the lowest bit of a byte first.
        tags: further tags, or others than these; each has a type and its values. An empty value leaves a tag out.
        segments: compressed strips or tiles that replace those of the samples.
        codec: function that compresses a strip or tile, (h, w, C).
    """
    height, width, channels = samples.shape
    planes = [samples[:, :, [channel]] for channel in range(channels)] if planar == 2 else [samples]
    high, wide = tile or (rows or height, width)
    parts = []
    for plane in planes:
        for y in range(0, height, high):
            for x in range(0, width, wide):
                part = plane[y : y + high, x : x + wide]
                if tile:
                    part = np.pad(part, ((0, high - part.shape[0]), (0, wide - part.shape[1]), (0, 0)), "edge")
                if predictor == 2:
                    part = np.diff(part, axis=1, prepend=part.dtype.type(0))
                if codec:
                    parts.append(codec(part))
                    continue
                packed = pack(part.reshape(len(part), -1), bits, order)
                coded = bytes(_CODECS[compression](packed)) if compression in _CODECS else packed
                parts.append(coded.translate(_REVERSED) if fill_order == 2 else coded)
    parts = list(segments) if segments is not None else parts
    base: dict[int, tuple[int, Sequence[int] | bytes]] = {
        256: (4, [width]), 257: (4, [height]), 258: (3, [bits] * channels), 259: (3, [compression]),
        262: (3, [photometric]), 277: (3, [channels]), 284: (3, [planar]),
    }  # fmt: skip
    base |= {266: (3, [2])} if fill_order == 2 else {}
    base |= {317: (3, [predictor])} if predictor != 1 else {}
    base |= {322: (4, [wide]), 323: (4, [high])} if tile else {278: (4, [high])}
    start = 16 if big else 8
    offsets = np.cumsum([start, *(len(part) + len(part) % 2 for part in parts)])[:-1].tolist()
    base |= {324 if tile else 273: (4, offsets), 325 if tile else 279: (4, [len(part) for part in parts])}
    data = b"".join(part + bytes(len(part) % 2) for part in parts)
    return container(data, {**base, **(tags or {})}, order, big)


def container(
    data: bytes, tags: dict[int, tuple[int, Sequence[int] | bytes]], order: str = "<", big: bool = False
) -> bytes:
    """Return a TIFF file with the data behind its header and one directory behind the data."""
    formats = {1: "B", 2: "B", 3: "H", 4: "I", 5: "I", 7: "B", 12: "d", 16: "Q"}
    start, inline = (16, 8) if big else (8, 4)
    data += bytes(len(data) % 2)
    listed = {tag: value for tag, value in sorted(tags.items()) if len(value[1])}
    size = (8 + 20 * len(listed) + 8) if big else (2 + 12 * len(listed) + 4)
    position = start + len(data) + size
    entries, values = b"", b""
    for tag, (kind, numbers) in listed.items():
        packed = bytes(numbers) if isinstance(numbers, bytes) else struct.pack(
            f"{order}{len(numbers)}{formats[kind]}", *numbers
        )  # fmt: skip
        count = len(numbers) if kind != 5 else len(numbers) // 2
        if len(packed) > inline:
            pointer = struct.pack(order + ("Q" if big else "I"), position + len(values))
            values += packed + bytes(len(packed) % 2)
            packed = pointer
        entries += struct.pack(order + ("HHQ" if big else "HHI"), tag, kind, count) + packed.ljust(inline, b"\0")
    mark = b"II" if order == "<" else b"MM"
    where = start + len(data)
    head = mark + (struct.pack(order + "HHHQ", 43, 8, 0, where) if big else struct.pack(order + "HI", 42, where))
    number = struct.pack(order + ("Q" if big else "H"), len(listed))
    return head + data + number + entries + bytes(inline) + values


def bmp(
    size: tuple[int, int],
    bits: int,
    pixels: bytes,
    *,
    header: int = 40,
    compression: int = 0,
    palette: bytes = b"",
    colours: int = 0,
    masks: Sequence[int] = (),
    top_down: bool = False,
    extra: bytes = b"",
) -> bytes:
    """Make a BMP file.

    Args:
        size: width and height.
        bits: bits of a pixel.
        pixels: the stored rows, or runs.
        header: bytes of the header.
        compression: number of the compression.
        palette: its entries as stored.
        colours: number of colours in the header.
        masks: colour masks, behind a header of 40 bytes and else within it.
        top_down: whether the first row is the topmost.
        extra: last bytes of the header.
    """
    width, height = size
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        signed = -height if top_down else height
        info = struct.pack("<IiiHHIIiiII", header, width, signed, 1, bits, compression, len(pixels), 0, 0, colours, 0)
    packed = struct.pack(f"<{len(masks)}I", *masks)
    info += packed if header > 40 else b""
    info = info.ljust(header - len(extra), b"\0") + extra + (packed if header == 40 else b"")
    start = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + info + palette + pixels


def bmp_rows(rows: Array, bits: int, top_down: bool = False) -> bytes:
    """Pack (H, W) pixels into rows whose length is a multiple of 4 bytes."""
    stored = rows if top_down else rows[::-1]
    if bits == 24:
        lines = [stored[y].astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes() for y in range(len(stored))]
    else:
        kind = {16: np.uint16, 32: np.uint32}.get(bits, np.uint8)
        lines = [pack(row[None].astype(kind), bits, "<") for row in stored]
    return b"".join(line + bytes(-len(line) % 4) for line in lines)


def assert_rejected(content: bytes, kind: str, detail: str) -> None:
    """Check that a file is rejected with a kind, a name in `RejectionKind`, and a detail."""
    with pytest.raises(RejectedImageError) as rejected:
        decode(content, 10**6)
    assert detail in str(rejected.value)
    assert rejected.value.rejection.kind is RejectionKind[kind]


def decode_channels(content: bytes, max_pixels: int) -> tuple[Array, Array | None]:
    """Decode an image file to sRGB of 8 bits as (H, W, 1) or (H, W, 3), and to its opacity of 8 bits."""
    raster = read_image(content, max_pixels)
    bits = raster.samples.dtype.itemsize * 8
    pixels = to_srgb_deep(raster.samples, raster.profile)
    alpha = None if raster.alpha is None else eight_bits(raster.alpha, bits)
    return eight_bits(pixels, pixels.dtype.itemsize * 8), alpha
