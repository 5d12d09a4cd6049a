"""Upscale a picture with a trained network: `python -m pipeline.upscale photo.jpg out.png`.

The networks that come with the package are `pipeline.records.SHIPPED`; the best of them is taken unless one is named.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pipeline import records, storage
from pipeline.commandline import command
from pipeline.config import UserError
from pipeline.learner import read_weights
from pipeline.pictures import RejectedPictureError, decode_channels
from pipeline.scoring import upscale_picture
from sr_model import srresnet
from sr_model.srresnet import SRResNet

_OPAQUE, _TRANSPARENT = (".jpg", ".jpeg", ".bmp"), (".png", ".webp", ".tif", ".tiff")
_LONGEST = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}
"""Pixels, the longest side that a format holds."""
_OPTIONS: dict[str, dict[str, Any]] = {".jpg": {"quality": 95}, ".jpeg": {"quality": 95}, ".webp": {"lossless": True}}


@command
def main(argv: Sequence[str]) -> None:
    """Entry point of `python -m pipeline.upscale`."""
    shipped = ", ".join(records.names(records.SHIPPED)) or "none"
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
        "--max-megapixels", type=_positive, default=400.0, help="of the upscaled picture; a larger one is refused (400)"
    )
    options = parser.parse_args(argv)
    net = load(options.model or records.best(records.SHIPPED))
    content = _read(options.picture)
    _check_target(options.picture, options.out)
    try:
        picture, alpha = decode_channels(content, int(options.max_megapixels * 1e6) // net.scale**2)
    except RejectedPictureError as error:
        limit = f"{options.max_megapixels:g} megapixels after enlarging x{net.scale} (--max-megapixels)"
        raise UserError(f"{options.picture} {error}, expected a picture of at most {limit}") from None
    suffix = options.out.suffix.lower()
    if alpha is not None and suffix in _OPAQUE:
        if alpha.min() < 255:
            raise UserError(
                f"{options.picture} is transparent, which {suffix} cannot hold: expected a name ending in "
                f"{', '.join(_TRANSPARENT)}"
            )
        alpha = None
    side = max(picture.shape[:2]) * net.scale
    if side > _LONGEST.get(suffix, side):
        raise UserError(f"{options.out} would have a side of {side} pixels, more than {suffix} holds: expected .png")
    sr = upscale_picture(net, picture, progress=True)
    upscaled = Image.fromarray(sr[:, :, 0] if sr.shape[2] == 1 else sr)
    if alpha is not None:
        upscaled.putalpha(Image.fromarray(alpha).resize(upscaled.size, Image.Resampling.BICUBIC))
    with storage.create(str(options.out.absolute())) as part:
        upscaled.save(part, Image.registered_extensions()[suffix], **_OPTIONS.get(suffix, {}))
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


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None


def _check_target(picture: Path, out: Path) -> None:
    suffixes = _TRANSPARENT + _OPAQUE
    if "::" in str(out):
        raise UserError(f"{out} holds '::', which chains file systems: expected another name")
    if out.suffix.lower() not in suffixes:
        raise UserError(f"{out} is no name of a picture, expected one ending in {', '.join(suffixes)}")
    if out.exists() and out.samefile(picture):
        raise UserError(f"{out} is the picture itself, expected another name for the upscaled one")
    folder = out.absolute().parent
    if not folder.is_dir() or out.is_dir():
        raise UserError(
            f"{out} cannot be written: {out if out.is_dir() else folder} is {'a' if out.is_dir() else 'no'} folder"
        )
    if not os.access(folder, os.W_OK):
        raise UserError(f"{out} cannot be written: no permission to write into {folder}")


if __name__ == "__main__":
    main()
