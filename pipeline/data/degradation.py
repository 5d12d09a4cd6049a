"""Degrade images: blur, bicubic reduction, noise and JPEG, with the strengths that the settings give or that are drawn.

A draw depends on the seed, on the content of the image and, for a tile, on its place. So it is the same on each run and
on each machine.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import torch
from PIL import Image

from pipeline.data.images import decode
from pipeline.settings import Degradation
from sr_model.degrade import add_noise, blur, downscale
from sr_model.pixels import Pixels

_BLOCK = 16
"""Side in pixels of the blocks that JPEG compresses with halved colours; parts of an image keep to their grid."""


def degrade(hr: Pixels, scale: int, settings: Degradation, content_hash: str) -> Pixels:
    """Return the LR image (H/scale, W/scale, C) of a whole image (H, W, C), uint8 with 1 or 3 channels.

    Args:
        hr: its sides are multiples of the scale.
        scale: HR pixels per LR pixel along an axis.
        settings: what is applied, and how strongly; ranges are drawn once for the image.
        content_hash: identifies the content of the image.
    """
    drawn = settings.drawn(content_hash)
    return spoil(_reduce(hr, scale, drawn), drawn, content_hash)


def spoil(lr: Pixels, settings: Degradation, key: str) -> Pixels:
    """Return an LR image (h, w, C) with noise and JPEG's artefacts, each if the settings, without ranges, have it.

    Args:
        lr: uint8 with 1 or 3 channels.
        settings: what is applied, and how strongly.
        key: with the seed, it determines the noise.
    """
    assert not isinstance(settings.noise, tuple)
    if settings.noise:
        lr = add_noise(as_tensor(lr), settings.noise, f"{settings.seed} {key}".encode()).numpy()
    if settings.jpeg:
        sink = io.BytesIO()
        Image.fromarray(lr[:, :, 0] if lr.shape[2] == 1 else lr).save(sink, "JPEG", quality=settings.jpeg)
        lr = decode(sink.getvalue(), lr.shape[0] * lr.shape[1], as_stored=True)
    return lr


def tile_cutter(
    hr: Pixels, scale: int, tile: int, settings: Degradation, content_hash: str
) -> Callable[[int, int], Pixels]:
    """Return a function that returns the LR version of the tile at (y, x), in HR pixels.

    Blur is that of the image. If noise or JPEG has a range, or a share of the tiles stays clean, each tile has draws of
    its own; they are applied to the tile with its surroundings, so that it has no borders of its own.

    Args:
        hr: (H, W, 3) uint8; its sides are multiples of the scale.
        scale: HR pixels per LR pixel along an axis.
        tile: side of a tile in HR pixels.
        settings: what is applied, and how strongly.
        content_hash: identifies the content of the image.
    """
    side = tile // scale
    if not settings.varies_by_tile:
        whole = degrade(hr, scale, settings, content_hash)
        return lambda y, x: whole[y // scale : y // scale + side, x // scale : x // scale + side]
    blurred = settings.model_copy(update={"clean": 0.0}).drawn(content_hash)
    reduced = _reduce(hr, scale, blurred)
    clean = _reduce(hr, scale, settings.cleaned()) if settings.clean and blurred.blur else reduced

    def cut(y: int, x: int) -> Pixels:
        key = f"{content_hash} {y} {x}"
        drawn = settings.drawn(key)
        top, left = y // scale, x // scale
        first, above = (max(start // _BLOCK - 1, 0) * _BLOCK for start in (left, top))
        last, below = ((-(-(start + side) // _BLOCK) + 1) * _BLOCK for start in (left, top))
        source = clean if drawn == settings.cleaned() else reduced
        part = spoil(source[above:below, first:last], drawn, key)
        return part[top - above :, left - first :][:side, :side]

    return cut


def as_tensor(image: Pixels) -> torch.Tensor:
    """Return a tensor that shares an image's memory; do not write to it, because decoded images are read-only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(image)


def _reduce(hr: Pixels, scale: int, settings: Degradation) -> Pixels:
    """Blur an image, if that is configured, and reduce it with MATLAB's bicubic."""
    x = as_tensor(hr).permute(2, 0, 1)
    assert not isinstance(settings.blur, tuple)
    if settings.blur:
        x = blur(x, settings.blur)
    lr: Pixels = downscale(x, scale, settings.bicubic).permute(1, 2, 0).numpy()
    return lr
