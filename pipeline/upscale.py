"""Upscale an image with a trained network: `python -m pipeline.upscale photo.jpg out.png`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from pipeline.networks import bundled
from pipeline.settings.command_line import command
from pipeline.upscaling import files


@command
def main(argv: Sequence[str]) -> None:
    """Entry point of `python -m pipeline.upscale`."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.upscale",
        description="Upscale an image. Grey and transparency are kept; colours are converted to sRGB.",
    )
    parser.add_argument("image", type=Path, help="the image: PNG, JPEG, WebP, TIFF or BMP")
    formats = ", ".join(files.TRANSPARENT + files.OPAQUE)
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
    options = parser.parse_args(argv)
    width, height = files.upscale_file(files.load(options.model), options.image, options.out, options.max_megapixels)
    print(f"{options.out}: {width}x{height}")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


if __name__ == "__main__":
    main()
