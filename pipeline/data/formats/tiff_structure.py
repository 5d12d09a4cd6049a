"""The structure of a TIFF file's first image, checked against what `tiff` reads."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from pipeline.data.formats.directory import Directory
from pipeline.data.formats.raster import damaged, excessive, unsupported

MAX_SAMPLES = 6
"""A file with more samples a pixel is rejected, because they multiply the memory: 300 samples took 1.15 GB for a file
of 583 kB. CMYK, opacity and one spot colour have 6."""
MAX_SEGMENTS = 100_000
"""A file with more strips or tiles is rejected, because they are decoded one by one. They suffice for 100,000 strips of
one row, and for 400 megapixels in tiles of 64x64."""
MAX_JPEG_SEGMENTS = 20_000
"""The same for strips and tiles with JPEG compression, of which a second decodes 5,000."""
_SPARE_PIXELS = 2**22
"""Pixels by which tiles may exceed four times the image."""


class Tag(IntEnum):
    """Tags of TIFF 6.0 and its supplements."""

    WIDTH = 256
    HEIGHT = 257
    BITS = 258
    COMPRESSION = 259
    PHOTOMETRIC = 262
    FILL_ORDER = 266
    STRIP_OFFSETS = 273
    SAMPLES = 277
    ROWS_PER_STRIP = 278
    STRIP_SIZES = 279
    PLANAR = 284
    FAX3_OPTIONS = 292
    FAX4_OPTIONS = 293
    PREDICTOR = 317
    COLOUR_MAP = 320
    TILE_WIDTH = 322
    TILE_HEIGHT = 323
    TILE_OFFSETS = 324
    TILE_SIZES = 325
    INK_SET = 332
    EXTRA_SAMPLES = 338
    SAMPLE_FORMAT = 339
    JPEG_TABLES = 347
    XMP = 700
    ICC_PROFILE = 34675


class Compression(IntEnum):
    """Compressions that are read."""

    NONE = 1
    FAX1 = 2
    FAX3 = 3
    FAX4 = 4
    LZW = 5
    JPEG = 7
    DEFLATE = 8
    PACKBITS = 32773
    OLD_DEFLATE = 32946
    ZSTD = 50000

    @property
    def is_fax(self) -> bool:
        """True if it compresses pixels that are black or white."""
        return self in (self.FAX1, self.FAX3, self.FAX4)

    @property
    def allows_predictor(self) -> bool:
        """True if samples may be stored as differences; libtiff ignores a predictor elsewhere."""
        return self in (self.LZW, self.DEFLATE, self.OLD_DEFLATE, self.ZSTD)


class Photometric(IntEnum):
    """Meanings of samples that are read."""

    WHITE_IS_ZERO = 0
    BLACK_IS_ZERO = 1
    RGB = 2
    PALETTE = 3
    CMYK = 5
    YCBCR = 6

    @property
    def channels(self) -> int:
        """Samples of a colour."""
        return {Photometric.RGB: 3, Photometric.CMYK: 4, Photometric.YCBCR: 3}.get(self, 1)


_OTHER_COMPRESSIONS = {
    6: "old-style JPEG", 9: "JBIG", 10: "JBIG", 32771: "CCITT RLE", 32809: "ThunderScan", 33003: "JPEG 2000",
    33005: "JPEG 2000", 34661: "JBIG", 34676: "SGI log", 34677: "SGI log", 34712: "JPEG 2000", 34887: "LERC",
    34892: "lossy JPEG of DNG", 34925: "LZMA", 34934: "JPEG XR", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
_OTHER_COLOURS = {
    4: "a transparency mask", 8: "CIELab colours", 9: "ICCLab colours", 10: "ITULab colours",
    32803: "raw sensor values", 32844: "LogL values", 32845: "LogLuv colours", 34892: "linear raw sensor values",
}  # fmt: skip
_OTHER_FORMATS = {2: "signed integer", 3: "floating-point", 5: "complex integer", 6: "complex floating-point"}
_UNSIGNED_FORMATS = (1, 4)  # 4 is "undefined", which the specification treats as absent
_ASSOCIATED, _UNASSOCIATED, _COREL = 1, 2, 999
"""Kinds of extra samples that are opacity; Corel Draw has a number of its own."""


@dataclass(frozen=True)
class Structure:
    """How the samples of the first image are stored."""

    tags: Directory
    width: int
    height: int
    photometric: Photometric
    bits: int
    """Bits of a sample, 1 to 16."""
    samples: int
    """Samples of a pixel."""
    opacity: int
    """Number of the sample that is the opacity; 0 if there is none."""
    associated: bool
    """True if colours are multiplied by the opacity."""
    separate: bool
    """True if every sample has strips or tiles of its own."""
    compression: Compression
    differences: bool
    """True if samples are stored as differences from the pixel on their left."""
    reversed_bits: bool
    """True if the first bit of a byte is the lowest."""
    tiled: bool
    segment_width: int
    """Pixels of a tile's row; for strips, the image's width."""
    segment_height: int
    """Rows of a tile, or of every strip but the last."""
    offsets: npt.NDArray[np.int64]
    """Positions of strips or tiles in the file, row by row, then plane by plane."""
    sizes: npt.NDArray[np.int64]
    """Their bytes."""

    @property
    def across(self) -> int:
        """Tiles beside each other."""
        return -(-self.width // self.segment_width)

    @property
    def down(self) -> int:
        """Strips or tiles below each other."""
        return -(-self.height // self.segment_height)

    @property
    def interleaved(self) -> int:
        """Samples beside each other in a strip or tile."""
        return 1 if self.separate else self.samples

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of a decompressed strip or tile."""
        return (self.segment_width * self.interleaved * self.bits + 7) // 8


