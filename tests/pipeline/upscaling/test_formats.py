"""Files that were written: every format, depth and kind of image, read back by other libraries."""

import io
import itertools
from dataclasses import replace
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import ExifTags, Image, ImageCms, ImageOps, features

from pipeline.data.formats import metadata
from pipeline.data.formats.colour import SRGB, grey_profile
from pipeline.data.rejection import RejectedImageError
from pipeline.settings import UserError
from pipeline.upscaling.encoding import encode_image, losses
from pipeline.upscaling.formats import FORMATS
from pipeline.upscaling.images import DecodedImage, decode_image
from tests.pipeline.data.formats.encoders import Array, saved, tiff

LIMIT = 10**6
SIZE = (21, 34)
LOSSLESS = (".png", ".webp", ".tif", ".tiff", ".bmp")
ADOBE = imagecodecs.cms_profile("adobergb")
SUFFIXES = [suffix for suffix in FORMATS if suffix != ".avif" or features.check("avif")]


def camera_exif(orientation: int = 6) -> bytes:
    """Make EXIF metadata as a camera writes them, with a place and a thumbnail."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make] = "Maker of cameras"
    exif.get_ifd(ExifTags.IFD.Exif).update(
        {
            ExifTags.Base.DateTimeOriginal: "2024:01:02 03:04:05",
            ExifTags.Base.ExposureTime: 0.004,
            ExifTags.Base.ExifImageWidth: 9,
            ExifTags.Base.MakerNote: b"private notes",
        }
    )
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    return exif.tobytes()


def smooth(channels: int, kind: type[np.generic], transparent: bool) -> DecodedImage:
    """Make an image that lossy formats change little, with a profile, EXIF metadata and a resolution."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    largest = int(np.iinfo(kind).max)  # type: ignore[type-var]
    planes = [(x * 7 + y * 3) % 256, (y * 11 + x) % 256, 255 - x * 5]
    pixels = (
        np.stack(planes[:channels], axis=2).astype(float) / 255 * largest * 0.8 + 0.2 * largest * (x / 34)[:, :, None]
    )
    alpha = (x / SIZE[1] * largest).round().astype(kind) if transparent else None
    profile = grey_profile() if channels == 1 else SRGB
    exif = metadata.upright(camera_exif(), SIZE[1], SIZE[0])
    return DecodedImage(pixels.round().astype(kind), alpha, profile, exif, (300.0, 300.0))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("channels", "kind", "transparent"), list(itertools.product((1, 3), (np.uint8, np.uint16), (False, True)))
)
def test_a_format_keeps_what_it_can_hold(suffix: str, channels: int, kind: type[np.generic], transparent: bool) -> None:
    image, form = smooth(channels, kind, transparent), FORMATS[suffix]
    content = encode_image(image, suffix)
    found = decode_image(content, LIMIT)
    deep, clear = kind is np.uint16 and form.deep, transparent and form.transparent
    assert found.pixels.dtype == (np.uint16 if deep else np.uint8)
    assert found.pixels.shape == (*SIZE, 1 if channels == 1 and form.grey else 3)
    assert (found.alpha is not None) == clear
    expected = image.pixels / np.iinfo(kind).max  # type: ignore[type-var]
    opacity = np.ones(SIZE) if image.alpha is None else image.alpha / np.iinfo(kind).max  # type: ignore[type-var]
    if transparent and not form.transparent:
        expected = expected * opacity[:, :, None] + 1 - opacity[:, :, None]
    share = found.pixels / np.iinfo(found.pixels.dtype).max
    visible = opacity > 0.5
    error = np.abs(share - expected)[visible] * 255
    assert error.max() <= (0.51 if suffix in LOSSLESS else 60)
    assert error.mean() <= (0.5 if suffix in LOSSLESS else 9)
    if deep:
        assert np.array_equal(found.pixels, image.pixels)
    if clear and suffix in LOSSLESS:
        assert found.alpha is not None
        assert np.abs(found.alpha / np.iinfo(found.alpha.dtype).max - opacity).max() <= 0.51 / 255
    assert found.density == (None if suffix in (".webp", ".avif", ".gif") else (300.0, 300.0))
    check_metadata(content, suffix, found)
    told = " ".join(losses(image, suffix))
    assert ("16 bits" in told) == (kind is np.uint16 and not form.deep)
    assert ("put on white" in told) == (transparent and not form.transparent)


def check_metadata(content: bytes, suffix: str, found: DecodedImage) -> None:
    """Check profile and EXIF metadata with Pillow, or with tifffile where Pillow cannot open the file."""
    if not FORMATS[suffix].metadata:
        assert found.profile is None
        assert found.exif is None
        return
    assert found.exif is not None
    exif = Image.Exif()
    exif.load(b"Exif\0\0" + found.exif)
    photo = exif.get_ifd(ExifTags.IFD.Exif)
    assert exif.get(ExifTags.Base.Orientation, 1) == 1
    assert exif[ExifTags.Base.Make] == "Maker of cameras"
    assert photo[ExifTags.Base.DateTimeOriginal] == "2024:01:02 03:04:05"
    assert photo[ExifTags.Base.ExposureTime] == pytest.approx(0.004)
    assert photo[ExifTags.Base.ExifImageWidth] == SIZE[1]
    assert photo[ExifTags.Base.MakerNote] == b"private notes"
    assert exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] == "N"
    if suffix in (".tif", ".tiff"):
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            profile = file.pages.first.iccprofile or b""
    else:
        with Image.open(io.BytesIO(content)) as file:
            profile = file.info["icc_profile"]
    parsed = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile
    grey = found.pixels.shape[2] == 1
    assert parsed.xcolor_space == ("GRAY" if grey else "RGB ")


