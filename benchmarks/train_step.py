"""Step time of the pipeline's learner against the loop one writes first: fp32, contiguous, the network as drawn.

Full-size SRResNet x4, batch 16 of 96x96, optimizer included, both on all cores of one process. Steps alternate, so that
a noisy machine disturbs both alike; medians are compared. `python benchmarks/train_step.py [--batch-norm] [--rounds N]`
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config import parse
from pipeline.learner import Learner
from sr_model.srresnet import SRResNet


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

    learner = Learner(parse([f"model.batch_norm={args.batch_norm}"], "train", ""), 10**6, cpu)
    done = 0

    def pipeline_step(micro_sizes: list[int]) -> None:
        nonlocal done
        learner.step(done, lr, hr, micro_sizes)
        done += 1

    loops = {
        "naive": naive_step,
        "pipeline": lambda: pipeline_step([16]),
        "pipeline, micro-batches of 8": lambda: pipeline_step([8, 8]),
    }
    times: dict[str, list[float]] = {name: [] for name in loops}
    for round_ in range(args.rounds + 2):
        for name, step in loops.items():
            start = time.perf_counter()
            step()
            if round_ >= 2:  # the first two warm up
                times[name].append(time.perf_counter() - start)
    for name, values in times.items():
        print(f"{name:30} median {statistics.median(values):.3f} s, {min(values):.3f} to {max(values):.3f}")
    print(f"computed in {'bf16' if learner.bf16 else 'fp32'}")
    ratio = statistics.median(times["naive"]) / statistics.median(times["pipeline"])
    print(
        json.dumps(
            {
                "name": "train_step" + ("_batch_norm" if args.batch_norm else ""),
                "value": round(ratio, 2),
                "unit": "naive step time / pipeline step time",
                "target": 2.2,
                "better": "higher",
                "machine": machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