def read_structure(content: bytes) -> Structure:
    """Read and check the structure of a file's first image.

    Raises:
        RejectedImageError: if it is damaged or not supported; the reason names the property.
    """
    tags = Directory(content)
    width, height = _number(tags, Tag.WIDTH), _number(tags, Tag.HEIGHT)
    if not width or not height:
        raise damaged(f"its header states a size of {width}x{height}")
    compression = _compression(tags)
    samples, bits = _samples(tags)
    photometric = _photometric(tags, samples, compression)
    if samples < photometric.channels:
        raise damaged(f"it has {samples} samples a pixel, fewer than its colours have")
    opacity, associated = _opacity(tags, photometric, samples)
    separate = _number(tags, Tag.PLANAR, 1) == 2 and samples > 1
    _check_compression(compression, photometric, bits, separate)
    offsets, sizes, tiled, segment_width, segment_height = _segments(tags, width, height, len(content))
    structure = Structure(
        tags,
        width,
        height,
        photometric,
        bits,
        samples,
        opacity,
        associated,
        separate,
        compression,
        _differences(tags, compression, bits),
        _number(tags, Tag.FILL_ORDER, 1) == 2,
        tiled,
        segment_width,
        segment_height,
        offsets,
        sizes,
    )
    _check_segments(structure)
    return structure


def _number(tags: Directory, tag: Tag, default: int = 0) -> int:
    value = tags.number(tag, default)
    assert value is not None
    return value


def _compression(tags: Directory) -> Compression:
    stated = _number(tags, Tag.COMPRESSION, 1)
    if stated not in set(Compression):
        known = "none, LZW, Deflate, PackBits, Zstandard, JPEG or CCITT fax"
        raise unsupported(f"has {_OTHER_COMPRESSIONS.get(stated, f'unknown ({stated})')} compression, expected {known}")
    return Compression(stated)


def _samples(tags: Directory) -> tuple[int, int]:
    """Return the samples of a pixel and the bits of each."""
    samples = _number(tags, Tag.SAMPLES, 1)
    if samples > MAX_SAMPLES:
        raise excessive(f"has {samples} samples a pixel, more than {MAX_SAMPLES}, the limit of this decoder")
    depths = sorted({*map(int, tags.numbers(Tag.BITS)[: max(samples, 1)])} or {1})
    formats = {*map(int, tags.numbers(Tag.SAMPLE_FORMAT)[: max(samples, 1)])}
    stated = " and ".join(map(str, depths))
    for kind in sorted(formats.difference(_UNSIGNED_FORMATS)):
        name = _OTHER_FORMATS.get(kind, f"unknown ({kind})")
        raise unsupported(f"has {stated}-bit {name} samples, expected unsigned integers of 8 or 16 bits")
    if len(depths) > 1 or not 1 <= depths[0] <= 16:
        raise unsupported(f"has {stated}-bit samples, expected 8 or 16 bits")
    return samples, depths[0]


def _photometric(tags: Directory, samples: int, compression: Compression) -> Photometric:
    if Tag.PHOTOMETRIC not in tags:  # as in libtiff
        if compression.is_fax:
            return Photometric.WHITE_IS_ZERO
        return Photometric.RGB if samples in (3, 4) else Photometric.BLACK_IS_ZERO
    stated = _number(tags, Tag.PHOTOMETRIC)
    if stated not in set(Photometric):
        name = _OTHER_COLOURS.get(stated, f"an unknown photometric interpretation ({stated})")
        raise unsupported(f"has {name}, expected grey, a palette, RGB, CMYK or YCbCr")
    if stated == Photometric.CMYK and _number(tags, Tag.INK_SET, 1) != 1:
        raise unsupported("has inks other than CMYK, expected grey, a palette, RGB, CMYK or YCbCr")
    return Photometric(stated)


