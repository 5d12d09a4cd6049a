"""Upscale images with a trained network: `python -m pipeline.upscale photo.jpg out.png`."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence

from pipeline.data.left_out import count
from pipeline.networks import sources
from pipeline.networks.bundled import DEFAULT
from pipeline.settings import Config, UserError, resolve
from pipeline.settings.command_line import Parser, command, positive_number
from pipeline.settings.sampling import chosen_sampling, seed_number, step_count
from pipeline.upscaling import batch
from pipeline.upscaling.formats import FORMATS, check_format
from pipeline.upscaling.options import Enlargement, Model
from pipeline.upscaling.plan import Naming, make_plan
from sr_model.networks.sampling import SOLVERS

_BICUBIC_SCALE = 4


@command
def main(argv: Sequence[str]) -> None:
    """Entry point of `python -m pipeline.upscale`."""
    options = _parser().parse_args(argv)
    if options.out is None and len(options.paths) < 2:
        raise UserError("the output is missing, expected IN... OUT, or IN... -o OUT")
    out = options.out or options.paths.pop()
    with tempfile.TemporaryDirectory(prefix="sr-upscale-") as scratch:
        cache = resolve(Config()).cache or scratch
        plan = make_plan(options.paths, out, Naming(options.suffix, options.format), cache, scratch)
        if options.quality and not any(FORMATS[job.suffix].lossy for job in plan.jobs):
            lossy = ", ".join(suffix for suffix, form in FORMATS.items() if form.lossy)
            raise UserError(f"--quality changes nothing for {plan.jobs[0].suffix}, expected files ending in {lossy}")
        whole = options.outscale and options.outscale.is_integer()  # bicubic interpolation has any scale
        scale = max(int(options.outscale), 2) if whole else _BICUBIC_SCALE
        model = Model(
            sources.find_model(options.model),
            scale,
            options.device,
            options.precision,
            options.tile,
            chosen_sampling(options.steps, options.seed, options.solver),
            options.consistent,
        )
        how = Enlargement(options.outscale, options.quality, options.keep_profile, options.max_megapixels)
        for line in plan.summaries:
            print(line, flush=True)
        done = batch.upscale_all(plan, model, how)
    if len(plan.jobs) > 1:
        skipped = f", {done.skipped} done earlier" if done.skipped else ""
        failed = f", {done.failed} failed" if done.failed else ""
        print(f"{plan.folder}: {count(done.written, 'image')} upscaled{skipped}{failed}")
    if done.failed:
        raise SystemExit(1)


def _parser() -> Parser:
    parser = Parser("upscale", "Upscale images. Grey, 16 bits, transparency and metadata are kept.")
    add = parser.add_argument
    inputs = "images, folders, patterns or archives, at paths or URLs; the last one is OUT unless -o names it"
    add("paths", nargs="+", metavar="IN", help=inputs)
    add("-o", "--out", metavar="OUT", help=f"a file that ends in {', '.join(FORMATS)}; or a folder or s3:// prefix")
    add("--model", default=DEFAULT, help=f"{sources.EXPECTED} (default: %(default)s)")
    add(
        "--outscale",
        type=positive_number,
        metavar="FACTOR",
        help="resize the result to this factor (default: the model's)",
    )
    add("--suffix", type=_suffix, default="", help="text to add to the names of files in a folder, such as _x4")
    add("--format", type=_ending, metavar="ENDING", help="ending of files in a folder (default: that of each image)")
    quality = "quality of JPEG (default 95), AVIF (default 90) or WebP (default lossless) files"
    add("--quality", type=_integer(1, 100), metavar="1-100", help=quality)
    add("--keep-profile", action="store_true", help="keep colours and ICC profile instead of converting to sRGB")
    limit = "refuse to write a larger image (default: %(default)g)"
    add("--max-megapixels", type=positive_number, default=400.0, metavar="N", help=limit)
    add("--device", choices=["cpu", "cuda"], help="device to compute on (default: cuda if there is a GPU, else cpu)")
    precision = "number format of the computation (default: the fastest that changes no 8-bit image visibly)"
    add("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto", help=precision)
    add("--steps", type=step_count, metavar="K", help="number of steps of a model that refines (default: its own)")
    add("--seed", type=seed_number, metavar="N", help="seed of the noise that such a model starts from (default: 0)")
    add("--solver", choices=SOLVERS, help="solver of such a model; heun computes it twice per step (default: euler)")
    consistent = "correct the result so that, reduced with bicubic interpolation, it is nearly the input"
    add("--consistent", action="store_true", help=consistent)
    tile = "side of a tile in pixels of the input, or auto to choose it by the free memory (default: auto)"
    add("--tile", type=_tile, metavar="N", help=tile)
    return parser


def _integer(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
        return int(text)

    return read


def _tile(text: str) -> int | None:
    return None if text == "auto" else _integer(16, 8192)(text)


def _suffix(text: str) -> str:
    if "/" in text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} has a slash, expected a part of a file's name")
    return text


def _ending(text: str) -> str:
    ending = f".{text.lower().lstrip('.')}"
    if ending not in FORMATS:
        raise argparse.ArgumentTypeError(f"{text!r} is no format, expected {', '.join(FORMATS)}")
    check_format(ending)
    return ending


if __name__ == "__main__":
    main()
