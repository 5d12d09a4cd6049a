"""What bf16 costs in quality: held-out PSNR of trainings in bf16 and in fp32, several seeds each.

A network of 8 blocks and 32 channels on built-in photographs. Where the processor has no bf16 instructions, bf16 is
computed by rounding: inputs, weights, biases and results of every convolution, and their gradients, are rounded to bf16
and multiplied in fp32, which is what the instructions do, sums included.
`python benchmarks/precision.py [--steps N] [--seeds N] [--crop N] [--batch N]`
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from pipeline.data import preparation
from pipeline.data.patchset import PatchSet
from pipeline.evaluation import scoring
from pipeline.networks import upscaling
from pipeline.settings import Config
from pipeline.settings.command_line import parse
from pipeline.training.learner import Learner
from pipeline.training.planning import Plan, Rank
from pipeline.training.precision import use_bf16
from pipeline.training.worker import Worker

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor
from train_step import machine

CPU = torch.device("cpu")


def rounded(x: Tensor) -> Tensor:
    """The nearest bf16 value as fp32; the gradient is rounded likewise."""
    return x.bfloat16().float()


def train(config: Config, patch_set: PatchSet, bf16: bool, emulated: bool) -> float:
    """Held-out PSNR on Y of the moving average after training."""
    steps = int(config.train.length.split()[0])
    worker = Worker(config, patch_set, "unused", Rank(CPU))
    learner = Learner(config, steps, CPU, bf16=bf16 and not emulated)
    real = F.conv2d

    def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, *args: object, **kwargs: object) -> Tensor:
        return rounded(real(rounded(x), rounded(weight), None if bias is None else rounded(bias), *args, **kwargs))

    reader = worker._reader(Plan(steps, config.train.global_batch, bf16, False))
    if bf16 and emulated:
        F.conv2d = conv2d  # type: ignore[assignment]
    try:
        for step, batch in enumerate(reader.read(0, steps)):
            learner.step(step, [batch])
    finally:
        F.conv2d = real
    scores = []
    for i in range(len(patch_set.holdout_names)):
        image = patch_set.read_holdout(i)
        scores.append(scoring.score_image(upscaling.upscale_image(learner.ema, image.lr), image.hr, 4).psnr_y)
    return statistics.fmean(scores)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--crop", type=int, default=48)
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    emulated = not use_bf16("auto", CPU)
    print(f"bf16 is {'computed by rounding' if emulated else 'computed by the processor'}")
    results: dict[str, list[float]] = {"fp32": [], "bf16": []}
    with tempfile.TemporaryDirectory() as home:
        for seed in range(args.seeds):
            options = [
                *("--config", "configs/demo.yaml", "--home", home, f"train.length={args.steps} steps"),
                *(f"data.crop={args.crop}", f"train.global_batch={args.batch}", f"train.seed={seed}"),
                *(f"train.micro_batch={args.batch}", "data.hold=stream"),
            ]
            config = parse(options, "train", "")
            patch_set, _ = preparation.prepare(config)
            for name, values in results.items():
                values.append(train(config, patch_set, name == "bf16", emulated))
                print(f"seed {seed}, {name}: {values[-1]:.3f} dB", flush=True)
    for name, values in results.items():
        print(f"{name}: mean {statistics.fmean(values):.3f} dB, {min(values):.3f} to {max(values):.3f}")
    print(
        json.dumps(
            {
                "name": "precision",
                "value": round(abs(statistics.fmean(results["fp32"]) - statistics.fmean(results["bf16"])), 4),
                "unit": f"dB between the mean held-out PSNR of {args.seeds} seeds in fp32 and in bf16"
                + (" (computed by rounding)" if emulated else ""),
                "target": 0.05,
                "better": "lower",
                "machine": machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