def _opacity(tags: Directory, photometric: Photometric, samples: int) -> tuple[int, bool]:
    """Return the number of the sample that is the opacity, or 0, and whether colours are multiplied by it."""
    extra = [*map(int, tags.numbers(Tag.EXTRA_SAMPLES))]
    count = samples - photometric.channels
    if count and not extra:
        if photometric is Photometric.RGB and count == 1:  # writers that forget the tag mean RGBA
            return photometric.channels, False
        raise unsupported(f"has {samples} samples a pixel, and does not state what those beyond the colours are")
    for number, kind in enumerate(extra[:count]):
        if kind in (_ASSOCIATED, _UNASSOCIATED, _COREL):
            if kind == _ASSOCIATED and photometric not in (Photometric.RGB, Photometric.BLACK_IS_ZERO):
                raise unsupported("has colours other than RGB and grey that are multiplied by their opacity")
            return photometric.channels + number, kind == _ASSOCIATED
    return 0, False


def _check_compression(compression: Compression, photometric: Photometric, bits: int, separate: bool) -> None:
    if compression is Compression.JPEG and bits != 8:
        raise unsupported(f"has {bits}-bit samples with JPEG compression, expected 8 bits")
    if compression.is_fax and bits != 1:
        raise damaged(f"it has {bits}-bit samples with fax compression, which has 1 bit")
    if photometric is Photometric.YCBCR and (compression is not Compression.JPEG or separate):
        raise unsupported("has YCbCr colours without JPEG compression or in separate planes, expected RGB")


def _differences(tags: Directory, compression: Compression, bits: int) -> bool:
    predictor = _number(tags, Tag.PREDICTOR, 1) if compression.allows_predictor else 1
    if predictor not in (1, 2) or (predictor == 2 and bits not in (8, 16)):
        raise unsupported(f"has {bits}-bit samples with predictor {predictor}, expected none, or 2 with 8 or 16 bits")
    return predictor == 2


def _segments(
    tags: Directory, width: int, height: int, length: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], bool, int, int]:
    """Return positions and sizes of strips or tiles, whether they are tiles, and their width and height in pixels."""
    tiled = Tag.TILE_WIDTH in tags
    if tiled:
        offsets = tags.numbers(Tag.TILE_OFFSETS if Tag.TILE_OFFSETS in tags else Tag.STRIP_OFFSETS)
        sizes = tags.numbers(Tag.TILE_SIZES if Tag.TILE_SIZES in tags else Tag.STRIP_SIZES)
        across, down = _number(tags, Tag.TILE_WIDTH), _number(tags, Tag.TILE_HEIGHT)
    else:
        offsets, sizes = tags.numbers(Tag.STRIP_OFFSETS), tags.numbers(Tag.STRIP_SIZES)
        across, down = width, min(_number(tags, Tag.ROWS_PER_STRIP, height), height)
    if not across or not down:
        raise damaged(f"its strips or tiles have a size of {across}x{down}")
    if not len(sizes) and len(offsets) == 1:  # some writers leave out the only size
        sizes = np.maximum(length - offsets, 0)
    return offsets, sizes, tiled, across, down


def _check_segments(structure: Structure) -> None:
    """Check that there are as many strips or tiles as the image needs, and not too many or too large ones."""
    kind = "tiles" if structure.tiled else "strips"
    count = structure.across * structure.down * (structure.samples if structure.separate else 1)
    limit = MAX_JPEG_SEGMENTS if structure.compression is Compression.JPEG else MAX_SEGMENTS
    if count > limit:
        raise excessive(f"has {count} {kind}, more than {limit}, the limit of this decoder")
    area = structure.across * structure.down * structure.segment_width * structure.segment_height
    if area > 4 * structure.width * structure.height + _SPARE_PIXELS:
        raise excessive(
            f"has tiles of {structure.segment_width}x{structure.segment_height} pixels, too large for an image of "
            f"{structure.width}x{structure.height}"
        )
    known = len(structure.offsets)
    if structure.compression is not Compression.NONE:
        known = min(known, len(structure.sizes))
    if known < count:
        raise damaged(f"it has {known} {kind}, expected {count}")
