"""Step time of the pipeline's learner against the loop one writes first: fp32, contiguous, the network as drawn.

Full-size SRResNet x4, batch 16 of 96x96, optimizer included, on all cores of one process; and both against the rate at
which the machine multiplies matrices in the precision that is used. Steps alternate, so that a noisy machine disturbs
all alike; medians are compared. `python benchmarks/train_step.py [--batch-norm] [--rounds N] [--profile]`
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.data.reader import Batch
from pipeline.settings.command_line import parse
from pipeline.training.learner import Learner
from sr_model.srresnet import SRResNet

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FLOPS = 122.7e9
"""Of a step of the plain network: forward and backward pass of 16 patches, whatever form is executed."""


class AsDrawn(SRResNet):
    """The same network in the form of the paper's figure: the 9x9 output convolution on the full-size map."""

    def forward(self, lr: Tensor) -> Tensor:
        """As `SRResNet.forward`."""
        x = self.act_first(self.conv_first(lr))
        x = x + self.bn_body(self.conv_body(self.body(x)))
        for stage in self.upsample:
            x = stage.act(F.pixel_shuffle(stage.conv(x), stage.factor))
        y: Tensor = self.conv_last(x)
        return y


def machine() -> str:
    """What decides the figure."""
    features = torch.cpu.get_capabilities()
    bf16 = [name for name in ("avx512_bf16", "amx_bf16") if features.get(name)]
    kind = ", ".join(bf16) or "no bf16 instructions"
    return f"{features.get('cpu_name', platform.processor())}, {torch.get_num_threads()} threads, {kind}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-norm", action="store_true")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--profile", action="store_true", help="also print where the time of a step goes")
    args = parser.parse_args()
    cpu = torch.device("cpu")
    rng = np.random.default_rng(0)
    lr = rng.integers(0, 256, (16, 24, 24, 3), np.uint8)
    hr = rng.integers(0, 256, (16, 96, 96, 3), np.uint8)

    naive = AsDrawn(batch_norm=args.batch_norm)
    optimizer = torch.optim.Adam(naive.parameters(), 1e-4)
    lr_float = torch.from_numpy(lr).permute(0, 3, 1, 2).float().div(255).contiguous()
    hr_float = torch.from_numpy(hr).permute(0, 3, 1, 2).float().div(255).contiguous()

    def naive_step() -> None:
        optimizer.zero_grad()
        F.mse_loss(naive(lr_float), hr_float).backward()
        optimizer.step()

    options = [f"model.batch_norm={args.batch_norm}"]
    batch = Batch(lr, hr, np.zeros(16, np.uint8))
    halves = [Batch(*(part[:8] for part in batch)), Batch(*(part[8:] for part in batch))]
    plain, split, compiled = (
        Learner(parse(options, "train", ""), 10**6, cpu, compiled=c) for c in (False, False, True)
    )
    loops: dict[str, Callable[[], object]] = {
        "naive": naive_step,
        "pipeline": lambda: plain.step(0, [batch]),
        "pipeline, micro-batches of 8": lambda: split.step(0, halves, 2),
        "pipeline, compiled": lambda: compiled.step(0, [batch]),
    }
    kind = torch.bfloat16 if plain.bf16 else torch.float32
    for n in (1024, 2048, 4096):
        a, b = torch.randn(n, n).to(kind), torch.randn(n, n).to(kind)
        loops[f"product of {n}"] = functools.partial(torch.mm, a, b)
    times: dict[str, list[float]] = {name: [] for name in loops}
    for round_ in range(args.rounds + 2):
        for name, step in loops.items():
            start = time.perf_counter()
            step()
            if round_ >= 2:  # the first two warm up
                times[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        print(f"{name:30} median {median[name]:.3f} s, {min(values):.3f} to {max(values):.3f}")
    best = max(2 * n**3 / median[f"product of {n}"] for n in (1024, 2048, 4096))
    precision = "bf16" if plain.bf16 else "fp32"
    print(f"computed in {precision}; best matrix rate {best / 1e9:.0f} GFLOP/s")
    if args.profile:
        with torch.profiler.profile() as profiler:
            plain.step(0, [batch])
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40))
    suffix = "_batch_norm" if args.batch_norm else ""
    of_rate = f"of the machine's {precision} matrix rate (the plain network's {FLOPS / 1e9:.1f} GFLOP a step)"
    figures = [
        (f"train_step_rate{suffix}", FLOPS / median["pipeline"] / best, of_rate, 0.75),
        (f"train_step_rate_compiled{suffix}", FLOPS / median["pipeline, compiled"] / best, of_rate, 0.85),
        (f"train_step{suffix}", median["naive"] / median["pipeline"], "naive step time / pipeline step time", 3),
    ]
    print(
        json.dumps(
            [
                {
                    "name": name,
                    "value": round(value, 3),
                    "unit": unit,
                    "target": target,
                    "better": "higher",
                    "machine": machine(),
                }
                for name, value, unit, target in figures
            ]
        )
    )


if __name__ == "__main__":
    main()