@given(
    st.sampled_from([np.uint8, np.uint16]).flatmap(
        lambda kind: arrays.arrays(kind, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2, 3, 4])))
    )
)
def test_other_libraries_read_png_and_tiff_files_sample_for_sample(samples: Array) -> None:
    channels = samples.shape[2]
    opaque = channels in (1, 3)
    image = DecodedImage(samples if opaque else samples[:, :, :-1], None if opaque else samples[:, :, -1])
    seen = imagecodecs.png_decode(encode_image(image, ".png"))
    assert seen.dtype == samples.dtype
    assert np.array_equal(seen.reshape(samples.shape), samples)
    with tifffile.TiffFile(io.BytesIO(encode_image(image, ".tif"))) as file:
        page = file.pages.first
        assert page.extrasamples == (() if opaque else (tifffile.EXTRASAMPLE.UNASSALPHA,))
        assert np.array_equal(page.asarray().reshape(samples.shape), samples)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_of_other_writers_are_read(order: str, channels: int) -> None:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 65536, (13, 17, channels), np.uint16)
    colours[0, 0] = 65535
    alpha = rng.integers(0, 65536, (13, 17), np.uint16)
    both = np.dstack([colours, alpha])
    files = {
        "PNG": bytes(imagecodecs.png_encode(colours.squeeze())),
        "PNG with opacity": bytes(imagecodecs.png_encode(both)),
        "TIFF": saved_tiff(colours.squeeze(), order, channels),
        "TIFF with opacity": saved_tiff(both, order, channels, extrasamples=("unassalpha",)),
    }
    for name, content in files.items():
        found = decode_image(content, LIMIT)
        assert np.array_equal(found.pixels, colours), name
        assert (found.alpha is not None) == ("opacity" in name)
        assert found.alpha is None or np.array_equal(found.alpha, alpha)
    twelve = decode_image(tiff(colours >> 4, 12, 2 if channels == 3 else 1), LIMIT).pixels
    assert twelve.dtype == np.uint16
    assert np.array_equal(twelve >> 4, colours >> 4)
    assert (twelve[0, 0] == 65535).all()


def saved_tiff(samples: Array, order: str, channels: int, **options: Any) -> bytes:
    """Encode (H, W) or (H, W, C) with tifffile."""
    sink = io.BytesIO()
    options |= {"planarconfig": "contig"} if samples.ndim == 3 else {}
    options |= {"byteorder": order, "photometric": "rgb" if channels == 3 else "minisblack"}
    tifffile.imwrite(sink, samples, **options)
    return sink.getvalue()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_colours_become_srgb_or_stay(kind: type[np.generic]) -> None:
    largest = int(np.iinfo(kind).max)  # type: ignore[type-var]
    shares = np.random.default_rng(0).uniform(0.3, 0.7, (12, 15, 3))
    image = DecodedImage((shares * largest).round().astype(kind), None, ADOBE)
    expected = adobe_to_srgb(image.pixels.astype(float) / largest)
    content = encode_image(image, ".tif")
    converted = decode_image(content, LIMIT)
    error = np.abs(converted.pixels / largest - expected)
    assert error.max() < (0.02 if kind is np.uint8 else 0.0003)  # LittleCMS rounds 8 bits before the steep dark end
    assert error.mean() < 0.002
    assert converted.profile == SRGB
    kept = decode_image(content, LIMIT, keep_profile=True)
    assert np.array_equal(kept.pixels, image.pixels)
    assert kept.profile == ADOBE
    # A format without profiles gets sRGB, whatever the image has.
    flat = decode_image(encode_image(kept, ".bmp"), LIMIT)
    assert np.abs(flat.pixels / 255 - expected).max() < 0.02


def adobe_to_srgb(shares: Array) -> Array:
    """Convert Adobe RGB (1998) to sRGB by the published primaries and curves, both of white D65."""
    adobe = np.array([[0.57667, 0.18556, 0.18823], [0.29734, 0.62736, 0.07529], [0.02703, 0.07069, 0.99134]])
    srgb = np.array([[3.24048, -1.53715, -0.49854], [-0.96926, 1.87601, 0.04156], [0.05565, -0.20404, 1.05731]])
    linear = np.clip(shares ** (563 / 256) @ adobe.T @ srgb.T, 0, 1)
    return np.asarray(np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055))


