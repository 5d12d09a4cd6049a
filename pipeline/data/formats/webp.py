"""WebP files, which Pillow decodes. The size is read here, because Pillow's reader allocates the image to find it."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

from PIL import Image

from pipeline.data.formats.metadata import orientation
from pipeline.data.formats.raster import Raster, as_array, damaged


@dataclass(frozen=True)
class WebpFile:
    """A WebP file whose header has been read."""

    content: bytes
    width: int
    height: int

    def read(self) -> Raster:
        """Decode the image, or the first frame of an animation."""
        try:
            file = Image.open(io.BytesIO(self.content), formats=("WEBP",))
        except OSError:
            raise OSError("its chunks are damaged or do not fit each other") from None
        with file:
            if file.size != (self.width, self.height):
                raise damaged("its header and its image state different sizes")
            file.load()
            profile, stated = file.info.get("icc_profile"), orientation(file.info.get("exif"), file.info.get("xmp"))
            pixels = as_array(file)
            exif = file.info.get("exif")
        return Raster(pixels[:, :, :3], pixels[:, :, 3] if pixels.shape[2] == 4 else None, profile, stated, exif)


def is_webp(content: bytes) -> bool:
    """Tell by its first bytes if a file is a WebP file."""
    return content[:4] == b"RIFF" and content[8:12] == b"WEBP"


def open_webp(content: bytes) -> WebpFile:
    """Read the header of a WebP file (RFC 9649).

    Raises:
        RejectedImageError: if it is damaged.
    """
    kind, body = content[12:16], content[20:30]
    if len(body) == 10:
        if kind == b"VP8X":
            return WebpFile(content, int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1)
        if kind == b"VP8L" and body[0] == 0x2F:
            (bits,) = struct.unpack_from("<I", body, 1)
            return WebpFile(content, (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
            width, height = struct.unpack_from("<HH", body, 6)
            if width & 0x3FFF and height & 0x3FFF:
                return WebpFile(content, width & 0x3FFF, height & 0x3FFF)
    raise damaged("its header is cut off or of an unknown kind")
