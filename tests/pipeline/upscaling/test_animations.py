"""Animations keep their frames, durations and repetitions; Pillow reads them back as they are shown."""

import io
from contextlib import suppress
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from pipeline.data.formats.colour import SRGB, grey_profile
from pipeline.data.locations import FileLocation
from pipeline.data.rejection import RejectedImageError
from pipeline.networks.upscalers import BicubicUpscaler
from pipeline.settings import UserError
from pipeline.upscaling.animations import Frame, open_animation, write_animation
from pipeline.upscaling.encoding import encode_image
from pipeline.upscaling.files import upscale_file
from pipeline.upscaling.images import DecodedImage, enlarge_image
from pipeline.upscaling.options import Enlargement
from tests.pipeline.data.formats.encoders import Array

DURATIONS = [100, 200, 50, 300]
SIZE = (24, 30)
KINDS = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG"}


def pictures(transparent: bool) -> list[Array]:
    """Make frames (H, W, 4) in which a square moves over a background, or over nothing."""
    frames = []
    for number in range(4):
        frame = np.full((*SIZE, 4), [30, 90, 160, 0 if transparent else 255], np.uint8)
        frame[4 + 2 * number : 14 + 2 * number, 3 + 4 * number : 13 + 4 * number] = [240, 200, 40 * number, 255]
        frames.append(frame)
    return frames


def shown(content: bytes) -> tuple[list[Array], list[float], object]:
    """Return the frames as they are shown, (H, W, 4), their durations and the repetitions."""
    with Image.open(io.BytesIO(content)) as file:
        frames, durations = [], []
        for number in range(getattr(file, "n_frames", 1)):
            file.seek(number)
            frames.append(np.asarray(file.convert("RGBA")).copy())
            durations.append(float(file.info["duration"]))
        return frames, durations, file.info.get("loop")


def assert_alike(seen: list[Array], expected: list[Array]) -> None:
    """Check opacity and visible colours of frames; what is opaque by half may be lost in a GIF file."""
    assert len(seen) == len(expected)
    for one, other in zip(seen, expected, strict=True):
        clear = (other[:, :, 3] > 0) & (other[:, :, 3] < 255)
        assert np.abs(one[:, :, 3].astype(int) - other[:, :, 3])[~clear].max() <= 0
        assert np.abs(one[:, :, :3].astype(int) - other[:, :, :3])[other[:, :, 3] == 255].mean() < 3


@pytest.mark.parametrize(("source", "suffix"), list(product(KINDS, KINDS)))
@pytest.mark.parametrize("transparent", [False, True])
def test_an_animation_is_enlarged_frame_by_frame(source: str, suffix: str, transparent: bool) -> None:
    first, *others = [Image.fromarray(frame) for frame in pictures(transparent)]
    sink = io.BytesIO()
    options = {"lossless": True} if source == ".webp" else {"disposal": 2 if source == ".gif" else 0, "blend": 0}
    first.save(sink, KINDS[source], save_all=True, append_images=others, duration=DURATIONS, loop=3, **options)
    upscaler = BicubicUpscaler(2)
    with open_animation(sink.getvalue(), 10**5) as animation:
        assert animation is not None
        assert (animation.count, animation.plays) == (4, 3)
        frames = [Frame(enlarge_image(upscaler, frame.image), frame.duration) for frame in animation.frames]
    written = io.BytesIO()
    write_animation(frames, 3, written, suffix)
    seen, durations, loop = shown(written.getvalue())
    assert (durations, loop) == (DURATIONS, 3)
    stills = [DecodedImage(frame[:, :, :3], frame[:, :, 3] if transparent else None) for frame in pictures(transparent)]
    expected = [enlarge_image(upscaler, still) for still in stills]
    assert_alike(
        seen,
        [np.dstack([each.pixels, np.full(each.pixels.shape[:2], 255, np.uint8) if each.alpha is None else each.alpha])
         for each in expected],
    )  # fmt: skip