def test_grey_with_a_profile_becomes_grey_with_the_curve_of_srgb() -> None:
    linear = imagecodecs.cms_profile("gray", gamma=1.0)
    shares = np.linspace(0, 1, 200).reshape(10, 20, 1)
    for kind, largest in ((np.uint8, 255), (np.uint16, 65535)):
        samples = (shares * largest).round().astype(kind)
        found = decode_image(encode_image(DecodedImage(samples, None, linear), ".tif"), LIMIT)
        exact = samples.astype(float) / largest
        expected = np.where(exact <= 0.0031308, 12.92 * exact, 1.055 * exact ** (1 / 2.4) - 0.055)
        assert found.pixels.shape == (10, 20, 1)
        assert np.abs(found.pixels / largest - expected).max() < 1.2 / 255 * (1 if kind is np.uint8 else 0.05)
        assert found.profile == grey_profile()


@pytest.mark.parametrize("source", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_an_orientation_is_applied_once(source: str, orientation: int) -> None:
    corner = np.zeros((16, 24, 3), np.uint8)
    corner[:8, :8] = 255
    kind = {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".tif": "TIFF"}[source]
    content = saved(Image.fromarray(corner), kind, exif=camera_exif(orientation))
    upright = decode_image(content, LIMIT)
    again = decode_image(encode_image(upright, ".png"), LIMIT)
    with Image.open(io.BytesIO(content)) as file:
        expected = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
    assert np.abs(upright.pixels.astype(int) - expected).max() < 40
    assert np.array_equal(again.pixels, upright.pixels)
    assert upright.exif is not None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_resolution_turns_with_the_image_and_is_read_from_exif(kind: str) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.XResolution], exif[ExifTags.Base.YResolution] = 204.0, 98.0
    exif[ExifTags.Base.ResolutionUnit] = 2
    options = {"dpi": (204, 98)} if kind == "TIFF" else {}
    found = decode_image(saved(Image.new("RGB", (8, 6)), kind, exif=exif.tobytes(), **options), LIMIT)
    assert found.size == (6, 8)
    assert found.density == (98.0, 204.0)


def test_large_exif_metadata_are_kept_or_their_loss_is_said() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "x" * 2**21
    image = replace(smooth(3, np.uint8, False), exif=exif.tobytes().removeprefix(b"Exif\0\0"))
    for suffix in (".png", ".webp"):
        assert losses(image, suffix) == []
        assert decode_image(encode_image(image, suffix), LIMIT).exif == image.exif
    for suffix, kept in ((".jpg", "they are left out"), (".tif", "at most 1 MB a directory")):
        assert kept in losses(image, suffix)[0]
        assert len(encode_image(image, suffix)) < 2**20


@pytest.mark.parametrize("exif", [b"rubbish", b"II*\0\x08\0\0\0", b"II*\0\x08\0\0\0\xff\xff" + bytes(40), b""])
def test_damaged_metadata_never_spoil_an_image(exif: bytes) -> None:
    pixels = smooth(3, np.uint8, False).pixels
    for kind in ("JPEG", "PNG", "WEBP"):
        content = saved(Image.fromarray(pixels), kind, exif=b"Exif\0\0" + exif, icc_profile=b"rubbish" * 50)
        image = decode_image(content, LIMIT)
        assert image.pixels.shape == pixels.shape
        for suffix in SUFFIXES:
            decode_image(encode_image(image, suffix), LIMIT)
    kept = decode_image(saved(Image.fromarray(pixels), "PNG", icc_profile=b"rubbish" * 50), LIMIT, keep_profile=True)
    assert kept.profile == SRGB


def test_jpeg_keeps_the_resolution_of_colours() -> None:
    sharp = np.zeros((16, 16, 3), np.uint8)
    sharp[:, ::2] = [255, 0, 0]
    sharp[:, 1::2] = [0, 0, 255]
    content = encode_image(DecodedImage(sharp), ".jpg")
    with Image.open(io.BytesIO(content)) as file:
        assert [layer[1:3] for layer in file.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]
    sizes = [len(encode_image(smooth(3, np.uint8, False), suffix, quality)) for suffix in (".jpg", ".webp")
             for quality in (20, 90)]  # fmt: skip
    assert sizes[0] < sizes[1]
    assert sizes[2] < sizes[3]


def test_what_cannot_be_written_is_one_sentence() -> None:
    wide = DecodedImage(np.zeros((1, 70_000, 1), np.uint8))
    with pytest.raises(UserError, match=r"70000x1 pixels is larger than .jpg can hold, which is 65500 .*expected .png"):
        encode_image(wide, ".jpg")
    with pytest.raises(UserError, match=r"\.txt is not the name of an image, expected one that ends in \.png"):
        encode_image(wide, ".txt")
    with pytest.raises(RejectedImageError, match=r"is no image of a known format .*GIF, AVIF"):
        decode_image(b"hello", LIMIT)
    with pytest.raises(RejectedImageError, match="34x21 is more than 100 pixels"):
        decode_image(encode_image(smooth(3, np.uint8, False), ".png"), 100)
    assert "left out" in losses(replace(smooth(3, np.uint8, False), exif=bytes(70_000)), ".jpg")[0]
