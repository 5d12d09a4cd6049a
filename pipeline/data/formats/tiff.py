"""TIFF and BigTIFF files. The structure decides how samples are read; Pillow's codecs only decompress bytes."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.data.formats import jpeg
from pipeline.data.formats.metadata import density_in, exif_of_tiff, orientation
from pipeline.data.formats.raster import (
    Raster,
    Samples,
    as_array,
    blocks,
    damaged,
    eight_bits,
    unpack_bits,
    whole_range,
)
from pipeline.data.formats.tiff_structure import (
    Compression,
    Photometric,
    Structure,
    Tag,
    read_structure,
)

_BATCH = 2**25
"""Bytes of decompressed strips or tiles that are processed at once, or a single one that is larger."""
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_FAX_OPTIONS = {Compression.FAX3: Tag.FAX3_OPTIONS, Compression.FAX4: Tag.FAX4_OPTIONS}


@dataclass(frozen=True)
class TiffFile:
    """A TIFF file whose structure has been read."""

    content: bytes
    structure: Structure

    @property
    def width(self) -> int:
        """Pixels of a row."""
        return self.structure.width

    @property
    def height(self) -> int:
        """Number of rows."""
        return self.structure.height

    def read(self) -> Raster:
        """Decode the first image of the file."""
        layout = self.structure
        channels = layout.photometric.channels
        used = [*range(channels), *([layout.opacity] if layout.opacity else [])]
        stored = self._samples(used)
        colours, alpha = stored[:, :, :channels], None
        if layout.opacity:
            alpha = whole_range(stored[:, :, channels], layout.bits)
        if layout.photometric is Photometric.PALETTE:
            colours = self._palette()[colours[:, :, 0]]
        else:
            inverted = layout.photometric is Photometric.WHITE_IS_ZERO
            colours = whole_range((2**layout.bits - 1) - colours if inverted else colours, layout.bits)
        if alpha is not None and layout.photometric is Photometric.PALETTE and layout.bits > 8:
            alpha = eight_bits(alpha, 16)  # a palette has 8 bits
        if alpha is not None and layout.associated:
            _separate_opacity(colours, alpha)
        tags = layout.tags
        return Raster(
            colours,
            alpha,
            tags.raw(Tag.ICC_PROFILE),
            orientation(tags, tags.raw(Tag.XMP)),
            exif_of_tiff(tags),
            density_in(tags),
        )

    def _samples(self, used: list[int]) -> Samples:
        """Return some samples of each pixel, (H, W, len(used)), with all their bits."""
        layout = self.structure
        adjacent = used == list(range(len(used)))
        samples: Samples = np.empty((self.height, self.width, len(used)), np.uint8 if layout.bits <= 8 else np.uint16)
        for channel, sample in enumerate(used if layout.separate else used[:1]):
            first = sample * layout.across * layout.down if layout.separate else 0
            for numbers, rows in self._batches():
                segments = self._decode([first + number for number in numbers], rows)
                for number, segment in zip(numbers, segments, strict=True):
                    top = number // layout.across * layout.segment_height
                    left = number % layout.across * layout.segment_width
                    target = samples[top : top + rows, left : left + layout.segment_width]
                    whole = segment[: target.shape[0], : target.shape[1]]
                    if layout.separate:
                        target[:, :, channel] = whole[:, :, 0]
                    else:
                        target[...] = whole[:, :, : len(used)] if adjacent else whole[:, :, used]
        return samples

    def _batches(self) -> Iterator[tuple[range, int]]:
        """Yield numbers of strips or tiles of a plane that are decoded together, and their height in pixels."""
        layout = self.structure
        count = layout.across * layout.down
        last = layout.segment_height if layout.tiled else self.height - (layout.down - 1) * layout.segment_height
        whole = count if last == layout.segment_height else count - 1  # the last strip may have fewer rows
        step = max(_BATCH // (layout.row_bytes * layout.segment_height), 1)
        for first in range(0, whole, step):
            yield range(first, min(first + step, whole)), layout.segment_height
        if whole < count:
            yield range(whole, count), last

    def _decode(self, numbers: list[int], rows: int) -> Samples:
        """Return strips or tiles as (n, rows, width, samples), with all their bits."""
        layout = self.structure
        shape = len(numbers), rows, layout.segment_width, layout.interleaved
        if layout.compression is Compression.JPEG:
            return np.stack([self._jpeg(number, rows) for number in numbers])
        if layout.compression.is_fax:
            return self._decompressed(numbers, rows, layout.segment_width).reshape(shape)
        if layout.compression is Compression.NONE:
            stored = self._uncompressed(numbers, rows)
        else:
            stored = self._decompressed(numbers, rows, layout.row_bytes)
        if layout.bits == 16:
            values: Samples = stored.view(f"{layout.tags.order}u2").astype(np.uint16, copy=False)
        elif layout.bits == 8:
            values = stored
        else:
            values = unpack_bits(stored, layout.bits, layout.segment_width * layout.interleaved)
        if layout.differences:
            pixels = values.reshape(-1, layout.segment_width, layout.interleaved)
            for part in blocks(*pixels.shape[:2]):
                pixels[part] = np.cumsum(pixels[part], axis=1, dtype=pixels.dtype)
        return values.reshape(shape)

    def _uncompressed(self, numbers: list[int], rows: int) -> npt.NDArray[np.uint8]:
        """Return the rows of strips or tiles, (n * rows, bytes of a row); the sizes in the file do not matter."""
        size = rows * self.structure.row_bytes
        starts = [int(self.structure.offsets[number]) for number in numbers]
        if not all(0 < start <= len(self.content) - size for start in starts):
            raise damaged("its pixels are cut off or missing")
        joined = b"".join([self.content[start : start + size] for start in starts])
        if self.structure.reversed_bits:
            joined = joined.translate(_REVERSED)
        return np.frombuffer(joined, np.uint8).reshape(-1, self.structure.row_bytes)

    def _stored(self, number: int) -> bytes:
        """Return a compressed strip or tile."""
        start, size = int(self.structure.offsets[number]), int(self.structure.sizes[number])
        if not start or not size or start + size > len(self.content):
            raise damaged(f"its {'tile' if self.structure.tiled else 'strip'} {number} is cut off or missing")
        return self.content[start : start + size]

    def _decompressed(self, numbers: list[int], rows: int, width: int) -> npt.NDArray[np.uint8]:
        """Decompress strips or tiles as the strips of a grey 8-bit image, whose pixels are their bytes.

        So neither Pillow nor libtiff interprets samples. The pixels of a fax are 0 or 1.

        Returns:
            (n * rows, width) uint8.
        """
        layout = self.structure
        parts = [self._stored(number) for number in numbers]
        ends = np.cumsum([0, *map(len, parts)])
        tags: dict[Tag, list[int]] = {
            Tag.WIDTH: [width],
            Tag.HEIGHT: [rows * len(parts)],
            Tag.BITS: [1 if layout.compression.is_fax else 8],
            Tag.COMPRESSION: [layout.compression],
            Tag.PHOTOMETRIC: [Photometric.BLACK_IS_ZERO],
            Tag.FILL_ORDER: [2 if layout.reversed_bits else 1],
            Tag.STRIP_OFFSETS: [8 + int(end) for end in ends[:-1]],
            Tag.SAMPLES: [1],
            Tag.ROWS_PER_STRIP: [rows],
            Tag.STRIP_SIZES: [len(part) for part in parts],
        }
        options = _FAX_OPTIONS.get(layout.compression)
        if options and (stated := layout.tags.number(options, None)) is not None:
            tags[options] = [stated]
        content = io.BytesIO(_tiff(b"".join(parts), tags))
        del parts  # to hold compressed bytes once
        with Image.open(content, formats=("TIFF",)) as file:
            try:
                file.load()
            except OSError:  # with the number of an error as its text
                raise OSError(f"its {'tiles' if layout.tiled else 'strips'} cannot be decompressed") from None
            return as_array(file).astype(np.uint8, copy=False)

    def _jpeg(self, number: int, rows: int) -> Samples:
        layout = self.structure
        tables = layout.tags.raw(Tag.JPEG_TABLES) or b""
        decoded = jpeg.decode_stream(tables, self._stored(number), layout.photometric is Photometric.YCBCR)
        if len(decoded) < rows or decoded.shape[1:] != (layout.segment_width, layout.interleaved):
            raise damaged(f"its JPEG stream {number} holds an image of shape {decoded.shape}")
        return decoded[:rows]

    def _palette(self) -> npt.NDArray[np.uint8]:
        """Return the palette, (colours, 3)."""
        stored = self.structure.tags.numbers(Tag.COLOUR_MAP)
        if len(stored) != 3 * 2**self.structure.bits or stored.max() > 65_535:
            raise damaged("its palette is missing or has a wrong size")
        # Some writers store 8-bit values instead of 16-bit ones; libtiff recognises them in the same way.
        eight = stored if stored.max() < 256 else stored >> 8
        return np.ascontiguousarray(eight.reshape(3, -1).T).astype(np.uint8)


def open_tiff(content: bytes) -> TiffFile:
    """Read the structure of a TIFF file.

    Raises:
        RejectedImageError: if it is damaged or not supported.
    """
    return TiffFile(content, read_structure(content))


def _separate_opacity(colours: Samples, opacity: Samples) -> None:
    """Divide colours that are stored multiplied by their opacity, in place; rounded, and 0 where it is 0."""
    largest = np.iinfo(colours.dtype).max
    for part in blocks(*opacity.shape):
        divisor = np.maximum(opacity[part, :, None], 1).astype(np.uint64)
        plain = (colours[part] * np.uint64(largest) + divisor // 2) // divisor
        colours[part] = np.where(opacity[part, :, None] > 0, np.minimum(plain, largest), 0)


def _tiff(pixels: bytes, tags: dict[Tag, list[int]]) -> bytes:
    """Return a little-endian TIFF file whose strips follow the header."""
    end = 8 + len(pixels) + len(pixels) % 2
    values_at = end + 2 + 12 * len(tags) + 4
    entries, values = [], []
    for tag, numbers in sorted(tags.items()):
        packed = struct.pack(f"<{len(numbers)}I", *numbers)
        if len(packed) > 4:
            values.append(packed)
            packed, values_at = struct.pack("<I", values_at), values_at + len(packed)
        entries.append(struct.pack("<HHI", tag, 4, len(numbers)) + packed)
    head = b"II*\0" + struct.pack("<I", end)
    directory = struct.pack("<H", len(tags)) + b"".join(entries) + bytes(4)
    return b"".join([head, pixels, bytes(len(pixels) % 2), directory, *values])
