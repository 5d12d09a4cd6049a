"""Compare the step time of the pipeline's learner with a plain training loop.

The plain loop uses fp32, contiguous tensors and the network as the paper draws it. Both train a full-size SRResNet x4
on 16 patches of 96x96 per step, optimizer included, in one process on all cores. The results also relate the step to
the rate at which the machine multiplies matrices in the same precision. All measurements take turns, because a busy
machine then disturbs them alike, and medians are compared.

    python -m benchmarks.train_step [--batch-norm] [--rounds N] [--profile]
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measuring import Result, medians, parser_of, print_results, print_times, random_batch, time_in_turns
from pipeline.data.reader import Batch
from pipeline.settings.command_line import parse
from pipeline.training.learner import Learner
from pipeline.training.precision import choose_precision
from pipeline.training.ranks import Ranks
from sr_model.networks.srresnet import SRResNet, UpsampleStage
from sr_model.pixels import to_unit

FLOP = 122.7e9
"""Floating-point operations of a step of the plain network: forward and backward pass of 16 patches. The fused form of
the network is related to the same number."""
MATRIX_SIDES = (1024, 2048, 4096)


class SRResNetAsDrawn(SRResNet):
    """The same network in the form of the paper's figure: the 9x9 output convolution on the full-size map."""

    def forward(self, lr: Tensor) -> Tensor:
        """Enlarge (B, 3, h, w) to (B, 3, s*h, s*w), as `SRResNet.forward` does."""
        x = self.act_first(self.conv_first(lr))
        x = x + self.bn_body(self.conv_body(self.body(x)))
        for stage in cast("list[UpsampleStage]", list(self.upsample)):
            x = stage.act(F.pixel_shuffle(stage.conv(x), stage.factor))
        y: Tensor = self.conv_last(x)
        return y


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--batch-norm", action="store_true", help="measure the network with BatchNorm")
    parser.add_argument("--rounds", type=int, default=12, help="timed steps of each loop (%(default)s)")
    parser.add_argument("--profile", action="store_true", help="also print which operations take the time of a step")
    arguments = parser.parse_args()
    config = parse([f"model.batch_norm={arguments.batch_norm}"], "train", "")
    cpu = torch.device("cpu")
    precision = choose_precision(config.train.precision, cpu)
    batch = random_batch(16)
    halves = [Batch(*(part[:8] for part in batch)), Batch(*(part[8:] for part in batch))]
    whole, split, compiled = (Learner(config, 10**6, Ranks(cpu), precision, c) for c in (False, False, True))
    actions: dict[str, Callable[[], object]] = {
        "plain loop": plain_step(SRResNetAsDrawn(batch_norm=arguments.batch_norm), batch),
        "pipeline": lambda: whole.step(0, [batch]),
        "pipeline, micro-batches of 8": lambda: split.step(0, halves, 2),
        "pipeline, compiled": lambda: compiled.step(0, [batch]),
    }
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    for side in MATRIX_SIDES:
        a, b = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
        actions[f"product of {side}x{side}"] = functools.partial(torch.mm, a, b)
    times = time_in_turns(actions, arguments.rounds, warm_up=2)
    print_times(times)
    median = medians(times)
    rate = max(2 * side**3 / median[f"product of {side}x{side}"] for side in MATRIX_SIDES)
    print(f"computed in {precision}; highest matrix rate {rate / 1e9:.0f} GFLOP/s")
    if arguments.profile:
        with torch.profiler.profile() as profiler:
            whole.step(0, [batch])
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40))
    suffix = "_batch_norm" if arguments.batch_norm else ""
    unit = f"share of the machine's {precision} matrix rate (plain network: {FLOP / 1e9:.1f} GFLOP per step)"
    figures = [
        ("train_step_rate", FLOP / median["pipeline"] / rate, unit, 0.75),
        ("train_step_rate_compiled", FLOP / median["pipeline, compiled"] / rate, unit, 0.85),
        ("train_step", median["plain loop"] / median["pipeline"], "plain step time / pipeline step time", 3),
    ]
    print_results([Result(f"{name}{suffix}", round(value, 3), u, t, "higher") for name, value, u, t in figures])


def plain_step(net: SRResNetAsDrawn, batch: Batch) -> Callable[[], None]:
    """Return a function that makes one step of the plain loop on the device of the network."""
    device = next(net.parameters()).device
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)
    lr, hr = (to_unit(part, device).contiguous() for part in (batch.lr, batch.hr))

    def step() -> None:
        optimizer.zero_grad()
        F.mse_loss(net(lr), hr).backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
