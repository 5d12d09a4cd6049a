"""BMP files of Windows and OS/2, decoded here: Pillow refuses unusual colour masks and misreads short palettes."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.data.formats.metadata import density
from pipeline.data.formats.raster import Alpha, Raster, Samples, blocks, damaged, excessive, unpack_bits, unsupported

SIGNATURE = b"BM"

MAX_RUNS = 2_000_000
"""A file with more runs is rejected, because runs are decoded one by one, in about a microsecond each."""

_HEADERS = (12, 40, 52, 56, 64, 108, 124)
"""Bytes of the known headers: OS/2 1, Windows 3, two of Adobe, OS/2 2, Windows 4 and 5."""
_RAW, _RLE8, _RLE4, _MASKS, _ALPHA_MASKS = 0, 1, 2, 3, 6
_DEFAULT_MASKS = {
    16: (0x7C00, 0x3E0, 0x1F, 0),
    24: (0xFF0000, 0xFF00, 0xFF, 0),
    32: (0xFF0000, 0xFF00, 0xFF, 0),
}
_BYTE_MASKS = (0xFF, 0xFF00, 0xFF0000, 0xFF000000)
_PROFILE_EMBEDDED = b"DEBM"
_METRES_PER_INCH = 0.0254


@dataclass(frozen=True)
class BmpFile:
    """A BMP file whose header has been read."""

    content: bytes
    width: int
    height: int
    bits: int
    """Bits of a pixel."""
    compression: int
    top_down: bool
    start: int
    """Position of the pixels."""
    palette: npt.NDArray[np.uint8]
    """(n, 3); empty where pixels hold their colours."""
    masks: tuple[int, int, int, int]
    """Bits of red, green, blue and opacity in a pixel."""
    profile: bytes | None
    density: tuple[float, float] | None
    """Pixels per inch."""

    def read(self) -> Raster:
        """Decode the image; an opacity that is 0 everywhere counts as absent, as in Windows and Photoshop."""
        alpha = None
        if self.bits <= 8:
            rle = self.compression in (_RLE8, _RLE4)
            indices = self._runs() if rle else unpack_bits(self._rows(), self.bits, self.width)
            palette = np.zeros((256, 3), np.uint8)
            palette[: len(self.palette)] = self.palette
            grey = (palette == palette[:, :1]).all()
            samples: Samples = palette[:, :1][indices] if grey else palette[indices]
        else:
            samples, alpha = self._direct()
        if not self.top_down:
            samples, alpha = samples[::-1], None if alpha is None else alpha[::-1]
        shown = alpha if alpha is not None and alpha.any() else None
        return Raster(samples, shown, self.profile, density=self.density)

    def _rows(self) -> npt.NDArray[np.uint8]:
        """Return the bytes of the rows in the order of the file; rows begin at multiples of 4 bytes."""
        stride, used = (self.width * self.bits + 31) // 32 * 4, (self.width * self.bits + 7) // 8
        stored = self.content[self.start : self.start + stride * self.height]
        if len(stored) < stride * (self.height - 1) + used:
            raise damaged("its pixels are cut off")
        return np.frombuffer(stored.ljust(stride * self.height, b"\0"), np.uint8).reshape(self.height, stride)[:, :used]

    def _direct(self) -> tuple[Samples, Alpha | None]:
        rows, size = self._rows(), self.bits // 8
        colours = np.empty((self.height, self.width, 4 if self.masks[3] else 3), np.uint8)
        whole_bytes = [mask.bit_length() // 8 - 1 if mask in _BYTE_MASKS else None for mask in self.masks]
        for part in blocks(self.height, self.width):
            stored = rows[part].reshape(-1, self.width, size)
            if None not in whole_bytes[: colours.shape[2]]:
                for channel in range(colours.shape[2]):
                    colours[part, :, channel] = stored[:, :, whole_bytes[channel]]
                continue
            pixels = np.zeros(stored.shape[:2], np.uint32)
            for byte in range(size):
                pixels |= stored[:, :, byte].astype(np.uint32) << np.uint32(8 * byte)
            for channel in range(colours.shape[2]):
                colours[part, :, channel] = _component(pixels, self.masks[channel])
        return colours[:, :, :3], colours[:, :, 3] if self.masks[3] else None

    def _runs(self) -> npt.NDArray[np.uint8]:
        """Decode run lengths; pixels that no run covers have the first colour of the palette."""
        content, position, x, y = self.content, self.start, 0, 0
        rows = bytearray(self.width * self.height)
        for _ in range(MAX_RUNS):
            if y >= self.height:
                break
            if position + 2 > len(content):
                raise damaged("its pixels are cut off")
            count, value = content[position], content[position + 1]
            position += 2
            if count:
                pair = bytes([value >> 4, value & 15]) if self.compression == _RLE4 else bytes([value])
                pixels = (pair * count)[:count]
            elif value == 0:  # end of the row
                x, y = 0, y + 1
                continue
            elif value == 1:  # end of the image
                break
            elif value == 2:  # move
                if position + 2 > len(content):
                    raise damaged("its pixels are cut off")
                x, y = x + content[position], y + content[position + 1]
                position += 2
                continue
            else:  # pixels that are stored one by one, filled up to 2 bytes
                length = (value + 1) // 2 if self.compression == _RLE4 else value
                stored = content[position : position + length]
                if len(stored) < length:
                    raise damaged("its pixels are cut off")
                position += length + length % 2
                if self.compression == _RLE4:
                    stored = bytes(nibble for byte in stored for nibble in (byte >> 4, byte & 15))
                pixels = stored[:value]
            pixels = pixels[: max(self.width - x, 0)]
            offset = y * self.width + x
            rows[offset : offset + len(pixels)] = pixels
            x += len(pixels)
        else:
            raise excessive(f"has more than {MAX_RUNS} runs, the limit of this decoder")
        return np.frombuffer(rows, np.uint8).reshape(self.height, self.width)


def open_bmp(content: bytes) -> BmpFile:
    """Read the header of a BMP file.

    Raises:
        RejectedImageError: if it is damaged, or states an image that is not supported.
    """
    if len(content) < 26:
        raise damaged("its header is cut off")
    start, size = struct.unpack_from("<II", content, 10)
    header = content[14 : 14 + size] if size in _HEADERS else b""
    if not header:
        raise unsupported(f"is a BMP file with a header of {size} bytes, expected one of {_HEADERS}")
    if len(header) < size:
        raise damaged("its header is cut off")
    compression, colours, across, down = _RAW, 0, 0, 0
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", header, 4)
    else:
        width, height, _, bits, compression, _, across, down, colours = struct.unpack_from("<iiHHIIiiI", header, 4)
    if width <= 0 or height == 0:
        raise damaged(f"its header states a size of {width}x{height}")
    _check_pixels(bits, compression, os2=size == 64)
    masks, end = _masks(content, header, bits, compression)
    palette = np.zeros((0, 3), np.uint8)
    if bits <= 8:
        step = 3 if size == 12 else 4
        entries = min(colours or 2**bits, 2**bits)
        after = end + step * (colours or 2**bits)
        stored = np.frombuffer(content[end : end + step * entries], np.uint8)
        if len(stored) < step * entries:
            raise damaged("its palette is cut off")
        palette = stored.reshape(-1, step)[:, 2::-1]
        start = after if start in (0, end) else start  # some writers leave the palette out of account
    return BmpFile(
        content,
        width,
        abs(height),
        bits,
        compression,
        height < 0,
        start or end,
        palette,
        masks,
        _profile(content, header),
        density(across, down, _METRES_PER_INCH),
    )


def _check_pixels(bits: int, compression: int, os2: bool) -> None:
    allowed = {_RAW: (1, 2, 4, 8, 16, 24, 32), _RLE8: (8,), _RLE4: (4,)}
    if not os2:
        allowed |= {_MASKS: (16, 24, 32), _ALPHA_MASKS: (16, 32)}
    if compression not in allowed:
        raise unsupported(f"is a BMP file with compression {compression}, expected none, RLE or colour masks")
    if bits not in allowed[compression]:
        raise unsupported(f"is a BMP file with {bits} bits a pixel and compression {compression}, which do not fit")


def _masks(content: bytes, header: bytes, bits: int, compression: int) -> tuple[tuple[int, int, int, int], int]:
    """Return the colour masks and the position after the header and masks."""
    end = 14 + len(header)
    masks = _DEFAULT_MASKS.get(bits, (0, 0, 0, 0))
    if compression in (_MASKS, _ALPHA_MASKS):
        if len(header) == 40:
            count = 4 if compression == _ALPHA_MASKS else 3
            stored, end = content[end : end + 4 * count], end + 4 * count
        else:
            stored = header[40 : 52 if len(header) == 52 else 56]
        if len(stored) % 4 or len(stored) < 12:
            raise damaged("its colour masks are cut off")
        red, green, blue, alpha = struct.unpack("<IIII", stored.ljust(16, b"\0"))
        # Writers that leave all masks empty mean blue, green, red and opacity.
        empty = not (red or green or blue or alpha)
        masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000) if empty and bits == 32 else (red, green, blue, alpha)
        for mask in masks:
            if mask >> bits or (mask and not _is_run(mask)):
                raise unsupported(f"is a BMP file with the colour mask {mask:#x}, expected adjacent bits of a pixel")
    return masks, end


def _is_run(mask: int) -> bool:
    """Tell if the bits that are set are adjacent."""
    low = mask & -mask
    return ((mask // low) & (mask // low + 1)) == 0


def _component(pixels: npt.NDArray[np.uint32], mask: int) -> npt.NDArray[np.uint8]:
    """Return one component of each pixel, scaled to 0..255 and rounded down; 0 for an empty mask."""
    low = mask & -mask
    largest = mask // low if mask else 0
    if not largest:
        return np.zeros(pixels.shape, np.uint8)
    values = (pixels & np.uint32(mask)) // np.uint32(low)
    if largest > 255:
        return (values >> np.uint32(largest.bit_length() - 8)).astype(np.uint8)
    return (values * np.uint32(255) // np.uint32(largest)).astype(np.uint8)


def _profile(content: bytes, header: bytes) -> bytes | None:
    """Return the ICC profile that a Windows 5 header embeds."""
    if len(header) < 124 or header[56:60] != _PROFILE_EMBEDDED:
        return None
    offset, size = struct.unpack_from("<II", header, 112)
    return content[14 + offset : 14 + offset + size] or None
