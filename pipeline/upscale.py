"""Upscale an image with a trained network: `python -m pipeline.upscale photo.jpg out.png`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from pipeline import storage
from pipeline.networks import bundled
from pipeline.settings import UserError
from pipeline.settings.command_line import Parser, command
from pipeline.upscaling import targets


@command
def main(argv: Sequence[str]) -> None:
    """Entry point of `python -m pipeline.upscale`."""
    parser = Parser("upscale", "Upscale an image. Grey and transparency are kept; colours are converted to sRGB.")
    parser.add_argument("image", type=Path, help="the image: PNG, JPEG, WebP, TIFF or BMP")
    formats = ", ".join(targets.TRANSPARENT + targets.OPAQUE)
    parser.add_argument("out", type=Path, help=f"the file to write; its name ends in {formats}")
    parser.add_argument(
        "--model",
        default=bundled.DEFAULT,
        help=f"a bundled model ({', '.join(bundled.names())}) or a .safetensors file (default: %(default)s)",
    )
    parser.add_argument(
        "--max-megapixels",
        type=_positive,
        default=400.0,
        help="refuse to write a larger image (default: %(default)g)",
    )
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], help="the device to compute on (default: cuda if there is a GPU, else cpu)"
    )
    options = parser.parse_args(argv)
    if not options.image.is_file():
        reason = "it is not a file" if options.image.exists() else "No such file or directory"
        raise UserError(f"cannot read {options.image}: {reason}; expected an image: PNG, JPEG, WebP, TIFF or BMP")
    targets.check_target(options.image, options.out)
    model = options.model if options.model.endswith(".safetensors") else bundled.weights(options.model)
    if not storage.is_url(model) and not Path(model).exists():
        raise UserError(f"cannot read the weights {model}: there is no such file; expected a .safetensors file")

    from pipeline.upscaling import files  # after the checks, because imports take seconds

    net = files.load(model, options.device)
    width, height = files.upscale_file(net, options.image, options.out, options.max_megapixels)
    print(f"{options.out}: {width}x{height}")


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


if __name__ == "__main__":
    main()
