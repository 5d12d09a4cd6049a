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
        description="Upscale an image. Transparency and grey are kept, colours become sRGB.",
    )
    parser.add_argument("image", type=Path, help="PNG, JPEG, WebP, TIFF or BMP")
    formats = ", ".join(files.TRANSPARENT + files.OPAQUE)
    parser.add_argument("out", type=Path, help=f"the upscaled image, ending in {formats}")
    parser.add_argument(
        "--model",
        default=bundled.DEFAULT,
        help=f"a bundled model ({', '.join(bundled.names())}) or the .safetensors file of a training; %(default)s by "
        "default",
    )
    parser.add_argument(
        "--max-megapixels",
        type=_positive,
        default=400.0,
        help="size of the upscaled image above which the command refuses it (%(default)g)",
    )
    options = parser.parse_args(argv)
    width, height = files.upscale_file(files.load(options.model), options.image, options.out, options.max_megapixels)
    print(f"{options.out}: {width}x{height}")


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


if __name__ == "__main__":
    main()
