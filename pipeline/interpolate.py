"""Make models between two others: `python -m pipeline.interpolate A B --alpha 0.2 0.5 0.8 -o FOLDER`.

A is usually a model that was trained for PSNR, and B the one that a training with a discriminator made of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pipeline.networks import sources
from pipeline.settings import Config, Evaluate, UserError, resolve
from pipeline.settings.command_line import Parser, command
from pipeline.settings.fields import absolute_path
from pipeline.settings.places import sets_folder
from pipeline.settings.prerequisites import check_prerequisites


@command
def main(argv: Sequence[str]) -> None:
    """Entry point of `python -m pipeline.interpolate`."""
    options = _parser().parse_args(argv)
    if len(set(options.alpha)) > 1 and options.out.endswith(".safetensors"):
        raise UserError(f"{options.out} is one file, expected a folder for {len(set(options.alpha))} models")
    if not options.sets and (options.sets_dir or options.csv or options.squeezenet):
        raise UserError("--sets-dir, --csv and --squeezenet need --sets, expected the sets to score on")
    first, second = (sources.find_model(text) for text in (options.first, options.second))
    evaluate = Evaluate(squeezenet=options.squeezenet)
    if options.sets:
        from pipeline.evaluation import sets  # after the options are read, because imports take time

        places, skipped = sets.find_sets(options.sets, {}, sets_folder(options.sets_dir))
        print(*skipped, sep="\n", end="\n" if skipped else "", flush=True)
        if not places:
            raise UserError("none of the named sets is at hand: expected --sets NAME=FOLDER for at least one of them")
        evaluate = Evaluate(benchmarks=places, squeezenet=options.squeezenet)
    config = resolve(Config(evaluate=evaluate))
    check_prerequisites(config, scores=True)

    from pipeline.networks.interpolation import interpolate  # imports torch

    made = interpolate(first, second, options.alpha, absolute_path(options.out))
    lines = [f"{mixture.file}: {mixture.label}" for mixture in made.mixtures]
    print(*lines, *([made.remark] if made.remark else []), sep="\n", flush=True)
    if options.sets:
        from pipeline.reporting import scoreboard

        ends = [f"A={options.first}", f"B={options.second}"]
        between = [f"{mixture.label}={mixture.file}" for mixture in made.mixtures]
        board = scoreboard.score_models(config, [ends[0], *between, ends[1]], csv=options.csv)
        print("\n".join(["", board.table, "", "written:", *board.files]))


def _parser() -> Parser:
    parser = Parser("interpolate", "Make models between two others, by interpolation of their weights.")
    add = parser.add_argument
    model = "a bundled model, a .safetensors file, the folder of a training or workflow, models:/NAME@ALIAS or runs:/ID"
    add("first", metavar="A", help=model)
    add("second", metavar="B", help="second model, of the same network; ALPHA is its share")
    add("--alpha", type=_share, nargs="+", required=True, metavar="ALPHA", help="shares of B, each from 0 to 1")
    add("-o", "--out", required=True, metavar="OUT", help="a .safetensors file for one alpha, a folder for several")
    add("--sets", nargs="+", metavar="NAME[=PLACE]", help="also score A, B and all models between them on these sets")
    add("--sets-dir", metavar="FOLDER", help="folder in which names of sets without a place are looked up")
    add("--squeezenet", metavar="FILE", help="weights of SqueezeNet 1.1, to also measure its perceptual distance")
    add("--csv", metavar="FILE", help="also write the table of scores as CSV to this file")
    return parser


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


if __name__ == "__main__":
    main()