def test_an_animation_that_is_shown_once_stays_so_and_a_still_is_none() -> None:
    frames = [Frame(DecodedImage(frame[:, :, :3]), 70) for frame in pictures(False)]
    for suffix in KINDS:
        sink = io.BytesIO()
        write_animation(frames, 1, sink, suffix)
        with open_animation(sink.getvalue(), 10**5) as animation:
            assert animation is not None
            assert animation.plays == 1
        with (
            pytest.raises(RejectedImageError, match="has 4 frames of 30x24, more than 2000 pixels"),
            open_animation(sink.getvalue(), 2000),
        ):
            pass
        with open_animation(encode_image(frames[0].image, suffix), 10**5) as animation:
            assert animation is None


def test_only_the_frames_that_are_decoded_count(tmp_path: Path) -> None:
    sink = io.BytesIO()
    write_animation([Frame(DecodedImage(frame[:, :, :3]), 70) for frame in pictures(False)], 0, sink, ".gif")
    (tmp_path / "a.gif").write_bytes(sink.getvalue())
    source, upscaler, how = FileLocation(str(tmp_path / "a.gif")), BicubicUpscaler(2), Enlargement(max_megapixels=0.005)
    written = upscale_file(upscaler, source, str(tmp_path / "a.jpg"), ".jpg", how)
    assert (written.width, written.height) == (60, 48)
    assert written.notes == ("is an animation of 4 frames, of which .jpg holds the first",)
    with pytest.raises(RejectedImageError, match="has 4 frames of 30x24, more than 1250 pixels"):
        upscale_file(upscaler, source, str(tmp_path / "b.gif"), ".gif", how)


@pytest.mark.parametrize("transparent", [False, True])
def test_grey_frames_stay_grey_with_their_profile(transparent: bool) -> None:
    alpha = pictures(True)[0][:, :, 3] if transparent else None
    frames = [Frame(DecodedImage(frame[:, :, 2:3], alpha, grey_profile()), 70) for frame in pictures(False)]
    for suffix, mode in ((".png", "L"), (".webp", "RGB")):
        sink = io.BytesIO()
        write_animation(frames, 0, sink, suffix)
        with Image.open(sink) as file:
            assert suffix == ".webp" or file.mode == mode + ("A" if transparent else "")
            parsed = ImageCms.ImageCmsProfile(io.BytesIO(file.info["icc_profile"])).profile
            assert parsed.xcolor_space == ("GRAY" if mode == "L" else "RGB ")
        with open_animation(sink.getvalue(), 10**5) as animation:
            assert animation is not None
            for seen, frame in zip(animation.frames, frames, strict=True):
                error = np.abs(seen.image.pixels.astype(int) - frame.image.pixels)
                assert error[alpha != 0 if alpha is not None else ...].max() <= 1  # WebP keeps no hidden colours
    coloured = Frame(DecodedImage(pictures(False)[0][:, :, :3], None, SRGB), 70)
    sink = io.BytesIO()
    write_animation([*frames, coloured], 0, sink, ".png")
    with Image.open(sink) as file:
        assert (file.mode, file.info["icc_profile"]) == ("RGBA" if transparent else "RGB", SRGB)


def test_frames_that_a_format_cannot_hold_are_one_sentence() -> None:
    wide = Frame(DecodedImage(np.zeros((1, 17_000, 3), np.uint8)), 70)
    with pytest.raises(UserError, match=r"17000x1 pixels is larger than \.webp can hold, which is 16383 pixels a side"):
        write_animation([wide, wide], 0, io.BytesIO(), ".webp")


@pytest.mark.parametrize("suffix", KINDS)
def test_a_damaged_animation_is_rejected(suffix: str) -> None:
    frames = [
        Frame(DecodedImage(np.random.default_rng(n).integers(0, 256, (*SIZE, 3), np.uint8)), 70) for n in range(4)
    ]
    sink = io.BytesIO()
    write_animation(frames, 0, sink, suffix)
    content = sink.getvalue()

    def read(part: bytes) -> None:
        with open_animation(part, 10**5) as animation:
            assert animation is None or list(animation.frames)

    for end in range(40, len(content) - 20, len(content) // 12):
        with suppress(RejectedImageError):  # what is left may also be an animation of fewer frames
            read(content[:end])
