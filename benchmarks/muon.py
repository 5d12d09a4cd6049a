"""Time of an optimizer step for SRResNet's hidden convolutions: the project's Muon, torch's, and Adam.

`torch.optim.Muon` takes matrices only, so it is given the same weights as (out, in*9). Optimizers take turns; medians
are compared. `python benchmarks/muon.py [--rounds N]`
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from pipeline.networks.weights import build_network
from pipeline.settings import Model
from sr_model.muon import Muon

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor
from train_step import machine


def main() -> None:
    """Time the three and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    hidden = [weight.detach() for weight in build_network(4, Model(batch_norm=False), seed=0).hidden_weights()]
    optimizers = {
        "this project's Muon": Muon(with_gradients(hidden)),
        "torch.optim.Muon": torch.optim.Muon(with_gradients([weight.flatten(1) for weight in hidden])),
        "torch.optim.Adam, fused": torch.optim.Adam(with_gradients(hidden), fused=True),
    }
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(args.rounds + 1):
        for name, optimizer in optimizers.items():
            start = time.perf_counter()
            optimizer.step()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(seconds[1:]) for name, seconds in times.items()}
    for name, seconds in medians.items():
        print(f"{name:24} {1000 * seconds:8.1f} ms")
    ours, theirs, _ = medians.values()
    figure = {"name": "muon", "value": round(theirs / ours, 1), "unit": "times as fast as torch.optim.Muon"}
    print(json.dumps({**figure, "target": None, "better": "higher", "machine": machine()}))


def with_gradients(weights: list[Tensor]) -> list[Tensor]:
    """Copies of the weights, with gradients of the same size."""
    generator = torch.Generator().manual_seed(0)
    copies = [weight.clone().requires_grad_() for weight in weights]
    for copy in copies:
        copy.grad = torch.randn(copy.shape, generator=generator)
    return copies


if __name__ == "__main__":
    main()
