"""JPEG files, and the JPEG streams in TIFF files. Pillow decodes the pixels; all other segments are read here."""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass

from PIL import Image

from pipeline.data.formats.metadata import EXIF_PREFIX, density, orientation
from pipeline.data.formats.raster import Raster, Samples, as_array, damaged, excessive, unsupported

SIGNATURE = b"\xff\xd8\xff"

MAX_SCANS = 50
"""A file with more scans is rejected, because each scan goes over all coefficients again: 3,000 scans took 90 s. Usual
encoders make 1 to 14."""
MAX_SEGMENTS = 10_000
"""A file with more marker segments is rejected, because going through them would take seconds. 10,000 segments hold 650
MB of metadata."""

_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_FRAMES = {code for code in range(0xC0, 0xD0) if code not in (0xC4, 0xC8, 0xCC)}
_SOI, _EOI, _SOS, _TEM, _COM = 0xD8, 0xD9, 0xDA, 0x01, 0xFE
_APP = range(0xE0, 0xF0)
_XMP, _ICC = b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
_KEPT = {0xE0: b"JFIF\0", 0xEE: b"Adobe"}
"""Application segments that state the colour space, by marker."""
_PER_INCH = {1: 1.0, 2: 2.54}
"""Units of length per inch, by the number of the unit in a JFIF segment; 0 states no unit."""


@dataclass(frozen=True)
class JpegFile:
    """A JPEG file whose marker segments have been read."""

    stripped: bytes
    """The file without metadata, comments and what follows its end."""
    width: int
    height: int
    profile: bytes | None
    orientation: int
    exif: bytes | None
    density: tuple[float, float] | None
    """Pixels per inch."""

    def read(self) -> Raster:
        """Decode the image."""
        return Raster(_decode(self.stripped), None, self.profile, self.orientation, self.exif, self.density)


def open_jpeg(content: bytes) -> JpegFile:
    """Read the marker segments of a JPEG file.

    Raises:
        RejectedImageError: if they are damaged, too many, or state an image that is not supported.
    """
    segments = _Segments(content)
    bits, height, width, components = segments.frame
    if bits != 8:
        raise unsupported(f"is a JPEG file with {bits}-bit samples, expected 8 bits")
    if components not in (1, 3, 4):
        raise unsupported(f"is a JPEG file with {components} components, expected 1, 3 or 4")
    if not width or not height:
        raise damaged(f"its header states a size of {width}x{height}")
    return JpegFile(
        b"".join([b"\xff\xd8", *segments.kept, content[segments.scans : segments.end]]),
        width,
        height,
        segments.profile(),
        orientation(segments.exif, segments.xmp),
        segments.exif and segments.exif.removeprefix(EXIF_PREFIX),
        segments.density(),
    )


def decode_stream(tables: bytes, stream: bytes, ycbcr: bool) -> Samples:
    """Decode a JPEG stream of a TIFF file.

    Args:
        tables: the tables that all streams of the file share, as a JPEG stream without an image; may be empty.
        stream: the stream of a strip or tile.
        ycbcr: whether three components are YCbCr rather than RGB.

    Returns:
        (h, w, C) uint8, C = 1 for grey, 3 for RGB, 4 for CMYK.

    Raises:
        RejectedImageError: if the stream is damaged.
    """
    segments = _Segments(stream)
    if segments.frame[0] != 8:
        raise unsupported(f"has JPEG streams with {segments.frame[0]}-bit samples, expected 8 bits")
    adobe = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([ycbcr])  # states the colour space to the decoder
    shared = _Segments(tables, tables=True).kept if tables else []
    kept = [segment for segment in shared + segments.kept if segment[1] not in _APP]
    decoded = _decode(b"".join([b"\xff\xd8", adobe, *kept, stream[segments.scans : segments.end]]))
    return 255 - decoded if decoded.shape[2] == 4 else decoded  # Pillow inverts CMYK, as Photoshop's JPEG files need


def _decode(content: bytes) -> Samples:
    with Image.open(io.BytesIO(content), formats=("JPEG",)) as file:
        file.load()
        decoded = as_array(file)
    return decoded[:, :, None] if decoded.ndim == 2 else decoded


class _Segments:
    """The marker segments of a file, up to the end of its image.

    Args:
        content: the file's bytes, or a stream of a TIFF file.
        tables: whether the stream holds tables alone.
    """

    def __init__(self, content: bytes, tables: bool = False) -> None:
        self.kept: list[bytes] = []
        """Segments before the first scan that the decoder needs."""
        self.frame = (0, 0, 0, 0)
        """Bits of a sample, height, width and number of components."""
        self.scans = 0
        """Position of the first scan."""
        self.end = len(content)
        self.exif: bytes | None = None
        self.xmp: bytes | None = None
        self._profile: dict[int, bytes] = {}
        self._profile_parts = 0
        self._content = content
        scans = 0
        position = 2
        for _ in range(MAX_SEGMENTS):
            found = _MARKER.search(content, position)
            if not found:
                break
            code, start = found[1][0], found.end()
            if code == _EOI:
                self.end = start
                break
            position = start
            if code in (_SOI, _TEM):
                continue
            (length,) = struct.unpack_from(">H", content[start : start + 2].ljust(2, b"\0"))
            position = start + max(length, 2)
            if code == _SOS:
                scans += 1
                self.scans = self.scans or start - 2
            elif not scans:
                self._add(code, content[start + 2 : position], content[start - 2 : position])
        else:
            raise excessive(f"has more than {MAX_SEGMENTS} marker segments, the limit of this decoder")
        if scans > MAX_SCANS:
            raise excessive(f"has {scans} scans, more than {MAX_SCANS}, the limit of this decoder")
        if not tables and (not scans or not self.frame[0]):
            cut = self.end == len(content) and not content.endswith(b"\xff\xd9")
            raise damaged("its header is truncated" if cut else "it has no frame header or no scan")

    def _add(self, code: int, body: bytes, segment: bytes) -> None:
        if code in _FRAMES:
            if len(body) < 6:
                raise damaged("its frame header is cut off")
            self.frame = struct.unpack_from(">BHHB", body)
        if code == _COM:
            return
        if code not in _APP or (code in _KEPT and body.startswith(_KEPT[code])):
            self.kept.append(segment)
        elif code == 0xE1 and body.startswith(EXIF_PREFIX):
            self.exif = self.exif or body
        elif code == 0xE1 and body.startswith(_XMP):
            self.xmp = self.xmp or body[len(_XMP) :]
        elif code == 0xE2 and body.startswith(_ICC) and len(body) > len(_ICC) + 2:
            number, self._profile_parts = body[len(_ICC)], body[len(_ICC) + 1]
            self._profile.setdefault(number, body[len(_ICC) + 2 :])

    def density(self) -> tuple[float, float] | None:
        """Return pixels per inch across and down as the JFIF segment states them."""
        for segment in self.kept:
            if segment[1] == 0xE0 and len(segment) >= 16:
                unit, across, down = struct.unpack_from(">BHH", segment, 11)
                return density(across, down, _PER_INCH[unit]) if unit in _PER_INCH else None
        return None

    def profile(self) -> bytes | None:
        """Return the colour profile, which may be in several parts; None if there is none or a part is missing."""
        if len(self._profile) != self._profile_parts or not self._profile:
            return None
        return b"".join(self._profile[number] for number in sorted(self._profile))
