"""Upscale a picture with a trained network: `python -m pipeline.upscale photo.jpg out.png`.

The networks that come with the package are `pipeline.records.SHIPPED`; the best of them is taken unless one is named.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from pipeline import records
from pipeline.config import UserError, command
from pipeline.learner import read_weights, to_eight_bit, to_unit
from pipeline.pictures import Pixels, RejectedPictureError, decode_channels
from sr_model import srresnet, tiling
from sr_model.srresnet import SRResNet

TILE = 256
"""LR pixels, side of what is computed at once: about a GB."""

_OPAQUE, _TRANSPARENT = (".jpg", ".jpeg", ".bmp"), (".png", ".webp", ".tif", ".tiff")
_OPTIONS: dict[str, dict[str, Any]] = {".jpg": {"quality": 95}, ".jpeg": {"quality": 95}, ".webp": {"lossless": True}}


@command
def main(argv: Sequence[str]) -> None:
    """Entry point of `python -m pipeline.upscale`."""
    shipped = ", ".join(records.labels(records.SHIPPED)) or "none"
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.upscale",
        description="Upscale a picture. Transparency and grey are kept, colours become sRGB.",
    )
    parser.add_argument("picture", type=Path, help="PNG, JPEG, WebP, TIFF or BMP")
    parser.add_argument("out", type=Path, help=f"the upscaled picture, ending in {', '.join(_TRANSPARENT + _OPAQUE)}")
    parser.add_argument(
        "--model",
        help=f"a network that comes with the package ({shipped}), or a .safetensors file of a training; the best of "
        "those where not given",
    )
    parser.add_argument(
        "--max-megapixels", type=float, default=400, help="of the upscaled picture; a larger one is refused (400)"
    )
    options = parser.parse_args(argv)
    net = load(options.model or records.best(records.SHIPPED))
    content = _read(options.picture)
    _check_target(options.picture, options.out)
    try:
        picture, alpha = decode_channels(content, int(options.max_megapixels * 1e6) // net.scale**2)
    except RejectedPictureError as error:
        raise UserError(
            f"{options.picture} {error}, expected a picture that at x{net.scale} has no more than "
            f"{options.max_megapixels:g} megapixels (--max-megapixels)"
        ) from None
    if alpha is not None and options.out.suffix.lower() in _OPAQUE:
        raise UserError(
            f"{options.picture} is transparent, which {options.out.suffix} cannot hold: expected a name ending in "
            f"{', '.join(_TRANSPARENT)}"
        )
    upscaled = upscale(net, picture, progress=True)
    if alpha is not None:
        upscaled.putalpha(Image.fromarray(alpha).resize(upscaled.size, Image.Resampling.BICUBIC))
    _write(upscaled, options.out)
    print(f"{options.out}: {upscaled.width}x{upscaled.height}")


def load(model: str) -> SRResNet:
    """A network that comes with the package, by its label, or that of a .safetensors file; on the GPU if there is one.

    Raises:
        UserError: if there is none, or it is of another kind.
    """
    url = model
    if not model.endswith(".safetensors"):
        url = records.weights(records.SHIPPED, model)
    try:
        net = srresnet.from_weights(read_weights(url))
    except ValueError as error:
        raise UserError(f"{url} cannot be used: {error}") from None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def upscale(net: SRResNet, picture: Pixels, tile: int = TILE, progress: bool = False) -> Image.Image:
    """Upscale a picture; beside the result, memory depends on the tile alone.

    Args:
        net: in eval mode.
        picture: (h, w, 3) uint8; or (h, w, 1), which is fed as three equal channels and averaged back to one.
        tile: LR pixels, side of what is computed at once.
        progress: whether to show it.

    Returns:
        s times as high and wide, of mode RGB or L.
    """
    height, width, channels = picture.shape
    device = next(net.parameters()).device
    out = Image.new("L" if channels == 1 else "RGB", (width * net.scale, height * net.scale))

    def read(rows: slice, columns: slice) -> torch.Tensor:
        part = np.repeat(picture[rows, columns], 3 // channels, axis=2)
        return to_unit(part[None], device)

    count = -(-height // tile) * -(-width // tile)
    parts = tiling.tiles(net, height, width, read, tile)
    for top, left, sr in tqdm(parts, total=count, unit="tile", disable=None if progress else True):
        part = to_eight_bit(sr[0].mean(dim=0, keepdim=True) if channels == 1 else sr[0])
        out.paste(Image.fromarray(part[:, :, 0] if channels == 1 else part), (left, top))
    return out


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None


def _check_target(picture: Path, out: Path) -> None:
    suffixes = _TRANSPARENT + _OPAQUE
    if out.suffix.lower() not in suffixes:
        raise UserError(f"{out} is no name of a picture, expected one ending in {', '.join(suffixes)}")
    if out.exists() and out.samefile(picture):
        raise UserError(f"{out} is the picture itself, expected another name for the upscaled one")
    if not out.absolute().parent.is_dir():
        raise UserError(f"{out} cannot be written: {out.absolute().parent} is no folder")


def _write(picture: Image.Image, out: Path) -> None:
    """Whole or not at all."""
    suffix = out.suffix.lower()
    sink, part = tempfile.mkstemp(dir=out.absolute().parent, suffix=suffix)
    try:
        with io.FileIO(sink, "w") as file:
            picture.save(file, Image.registered_extensions()[suffix], **_OPTIONS.get(suffix, {}))
        mask = os.umask(0)
        os.umask(mask)
        Path(part).chmod(0o666 & ~mask)
        Path(part).replace(out)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


if __name__ == "__main__":
    main()
