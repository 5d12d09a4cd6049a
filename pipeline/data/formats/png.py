"""PNG files. Pillow decodes the pixels; all other chunks are read here, so that metadata never spoils an image.

The most common kind, 8-bit RGB that is not interlaced, is decoded by libspng in half the time. If libspng finds fault
with a file, Pillow decides.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.data.formats.colour import MAX_PROFILE_BYTES
from pipeline.data.formats.metadata import density, orientation
from pipeline.data.formats.raster import (
    Raster,
    Samples,
    add_to,
    as_array,
    damaged,
    excessive,
    unsupported,
    whole_range,
)

SIGNATURE = b"\x89PNG\r\n\x1a\n"

MAX_CHUNKS = 250_000
"""A file with more chunks is rejected, because going through them would take seconds. An image of 200 megapixels whose
pixels are in chunks of 8 KiB, libpng's default, has about 75,000."""
MAX_METADATA_BYTES = 2**22
"""Larger texts are not searched for an orientation."""

_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Bits of a sample that the format allows, by colour type."""
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_KEY_SIZE = {_GREY: 2, _RGB: 6}
"""Bytes of a tRNS chunk that names one transparent colour."""
_PER_METRE = 1
"""Number of the metre as the unit of a pHYs chunk; 0 states no unit."""
_HDR_TRANSFERS = {16: "PQ", 18: "HLG"}
"""Transfer characteristics of ITU-T H.273 whose values are not those of a standard display."""
_EXIF_TEXT = b"Raw profile type exif"
_XMP_TEXT = b"XML:com.adobe.xmp"


@dataclass(frozen=True)
class PngFile:
    """A PNG file whose header has been read."""

    content: bytes
    width: int
    height: int
    bits: int
    colour: int
    """Colour type of the format."""
    interlaced: bool

    def read(self) -> Raster:
        """Decode the image; of an animation, the default image, which is the first frame."""
        chunks = _Chunks(self.content)
        if not chunks.bodies:
            raise damaged("it has no pixels")
        transfer = chunks.found.get(b"cICP", b"\0\0")[1:2]
        if transfer and transfer[0] in _HDR_TRANSFERS:
            raise unsupported(
                f"has high dynamic range ({_HDR_TRANSFERS[transfer[0]]}), expected an image of standard dynamic range"
            )
        if self.colour == _PALETTE:
            samples, alpha = self._palette(chunks)
        else:
            samples, alpha = self._direct(chunks)
        exif = chunks.exif()
        return Raster(samples, alpha, chunks.profile(), orientation(exif, chunks.xmp()), exif, chunks.density())

    def _palette(self, chunks: _Chunks) -> tuple[Samples, Samples | None]:
        palette = np.zeros((256, 3), np.uint8)
        stored = np.frombuffer(chunks.found.get(b"PLTE", b""), np.uint8)
        if len(stored) % 3 or not 3 <= len(stored) <= 768:
            raise damaged("its palette is missing or has a wrong size")
        palette[: len(stored) // 3] = stored.reshape(-1, 3)
        indices = as_array(self._decode(chunks))
        opacity = np.frombuffer(chunks.found.get(b"tRNS", b""), np.uint8)
        if not 0 < len(opacity) <= 256:
            return palette[indices], None
        return palette[indices], np.pad(opacity, (0, 256 - len(opacity)), constant_values=255)[indices]

    def _direct(self, chunks: _Chunks) -> tuple[Samples, Samples | None]:
        if self.bits == 16:
            stored = self._sixteen_bits(chunks)
        elif (fast := self._fast(chunks.pixels())) is not None:
            stored = fast
        else:
            stored = as_array(self._decode(chunks))
        if self.bits == 1:
            stored = np.where(stored, np.uint8(255), np.uint8(0))
        if stored.ndim == 2:
            stored = stored[:, :, None]
        if self.colour in (_GREY_ALPHA, _RGBA):
            return stored[:, :, : 1 if self.colour == _GREY_ALPHA else 3], stored[:, :, -1]
        key = chunks.found.get(b"tRNS", b"")
        if len(key) != _KEY_SIZE[self.colour]:
            return stored, None
        colour = whole_range(np.frombuffer(key, ">u2") & np.uint16(2**self.bits - 1), self.bits)
        matches: npt.NDArray[np.bool_] = (stored == colour).all(axis=2)
        return stored, np.where(matches, stored.dtype.type(0), np.iinfo(stored.dtype).max)

    def _sixteen_bits(self, chunks: _Chunks) -> Samples:
        """Decode samples of 16 bits as (H, W) grey or (H, W, C).

        Pillow has no such colours, but its unpackers for the two byte orders take the high or the low bytes.
        """
        if self.colour == _GREY:
            return as_array(self._decode(chunks))
        if self.colour == _GREY_ALPHA:  # of which a pixel has as many bytes as one of RGBA
            return as_array(self._decode(chunks, "RGBA")).view(">u2").astype(np.uint16)
        name = "RGB" if self.colour == _RGB else "RGBA"
        samples = as_array(self._decode(chunks, f"{name};16B"), np.uint16)
        samples <<= 8
        add_to(samples, self._decode(chunks, f"{name};16L"))
        return samples

    def _fast(self, content: bytes) -> Samples | None:
        """Decode a file with these pixels, if it is of the most common kind and libspng finds no fault with it."""
        if self.colour != _RGB or self.bits != 8 or self.interlaced:
            return None
        samples = _decode_fast(content)
        return samples if samples is not None and samples.shape == (self.height, self.width, 3) else None

    def _decode(self, chunks: _Chunks, unpacker: str | None = None) -> Image.Image:
        """Decode the pixels, with one of Pillow's unpackers instead of the usual one."""
        with Image.open(io.BytesIO(chunks.pixels()), formats=("PNG",)) as file:
            if unpacker:
                file.tile = [file.tile[0]._replace(args=unpacker)]
            file.load()
            return file


