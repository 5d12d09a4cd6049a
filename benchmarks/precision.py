"""Compare the held-out PSNR of trainings in bf16 and in fp32, with several seeds each.

The network has 8 blocks and 32 channels and trains on the built-in photographs. A processor without bf16 instructions
computes bf16 by rounding: the inputs, weights, biases and results of every convolution, and their gradients, are
rounded to bf16 and multiplied in fp32. The instructions do the same, including sums in fp32.

    python -m benchmarks.precision [--steps N] [--seeds N] [--crop N] [--batch N]
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measuring import Result, parser_of, print_results
from pipeline.data import preparation
from pipeline.data.patchset import PatchSet
from pipeline.evaluation import scoring
from pipeline.networks.upscaling import upscale_image
from pipeline.settings import Config
from pipeline.settings.command_line import parse
from pipeline.training.learner import Learner
from pipeline.training.precision import Precision, choose_precision
from pipeline.training.ranks import Ranks
from pipeline.training.worker import Worker
from sr_model.networks.super_resolver import SuperResolver

CPU = torch.device("cpu")


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=2000, help="length of each training (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings in each precision (%(default)s)")
    parser.add_argument("--crop", type=int, default=48, help="side of an HR patch in pixels (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="patches per step (%(default)s)")
    arguments = parser.parse_args()
    emulated = choose_precision("auto", CPU) == "fp32"
    print(f"bf16 is computed {'by rounding' if emulated else 'by the processor'}")
    scores: dict[Precision, list[float]] = {"fp32": [], "bf16": []}
    with tempfile.TemporaryDirectory() as home:
        for seed in range(arguments.seeds):
            options = [
                *("--config", "configs/demo.yaml", "--home", home, f"train.length={arguments.steps} steps"),
                *(f"data.crop={arguments.crop}", f"train.global_batch={arguments.batch}", f"train.seed={seed}"),
                *(f"train.micro_batch={arguments.batch}", "data.hold=stream"),
            ]
            config = parse(options, "train", "")
            patch_set, _ = preparation.prepare(config)
            for precision, values in scores.items():
                net = train(config, patch_set, arguments.steps, precision, emulated)
                values.append(held_out_psnr(net, patch_set))
                print(f"seed {seed}, {precision}: {values[-1]:.3f} dB", flush=True)
    for precision, values in scores.items():
        print(f"{precision}: mean {statistics.fmean(values):.3f} dB, {min(values):.3f} to {max(values):.3f}")
    difference = abs(statistics.fmean(scores["fp32"]) - statistics.fmean(scores["bf16"]))
    unit = f"dB between the mean held-out PSNR of {arguments.seeds} seeds in fp32 and in bf16"
    if emulated:
        unit += " (computed by rounding)"
    print_results(Result("precision", round(difference, 4), unit, 0.05, "lower"))


def train(config: Config, patch_set: PatchSet, steps: int, precision: Precision, emulated: bool) -> SuperResolver:
    """Train, and return the moving average.

    Args:
        config: the pipeline's configuration.
        patch_set: the patch set for training.
        steps: number of steps.
        precision: precision of the forward and backward pass.
        emulated: compute bf16 by rounding.
    """
    ranks = Ranks(CPU)
    by_rounding = precision == "bf16" and emulated
    learner = Learner(config, steps, ranks, "fp32" if by_rounding else precision)
    reader = Worker(config, patch_set, "unused", ranks).make_reader(config.train.global_batch)
    with rounded_convolutions() if by_rounding else nullcontext():
        for step, batch in enumerate(reader.read(0, steps)):
            learner.step(step, [batch])
    return learner.ema


@contextmanager
def rounded_convolutions() -> Iterator[None]:
    """Round what all convolutions read and return to bf16; autograd rounds the gradients likewise."""
    exact = F.conv2d

    def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *args: object, **kwargs: object) -> Tensor:
        return _rounded(exact(_rounded(x), _rounded(weight), None if bias is None else _rounded(bias), *args, **kwargs))  # type: ignore[call-overload]

    F.conv2d = conv2d  # type: ignore[assignment]
    try:
        yield
    finally:
        F.conv2d = exact


def _rounded(x: Tensor) -> Tensor:
    return x.bfloat16().float()


def held_out_psnr(net: SuperResolver, patch_set: PatchSet) -> float:
    """Return the mean PSNR on Y over the held-out images, in dB."""
    images = map(patch_set.read_holdout, range(len(patch_set.holdout_names)))
    return statistics.fmean(
        scoring.score_image(upscale_image(net, image.lr), image.hr, patch_set.scale).psnr_y for image in images
    )


if __name__ == "__main__":
    main()
