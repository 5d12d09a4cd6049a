"""Enlarge an image file into another file, with everything that both formats hold."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline import storage, terminal
from pipeline.data import sources
from pipeline.data.locations import Location
from pipeline.data.rejection import RejectedImageError, RejectionKind
from pipeline.upscaling.animations import Animation, Frame, open_animation, write_animation
from pipeline.upscaling.encoding import losses, write_image
from pipeline.upscaling.formats import FORMATS
from pipeline.upscaling.images import decode_image, enlarge_image
from pipeline.upscaling.options import Enlargement

if TYPE_CHECKING:
    from pipeline.networks.upscalers import Upscaler


@dataclass(frozen=True)
class Written:
    """A file that was written."""

    width: int
    height: int
    frames: int
    bytes: int
    notes: tuple[str, ...]
    """Losses of the image in the file; each text completes a sentence that begins with the image's name."""

    @property
    def megapixels(self) -> float:
        """Pixels of all frames."""
        return self.width * self.height * self.frames / 1e6


def upscale_file(
    upscaler: Upscaler, source: Location, target: str, suffix: str, how: Enlargement, progress: bool = False
) -> Written:
    """Enlarge an image file.

    Args:
        upscaler: the model.
        source: the image.
        target: path or URL of the file to write.
        suffix: its lower-case ending, which chooses the format.
        how: how the image is enlarged.
        progress: whether to show how much of a large image, or how many frames, are done.

    Raises:
        RejectedImageError: if the image cannot be read or is too large. Its text completes a sentence that begins with
            the image's name.
        UserError: if files of this format cannot be so large.
        OSError: if the storage fails.
    """
    limit = how.max_pixels(upscaler.scale)
    content = sources.read_bytes(source, sources.byte_limit(limit))
    try:
        animated = FORMATS[suffix].animated
        with open_animation(content, limit, how.keep_profile, only_count=not animated) as animation:
            if animation and animated:
                return _write_frames(upscaler, animation, target, suffix, how, progress)
            count = animation.count if animation else 1
        image = decode_image(content, limit, how.keep_profile)
    except RejectedImageError as error:
        raise _with_limit(error, upscaler.scale, how) from None
    del content
    notes = losses(image, suffix)
    if count > 1:
        notes.append(f"is an animation of {count} frames, of which {suffix} holds the first")
    enlarged = enlarge_image(upscaler, image, how.outscale, progress)
    with storage.create(target) as part:
        with part.open("w+b") as file:
            write_image(enlarged, file, suffix, how.quality)
        return Written(*enlarged.size, 1, part.stat().st_size, tuple(notes))


def _write_frames(
    upscaler: Upscaler, animation: Animation, target: str, suffix: str, how: Enlargement, progress: bool
) -> Written:
    frames: list[Frame] = []
    shown = terminal.stage("upscale", total=animation.count, unit="frames") if progress else nullcontext()
    with shown as stage:
        for frame in animation.frames:
            frames.append(Frame(enlarge_image(upscaler, frame.image, how.outscale), frame.duration))
            if stage:
                stage.update(len(frames))
    with storage.create(target) as part:
        with part.open("w+b") as file:
            write_animation(frames, animation.plays, file, suffix, how.quality)
        return Written(*frames[0].image.size, len(frames), part.stat().st_size, ())


def _with_limit(error: RejectedImageError, scale: int, how: Enlargement) -> RejectedImageError:
    """Add the limit of the command to a rejection because of the size."""
    rejection = error.rejection
    if rejection.kind is not RejectionKind.TOO_LARGE:
        return error
    most = f"{how.max_megapixels:g} megapixels after upscaling x{max(scale, how.outscale or 0):g} (--max-megapixels)"
    return RejectedImageError(rejection.kind, f"{rejection.detail}, expected an image of at most {most}")