def open_png(content: bytes) -> PngFile:
    """Read the header of a PNG file.

    Raises:
        RejectedImageError: if it is damaged.
    """
    length, kind = struct.unpack_from(">I4s", content.ljust(16, b"\0"), 8)
    header = content[16:29]
    if kind == b"CgBI":
        raise unsupported("is a PNG file in Apple's own variant (CgBI), expected the standard format")
    if length != 13 or kind != b"IHDR" or len(content) < 33:
        raise damaged("its header is cut off")
    if zlib.crc32(b"IHDR" + header) != int.from_bytes(content[29:33], "big"):
        raise damaged("its header has a wrong checksum")
    width, height, bits, colour, compression, filters, interlaced = struct.unpack(">IIBBBBB", header)
    if not width or not height:
        raise damaged(f"its header states a size of {width}x{height}")
    if bits not in _DEPTHS.get(colour, ()) or compression or filters or interlaced > 1:
        raise damaged(f"its header states {bits} bits and colour type {colour}, which the format does not have")
    return PngFile(content, width, height, bits, colour, bool(interlaced))


def _decode_fast(content: bytes) -> Samples | None:
    """Decode a file with 8-bit RGB by libspng, (H, W, 3); None if it finds fault with the file."""
    import imagecodecs

    try:
        samples: Samples = imagecodecs.spng_decode(content)
    except Exception:  # whose class depends on how imagecodecs was built
        return None
    return samples


