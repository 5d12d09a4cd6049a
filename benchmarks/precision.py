"""Compare the held-out PSNR of trainings in several precisions, at equal steps and seeds.

The network has 8 blocks and 32 channels and trains on the built-in photographs; with --finetune, the bundled network of
16 blocks and 64 channels goes on training. A processor without instructions for bf16 or fp16 computes them by rounding:
the inputs, weights, biases and results of every convolution, and their gradients, are rounded and multiplied in fp32.
The instructions do the same, including sums in fp32.

    python -m benchmarks.precision [--steps N] [--seeds N] [--crop N] [--batch N] [--finetune] [--only NAME...]
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measuring import Result, parser_of, print_results
from pipeline.data import preparation
from pipeline.data.patchset import PatchSet
from pipeline.evaluation import scoring
from pipeline.networks import bundled
from pipeline.networks.upscaling import upscale_image
from pipeline.settings import Config
from pipeline.settings.command_line import parse
from pipeline.training.learner import Learner
from pipeline.training.methods import supervised
from pipeline.training.precision import Precision, autocast, choose_precision
from pipeline.training.ranks import Ranks
from pipeline.training.worker import Worker
from sr_model.networks.super_resolver import SuperResolver

CPU = torch.device("cpu")

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Variant:
    """A way to compute the convolutions of a training."""

    precision: Precision = "fp32"
    until: float = 1.0
    """Share of the steps after which the rest is computed in fp32."""
    largest_kernel: int = 9
    """Convolutions with larger kernels are computed in fp32."""


VARIANTS = {
    "fp32": Variant(),
    "bf16": Variant("bf16"),
    "fp16": Variant("fp16"),
    "bf16, the last fifth in fp32": Variant("bf16", until=0.8),
    "bf16, first and last layer in fp32": Variant("bf16", largest_kernel=3),
}


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=2000, help="length of each training (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings in each precision (%(default)s)")
    parser.add_argument("--crop", type=int, default=48, help="side of an HR patch in pixels (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="patches per step (%(default)s)")
    parser.add_argument("--finetune", action="store_true", help="go on training the bundled network")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="precisions to compare")
    arguments = parser.parse_args()
    emulated = choose_precision("auto", CPU) == "fp32"
    print(f"bf16 and fp16 are computed {'by rounding' if emulated else 'by the processor'}")
    scores: dict[str, list[float]] = {name: [] for name in arguments.only}
    with tempfile.TemporaryDirectory() as home:
        for seed in range(arguments.seeds):
            options = [
                *("--config", "configs/demo.yaml", "--home", home, f"train.length={arguments.steps} steps"),
                *(f"data.crop={arguments.crop}", f"train.global_batch={arguments.batch}", f"train.seed={seed}"),
                *(f"train.micro_batch={arguments.batch}", "data.hold=stream"),
            ]
            if arguments.finetune:
                options += ["model.channels=64", "model.blocks=16", "train.lr=1e-4", "train.ema_decay=0.98"]
                options += [f"train.init_from={bundled.weights(bundled.DEFAULT)}"]
            config = parse(options, "train", "")
            patch_set, _ = preparation.prepare(config)
            for name, values in scores.items():
                net = train(config, patch_set, arguments.steps, VARIANTS[name], emulated)
                values.append(held_out_psnr(net, patch_set))
                print(f"seed {seed}, {name}: {values[-1]:.3f} dB", flush=True)
    means = {name: statistics.fmean(values) for name, values in scores.items()}
    for name, values in scores.items():
        print(f"{name}: mean {means[name]:.3f} dB, {min(values):.3f} to {max(values):.3f}")
    unit = f"dB of mean held-out PSNR more than in fp32, {arguments.seeds} seeds{' (by rounding)' if emulated else ''}"
    if "fp32" in means:
        print_results(
            [
                Result(f"precision: {name}", round(mean - means["fp32"], 4), unit, -0.05, "higher")
                for name, mean in means.items()
                if name != "fp32"
            ]
        )


def train(config: Config, patch_set: PatchSet, steps: int, variant: Variant, emulated: bool) -> SuperResolver:
    """Train, and return the moving average.

    Args:
        config: the pipeline's configuration.
        patch_set: the patch set for training.
        steps: number of steps.
        variant: how convolutions are computed.
        emulated: compute bf16 and fp16 by rounding.
    """
    ranks = Ranks(CPU)
    learner = Learner(config, steps, ranks, variant.precision)
    reader = Worker(config, patch_set, "unused", ranks).make_reader(config.train.global_batch)
    exact = autocast
    for step, batch in enumerate(reader.read(0, steps)):
        rounded = variant.precision in DTYPES and step < variant.until * steps
        by_rounding = rounded and (emulated or variant.largest_kernel < 9)
        supervised.autocast = exact if rounded and not by_rounding else no_autocast  # type: ignore[attr-defined, assignment]
        with rounded_convolutions(variant) if by_rounding else nullcontext():
            learner.step(step, [batch])
    supervised.autocast = exact  # type: ignore[attr-defined]
    return learner.ema


def no_autocast(*_: object) -> nullcontext[None]:
    """Compute in fp32."""
    return nullcontext()


@contextmanager
def rounded_convolutions(variant: Variant) -> Iterator[None]:
    """Round what the convolutions of a variant read and return; autograd rounds the gradients likewise."""
    exact, dtype = F.conv2d, DTYPES[variant.precision]

    def rounded(x: Tensor) -> Tensor:
        return x.to(dtype).float()

    def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *args: object, **kwargs: object) -> Tensor:
        # The last layer is computed with a kernel of 5; see `fuse_conv_after_shuffle`.
        if weight.shape[-1] > variant.largest_kernel:
            return exact(x, weight, bias, *args, **kwargs)  # type: ignore[call-overload, no-any-return]
        return rounded(exact(rounded(x), rounded(weight), None if bias is None else rounded(bias), *args, **kwargs))  # type: ignore[call-overload]

    F.conv2d = conv2d  # type: ignore[assignment]
    try:
        yield
    finally:
        F.conv2d = exact


def held_out_psnr(net: SuperResolver, patch_set: PatchSet) -> float:
    """Return the mean PSNR on Y over the held-out images, in dB."""
    images = map(patch_set.read_holdout, range(patch_set.held_out))
    return statistics.fmean(
        scoring.score_image(upscale_image(net, image.lr), image.hr, patch_set.scale).psnr_y for image in images
    )


if __name__ == "__main__":
    main()
