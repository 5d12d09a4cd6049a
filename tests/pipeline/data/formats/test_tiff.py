"""TIFF files: every combination of structure is read right or rejected by its property; tifffile is the reference."""

import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from pipeline.data.formats import tiff_structure
from pipeline.data.images import decode, read_size
from pipeline.data.rejection import RejectedImageError
from tests.conftest import random_image
from tests.pipeline.data.formats.encoders import Array, assert_rejected, container, decode_channels, saved, tiff
from tests.pipeline.data.formats.test_png import eight, white

LIMIT = 10**6
WHITE_IS_ZERO, GREY, RGB, PALETTE, CMYK = 0, 1, 2, 3, 5
CHANNELS = {WHITE_IS_ZERO: 1, GREY: 1, RGB: 3, PALETTE: 1, CMYK: 4}
COMPRESSIONS = {"none": 1, "LZW": 5, "Deflate": 8, "old Deflate": 32946, "PackBits": 32773, "Zstandard": 50000}
LAYOUTS: dict[str, dict[str, Any]] = {"strip": {}, "strips": {"rows": 4}, "tiles": {"tile": (16, 32)}}
SIZE = (37, 45)


@dataclass(frozen=True)
class Case:
    """A structure of TIFF files."""

    photometric: int
    bits: int
    compression: str
    layout: str
    planar: int = 1
    order: str = "<"
    big: bool = False
    predictor: int = 1
    fill_order: int = 1
    extra: tuple[int, ...] = ()
    """Kinds of extra samples."""

    def __str__(self) -> str:
        names = {0: "white is 0", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK"}
        parts = [names[self.photometric], f"{self.bits} bits", self.compression, self.layout, f"planar {self.planar}"]
        parts += ["big-endian"] * (self.order == ">") + ["BigTIFF"] * self.big
        parts += [f"predictor {self.predictor}"] * (self.predictor > 1) + ["reversed"] * (self.fill_order > 1)
        return ", ".join(parts + [f"extra {self.extra}"] * bool(self.extra))


def cases() -> Iterator[Case]:
    """Yield the structures that are tested."""
    colours = [
        (0, 1),
        (0, 4),
        (0, 8),
        (0, 16),
        (1, 1),
        (1, 2),
        (1, 8),
        (1, 12),
        (1, 16),
        (2, 8),
        (2, 16),
        (3, 4),
        (3, 8),
    ]
    colours += [(5, 8), (5, 16)]
    for number, ((photometric, bits), compression, layout) in enumerate(
        itertools.product(colours, COMPRESSIONS, LAYOUTS)
    ):
        predicted = compression not in ("none", "PackBits") and bits in (8, 16) and photometric != PALETTE
        planar = 1 + number % 2 if photometric in (RGB, CMYK) else 1
        yield Case(photometric, bits, compression, layout, planar, "<>"[number % 3 % 2], number % 5 == 0, 1 + predicted)
    for bits, planar, order, compression in itertools.product((3, 5, 6, 7, 9, 10, 14), (1, 2), "<>", ("none", "LZW")):
        yield Case(RGB, bits, compression, "strips", planar, order)
    for photometric, bits, fill_order in itertools.product((GREY, PALETTE), (1, 2, 4, 8), (1, 2)):
        for compression in ("none", "LZW", "PackBits"):
            yield Case(photometric, bits, compression, "strips", fill_order=fill_order)
    extras = [(1,), (2,), (0,), (999,), (0, 2), (2, 0), (1, 0, 0)]
    for extra, bits, planar, compression in itertools.product(extras, (8, 16), (1, 2), ("none", "LZW")):
        for photometric in (GREY, RGB):
            yield Case(photometric, bits, compression, "tiles", planar, "<>"[planar - 1], extra=extra)
    for extra, photometric in itertools.product([(2,), (0,), (0, 2)], (PALETTE, CMYK)):
        yield Case(photometric, 8, "Deflate", "strips", extra=extra)


@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_every_structure_keeps_its_values(case: Case) -> None:
    rng = np.random.default_rng(0)
    channels = CHANNELS[case.photometric]
    kind = np.uint8 if case.bits <= 8 else np.uint16
    samples = rng.integers(0, 2**case.bits, (*SIZE, channels + len(case.extra)), kind)
    opacity = next((number for number, kind in enumerate(case.extra) if kind in (1, 2, 999)), None)
    if opacity is not None and case.extra[opacity] == 1:  # colours are at most as large as the opacity
        samples[:, :, :channels] = np.minimum(samples[:, :, :channels], samples[:, :, [channels + opacity]])
    colour_map = rng.integers(0, 65536, (3, 2**case.bits), np.uint16)
    tags: dict[int, Any] = {338: (3, list(case.extra))} if case.extra else {}
    tags |= {320: (3, colour_map.ravel().tolist())} if case.photometric == PALETTE else {}
    content = tiff(
        samples, case.bits, case.photometric, order=case.order, big=case.big, planar=case.planar, tags=tags,
        compression=COMPRESSIONS[case.compression], predictor=case.predictor, fill_order=case.fill_order,
        **LAYOUTS[case.layout],
    )  # fmt: skip
    assert_tifffile_agrees(content, samples)
    colours = eight(samples[:, :, :channels], case.bits)
    if case.photometric == WHITE_IS_ZERO:
        colours = eight(2**case.bits - 1 - samples, case.bits)
    elif case.photometric == PALETTE:
        colours = colour_map.T[samples[:, :, 0]] >> 8
    elif case.photometric == CMYK:
        colours = np.asarray(Image.fromarray(colours.astype(np.uint8), "CMYK").convert("RGB"))
    assert read_size(content) == SIZE[::-1]
    alpha = None if opacity is None else eight(samples[:, :, channels + opacity], case.bits)
    found, found_alpha = decode_channels(content, LIMIT)
    assert (found_alpha is None) == (alpha is None)
    flat = decode(content, LIMIT).astype(int)
    stored = decode(content, LIMIT, as_stored=True)
    assert np.array_equal(np.broadcast_to(stored, flat.shape), flat)
    assert stored.shape[2] == colours.shape[2]
    if alpha is None or found_alpha is None:
        assert np.array_equal(found, colours)
        assert np.array_equal(flat, np.broadcast_to(colours, flat.shape))
        return
    assert np.array_equal(found_alpha, alpha)
    if case.extra[opacity or 0] == 1:  # multiplied colours: c + 1 - a on white, up to rounding
        share = samples / (2**case.bits - 1)
        exact = 255 * (share[:, :, :channels] + 1 - share[:, :, [channels + (opacity or 0)]])
        assert np.abs(flat - exact).max() <= 2
    else:
        assert np.array_equal(found, colours)
        assert np.array_equal(flat, np.broadcast_to(white(colours, alpha), flat.shape))


def assert_tifffile_agrees(content: bytes, samples: Array) -> None:
    """Check that an independent reader finds the samples in a file that the tests have written."""
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        read = file.pages.first.asarray()
        planar = file.pages.first.planarconfig == 2
    expected = samples.squeeze()
    assert np.array_equal(np.moveaxis(read, 0, -1) if planar and read.ndim == 3 else read, expected)


BILEVEL = random_image(*SIZE)[:, :, :1] >> 7


@pytest.mark.parametrize(("compression", "name"), [(2, "tiff_ccitt"), (3, "group3"), (4, "group4")])
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("fill_order", [1, 2])
def test_a_fax_keeps_its_values(compression: int, name: str, photometric: int, fill_order: int) -> None:
    written = saved(Image.fromarray(BILEVEL[:, :, 0] > 0), "TIFF", compression=name)
    with TiffImageFile(io.BytesIO(written)) as file:
        stated = file.tag_v2
    options: dict[int, tuple[int, Sequence[int] | bytes]]
    options = {tag: (4, [stated[tag]]) for tag in (292, 293) if tag in stated}
    coded = [written[start : start + size] for start, size in zip(stated[273], stated[279], strict=True)]
    rows, meaning = stated[278], stated[262]
    reverse = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
    segments = [part.translate(reverse) if fill_order == 2 else part for part in coded]
    content = tiff(
        BILEVEL, 1, photometric, compression=compression, rows=rows, segments=segments, fill_order=fill_order,
        tags={**options, 266: (3, [fill_order])},
    )  # fmt: skip
    expected = BILEVEL if photometric == meaning else 1 - BILEVEL
    assert np.array_equal(decode(content, LIMIT), np.repeat(expected * 255, 3, axis=2))


SMOOTH = np.asarray(Image.linear_gradient("L").resize(SIZE[::-1]).convert("RGB")).copy()
SMOOTH[:, :, 1] = SMOOTH[::-1, :, 1]


@pytest.mark.parametrize("colours", ["grey", "RGB", "YCbCr", "YCbCr, subsampled", "CMYK"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("planar", [1, 2])
def test_jpeg_streams_are_decoded(colours: str, layout: str, planar: int) -> None:
    number = {"grey": GREY, "RGB": RGB, "CMYK": CMYK}.get(colours, 6)
    samples = {"grey": SMOOTH[:, :, :1], "CMYK": np.dstack([SMOOTH, SMOOTH[:, :, 0]])}.get(colours, SMOOTH)
    options: dict[str, Any] = {} if planar == 2 or colours == "grey" else {"colorspace": "rgb", "outcolorspace": "rgb"}
    if number == 6 and planar == 1:
        options |= {"outcolorspace": "ycbcr", "subsampling": "420" if "sub" in colours else "444"}
    if colours == "CMYK" and planar == 1:
        options = {"colorspace": "cmyk", "outcolorspace": "cmyk"}

    def encode(part: Array) -> bytes:
        plane = np.ascontiguousarray(part[:, :, 0] if part.shape[2] == 1 else part)
        return bytes(imagecodecs.jpeg8_encode(plane, 95, **options))

    layouts = {**LAYOUTS, "strips": {"rows": 16}}
    content = tiff(samples, 8, number, compression=7, planar=planar, codec=encode, **layouts[layout])
    if planar == 2 and number == 6:
        with pytest.raises(
            RejectedImageError, match="has YCbCr colours without JPEG compression or in separate planes"
        ):
            decode(content, LIMIT)
        return
    expected = np.asarray(Image.fromarray(samples, "CMYK").convert("RGB")) if colours == "CMYK" else samples
    assert np.abs(decode(content, LIMIT).astype(int) - expected).max() <= 12
    reference = tifffile.imread(io.BytesIO(content))
    reference = np.moveaxis(reference, 0, 2) if planar == 2 and colours != "grey" else reference.reshape(samples.shape)
    if colours != "CMYK":
        assert np.abs(decode(content, LIMIT).astype(int) - reference).max() <= 1


def test_jpeg_streams_that_share_tables_are_decoded() -> None:
    content = saved(Image.fromarray(SMOOTH), "TIFF", compression="jpeg", quality=95)
    with TiffImageFile(io.BytesIO(content)) as file:
        assert 347 in file.tag_v2
        assert np.abs(decode(content, LIMIT).astype(int) - np.asarray(file.convert("RGB"))).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("bits", [8, 16])
def test_the_orientation_is_applied(orientation: int, bits: int) -> None:
    samples: Array = random_image(6, 9)
    if bits == 16:
        samples = samples.astype(np.uint16) << 8
    content = tiff(samples, bits, RGB, tags={274: (3, [orientation])})
    exif = Image.Exif()
    exif[0x0112] = orientation
    reference = decode(saved(Image.fromarray(eight(samples, bits).astype(np.uint8)), "PNG", exif=exif), LIMIT)
    assert np.array_equal(decode(content, LIMIT), reference)


def test_the_first_image_of_several_is_decoded() -> None:
    first, second = random_image(8, 9), random_image(20, 30)
    sink = io.BytesIO()
    with tifffile.TiffWriter(sink) as writer:
        for image in (first, second):
            writer.write(image, photometric="rgb")
    assert np.array_equal(decode(sink.getvalue(), LIMIT), first)


def test_a_palette_of_eight_bits_and_missing_tags_are_understood() -> None:
    """Some writers store 8-bit palettes, leave out the meaning of a fourth sample, or the size of the only strip."""
    pixels = random_image(8, 9)
    colours = [value for channel in range(3) for value in range(channel, 256 + channel)]
    content = tiff(pixels[:, :, :1], 8, PALETTE, tags={320: (3, [min(value, 255) for value in colours])})
    expected = np.minimum(pixels[:, :, :1].astype(int) + np.arange(3), 255)
    assert np.array_equal(decode(content, LIMIT), expected)
    rgba = np.dstack([pixels, pixels[:, :, 0]])
    found = decode_channels(tiff(rgba, 8, RGB), LIMIT)[1]
    assert found is not None
    assert np.array_equal(found, pixels[:, :, 0])
    assert np.array_equal(decode(tiff(pixels, 8, RGB, compression=5, tags={279: (4, [])}), LIMIT), pixels)
    assert np.array_equal(decode(tiff(pixels, 8, RGB, tags={262: (3, [])}), LIMIT), pixels)
    assert np.array_equal(decode(tiff(pixels, 8, RGB, tags={274: (2, b"rubbish")}), LIMIT), pixels)


PIXELS = random_image(20, 30)
GREY8 = PIXELS[:, :, :1]


def typed(kind: type[np.generic], sample_format: int, channels: int = 1) -> bytes:
    samples = PIXELS[:, :, :channels].astype(kind)
    tags: dict[int, tuple[int, Sequence[int] | bytes]] = {339: (3, [sample_format] * channels)}
    return tiff(samples, samples.itemsize * 8, GREY if channels == 1 else RGB, tags=tags)


def photometric(number: int, **options: Any) -> bytes:
    return tiff(PIXELS, 8, number, **options)


UNREAD = {
    6: "old-style JPEG", 33005: "JPEG 2000", 34661: "JBIG", 34887: "LERC", 34925: "LZMA", 50001: "WebP",
    50002: "JPEG XL", 12345: "unknown (12345)",
}  # fmt: skip
REJECTED: dict[str, tuple[bytes, str, str]] = {
    "float32": (typed(np.float32, 3), "UNSUPPORTED", "has 32-bit floating-point samples, expected unsigned integers"),
    "float16": (typed(np.float16, 3), "UNSUPPORTED", "has 16-bit floating-point samples"),
    "float64": (typed(np.float64, 3, 3), "UNSUPPORTED", "has 64-bit floating-point samples"),
    "int8": (typed(np.int8, 2), "UNSUPPORTED", "has 8-bit signed integer samples"),
    "int16": (typed(np.int16, 2, 3), "UNSUPPORTED", "has 16-bit signed integer samples"),
    "uint32": (typed(np.uint32, 1), "UNSUPPORTED", "has 32-bit samples, expected 8 or 16 bits"),
    "uint64": (typed(np.uint64, 1), "UNSUPPORTED", "has 64-bit samples, expected 8 or 16 bits"),
    "5, 6, 5 bits": (photometric(2, tags={258: (3, [5, 6, 5])}), "UNSUPPORTED", "has 5 and 6-bit samples"),
    "0 bits": (photometric(2, tags={258: (3, [0, 0, 0])}), "UNSUPPORTED", "has 0-bit samples"),
    "CIELab": (photometric(8), "UNSUPPORTED", "has CIELab colours, expected grey, a palette, RGB, CMYK or YCbCr"),
    "ICCLab": (photometric(9), "UNSUPPORTED", "has ICCLab colours"),
    "mask": (tiff(GREY8, 8, 4), "UNSUPPORTED", "has a transparency mask"),
    "CFA": (tiff(GREY8, 8, 32803), "UNSUPPORTED", "has raw sensor values"),
    "unknown colours": (photometric(77), "UNSUPPORTED", "has an unknown photometric interpretation (77)"),
    "YCbCr": (photometric(6), "UNSUPPORTED", "has YCbCr colours without JPEG compression"),
    "inks": (
        tiff(np.dstack([PIXELS, GREY8]), 8, 5, tags={332: (3, [2])}),
        "UNSUPPORTED",
        "has inks other than CMYK",
    ),
    "unknown extra": (tiff(PIXELS[:, :, :2], 8, GREY), "UNSUPPORTED", "has 2 samples a pixel, and does not state what"),
    "300 samples": (
        tiff(np.zeros((4, 4, 300), np.uint8), 8, GREY, tags={338: (3, [0] * 299)}),
        "TOO_LARGE",
        "has 300 samples a pixel, more than 6, the limit of this decoder",
    ),
    **{
        name: (photometric(2, compression=number), "UNSUPPORTED", f"has {name} compression, expected none, LZW")
        for number, name in UNREAD.items()
    },
    "float predictor": (
        tiff(PIXELS, 8, RGB, compression=8, tags={317: (3, [3])}),
        "UNSUPPORTED",
        "has 8-bit samples with predictor 3, expected none, or 2 with 8 or 16 bits",
    ),
    "predictor of 4 bits": (
        tiff(GREY8 >> 4, 4, GREY, compression=5, tags={317: (3, [2])}),
        "UNSUPPORTED",
        "has 4-bit samples with predictor 2",
    ),
    "JPEG of 12 bits": (
        tiff(GREY8, 12, GREY, compression=7),
        "UNSUPPORTED",
        "has 12-bit samples with JPEG compression",
    ),
    "fax of 8 bits": (tiff(GREY8, 8, GREY, compression=4), "DAMAGED", "it has 8-bit samples with fax compression"),
    "multiplied CMYK": (
        tiff(np.dstack([PIXELS, PIXELS[:, :, :2]]), 8, CMYK, tags={338: (3, [1])}),
        "UNSUPPORTED",
        "has colours other than RGB and grey that are multiplied by their opacity",
    ),
    "no width": (photometric(2, tags={256: (4, [0])}), "DAMAGED", "its header states a size of 0x20"),
    "2 samples of RGB": (tiff(PIXELS[:, :, :2], 8, RGB), "DAMAGED", "it has 2 samples a pixel, fewer than its colours"),
    "no palette": (tiff(GREY8, 8, PALETTE), "DAMAGED", "its palette is missing or has a wrong size"),
    "no strips": (photometric(2, tags={273: (4, [])}), "DAMAGED", "it has 0 strips, expected 1"),
    "few strips": (photometric(2, rows=5, tags={273: (4, [8])}), "DAMAGED", "it has 1 strips, expected 4"),
    "strip at 0": (photometric(2, tags={273: (4, [0])}), "DAMAGED", "its pixels are cut off or missing"),
    "strip behind the end": (photometric(2, tags={273: (4, [10**6])}), "DAMAGED", "its pixels are cut off or missing"),
    "LZW behind the end": (
        photometric(2, compression=5, tags={279: (4, [10**6])}),
        "DAMAGED",
        "its strip 0 is cut off or missing",
    ),
    "tile of no height": (
        photometric(2, tile=(16, 16), tags={323: (4, [0])}),
        "DAMAGED",
        "its strips or tiles have a size of 16x0",
    ),
    "huge tile": (
        photometric(2, tile=(32, 32), tags={322: (4, [10**5]), 323: (4, [10**5])}),
        "TOO_LARGE",
        "has tiles of 100000x100000 pixels, too large for an image of 30x20",
    ),
    "many tiles": (
        photometric(2, tile=(32, 32), tags={256: (4, [10**5]), 257: (4, [10**4]), 322: (4, [1])}),
        "TOO_LARGE",
        f"has 31300000 tiles, more than {tiff_structure.MAX_SEGMENTS}",
    ),
    "many JPEG tiles": (
        photometric(2, compression=7, tile=(8, 8), tags={256: (4, [8000]), 257: (4, [1000])}),
        "TOO_LARGE",
        f"has 125000 tiles, more than {tiff_structure.MAX_JPEG_SEGMENTS}",
    ),
    "width as text": (photometric(2, tags={256: (2, b"30")}), "DAMAGED", "its tag 256 is of type 2, expected unsigned"),
    "rational height": (photometric(2, tags={257: (5, [20, 1])}), "DAMAGED", "its tag 257 is of type 5"),
    "damaged LZW": (photometric(2, compression=5, segments=[b"\xff" * 50]), "DAMAGED", "cannot be decoded: "),
    "short Deflate": (
        photometric(2, compression=8, segments=[imagecodecs.zlib_encode(bytes(10))]),
        "DAMAGED",
        "cannot be decoded: ",
    ),
    "damaged JPEG": (photometric(2, compression=7, segments=[b"\xff\xd8" * 50]), "DAMAGED", "cannot be decoded: "),
    "4 bytes": (b"II*\0", "DAMAGED", "its directory of tags is cut off"),
    "BigTIFF of 8 bytes": (b"MM\0+\0\x08\0\0", "DAMAGED", "its directory of tags is cut off"),
    "directory behind the end": (b"II*\0\xff\0\0\0" + bytes(50), "DAMAGED", "its directory of tags is cut off"),
    "no tags": (container(b"", {}), "DAMAGED", "its header states a size of 0x0"),
    "no bytes of a tag": (photometric(2)[:-4], "DAMAGED", "are cut off"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_the_reason_of_a_rejection_is_true(case: str) -> None:
    assert_rejected(*REJECTED[case])


def test_a_structure_that_is_not_supported_is_known_from_the_header() -> None:
    for case in ("float32", "CIELab", "300 samples", "LZMA", "no width", "4 bytes"):
        with pytest.raises(RejectedImageError) as rejected:
            read_size(REJECTED[case][0])
        assert REJECTED[case][2] in str(rejected.value)


def test_a_large_image_is_rejected_before_it_is_decompressed() -> None:
    content = tiff(GREY8, 8, GREY, compression=5, tags={256: (4, [10**5]), 257: (4, [10**5]), 278: (4, [10**5])})
    with pytest.raises(RejectedImageError, match="100000x100000 is more than 1000000 pixels"):
        decode(content, LIMIT)