class _Chunks:
    """The chunks of a file that shape its pixels or its metadata.

    As in libpng, an ancillary chunk with a wrong checksum counts as absent, and a critical one spoils the file.

    Args:
        content: the file's bytes.
    """

    def __init__(self, content: bytes) -> None:
        self.found: dict[bytes, bytes] = {}
        """Content of the first chunk of each kind but pixels."""
        self.bodies: list[memoryview] = []
        """Contents of the first chunks of pixels that follow each other."""
        self._texts: list[bytes] = []
        view, position = memoryview(content), len(SIGNATURE)
        ended = False  # the pixels have ended
        for _ in range(MAX_CHUNKS):
            if position + 8 > len(content):
                break
            length, kind = struct.unpack_from(">I4s", content, position)
            body = view[position + 8 : position + 8 + length]
            checksum = content[position + 8 + length : position + 12 + length]
            position += 12 + length
            ended |= bool(self.bodies) and kind != b"IDAT"
            if kind == b"IEND":
                break
            whole = len(checksum) == 4 and zlib.crc32(body, zlib.crc32(kind)) == int.from_bytes(checksum, "big")
            if kind == b"IDAT":
                if len(checksum) == 4 and not whole:
                    raise damaged("a chunk of its pixels has a wrong checksum")
                if not ended:
                    self.bodies.append(body)
            elif kind[0] & 32 == 0:  # critical
                self._add_critical(kind, body, whole)
            elif whole:
                self._add_ancillary(kind, body, before_pixels=not self.bodies)
        else:
            raise excessive(f"has more than {MAX_CHUNKS} chunks, the limit of this decoder")

    def _add_critical(self, kind: bytes, body: memoryview, whole: bool) -> None:
        if kind not in (b"IHDR", b"PLTE"):
            raise unsupported(
                f"has the unknown critical chunk {kind.decode('latin-1')!r}, expected a standard PNG file"
            )
        if not whole:
            raise damaged(f"its {kind.decode()} chunk has a wrong checksum")
        self.found.setdefault(kind, bytes(body))

    def _add_ancillary(self, kind: bytes, body: memoryview, before_pixels: bool) -> None:
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            keyword = bytes(body[:80]).split(b"\0", 1)[0]
            if keyword in (_EXIF_TEXT, _XMP_TEXT) and len(body) <= MAX_METADATA_BYTES and len(self._texts) < 4:
                self._texts.append(kind + bytes(body))
        elif kind == b"eXIf" or (before_pixels and kind in (b"tRNS", b"iCCP", b"cICP", b"pHYs")):
            self.found.setdefault(kind, bytes(body))

    def pixels(self) -> bytes:
        """Return a file with the header, the palette and the pixels alone, and the pixels in one chunk."""
        parts: list[bytes | memoryview] = [SIGNATURE]
        for kind in (b"IHDR", b"PLTE"):
            if kind in self.found:
                parts += _chunk(kind, self.found[kind])
        return b"".join([*parts, *_chunk(b"IDAT", *self.bodies), *_chunk(b"IEND")])

    def profile(self) -> bytes | None:
        """Return the embedded colour profile; None if there is none that can be decompressed."""
        _, _, packed = self.found.get(b"iCCP", b"").partition(b"\0")
        return _inflate(packed[1:], MAX_PROFILE_BYTES) if packed else None

    def density(self) -> tuple[float, float] | None:
        """Return pixels per inch across and down."""
        stated = self.found.get(b"pHYs", b"")
        if len(stated) != 9 or stated[8] != _PER_METRE:
            return None
        across, down = struct.unpack_from(">II", stated)
        return density(across, down, 0.0254)

    def exif(self) -> bytes | None:
        """Return EXIF metadata, from their own chunk or from ImageMagick's text."""
        if b"eXIf" in self.found:
            return self.found[b"eXIf"]
        for text in self._texts:
            kind, _, value = text[:4], *text[4:].partition(b"\0")[1:]
            if not text[4:].startswith(_EXIF_TEXT) or kind not in (b"tEXt", b"zTXt"):
                continue
            plain = value if kind == b"tEXt" else _inflate(value[1:], MAX_METADATA_BYTES)
            try:  # a line break, the word "exif", the length, then hexadecimal digits
                return bytes.fromhex(b"".join((plain or b"").split(b"\n")[3:]).decode("ascii"))
            except ValueError:
                return None
        return None

    def xmp(self) -> bytes | None:
        """Return XMP metadata."""
        for text in self._texts:
            if text.startswith(b"iTXt" + _XMP_TEXT):
                flags = text[4:].partition(b"\0")[2]
                value = flags[2:].split(b"\0", 2)[-1]  # after language and translated keyword
                return _inflate(value, MAX_METADATA_BYTES) if flags[:1] == b"\1" else value
        return None


def _chunk(kind: bytes, *bodies: bytes | memoryview) -> list[bytes | memoryview]:
    """Return the parts of a chunk with these contents after each other."""
    checksum = zlib.crc32(kind)
    for body in bodies:
        checksum = zlib.crc32(body, checksum)
    return [struct.pack(">I", sum(map(len, bodies))), kind, *bodies, struct.pack(">I", checksum)]


def _inflate(packed: bytes, limit: int) -> bytes | None:
    """Decompress at most `limit` bytes; None for damaged or larger data."""
    unpacker = zlib.decompressobj()
    try:
        plain = unpacker.decompress(packed, limit)
    except zlib.error:
        return None
    return plain if unpacker.eof else None
