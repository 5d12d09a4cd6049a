"""Compare the costs of repeated refinement with those of the network that it starts from.

The network is that of configs/flow.yaml: 10 blocks of 64 channels on a full-size SRResNet x4 without BatchNorm. Two
ratios are printed. A training step has 8 patches of 96x96 and is compared with a supervised step of the base; the
frozen base computes its part in it. An image of 128x128 LR pixels is drawn in five steps and in one, and the time of
four further steps is compared with four times that of the base's image. All measurements take turns, because a busy
machine then disturbs them alike, and medians are compared.

    python -m benchmarks.refinement [--rounds N]
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measuring import Result, medians, parser_of, print_results, print_times, random_batch, time_in_turns
from pipeline.networks.engine import Engine
from pipeline.networks.weights import build_network, to_safetensors
from pipeline.settings.command_line import parse
from pipeline.training.learner import Learner
from pipeline.training.precision import choose_precision
from pipeline.training.ranks import Ranks
from sr_model.networks.sampling import Sampling

BATCH = 8
CPU = torch.device("cpu")
_FURTHER = 4
"""Further steps, over which the time of one is averaged."""


def main() -> None:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=8, help="timed rounds (%(default)s)")
    arguments = parser.parse_args()
    shared = [f"train.global_batch={BATCH}"]
    supervised = parse([*shared, "model.batch_norm=false"], "train", "")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "base.safetensors"
        base = build_network(4, supervised.model, 0).eval()
        file.write_bytes(to_safetensors(base, 4))
        refined = ["--config=configs/flow.yaml", f"train.init_from={file}"]
        flow = parse([*shared, *refined], "train", "")
        precision = choose_precision(flow.train.precision, CPU)
        regression, refinement = (Learner(config, 10**6, Ranks(CPU), precision) for config in (supervised, flow))
    batch = random_batch(BATCH)
    lr = (torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 255).byte()
    engines = {"base": Engine(base, "fp32")}
    for steps in (1, 1 + _FURTHER):
        refinement.ema.sampling = Sampling(steps)
        engines[f"{steps} steps"] = Engine(refinement.ema, "fp32")
    times = time_in_turns(
        {
            "supervised": lambda: regression.step(0, [batch]),
            "refinement": lambda: refinement.step(0, [batch]),
            **{name: partial(draw, engine, lr) for name, engine in engines.items()},
        },
        arguments.rounds,
        warm_up=1,
    )
    print_times(times)
    median = medians(times)
    further = (median[f"{1 + _FURTHER} steps"] - median["1 steps"]) / _FURTHER
    print(f"training computed in {precision}, images in fp32")
    unit = "time of a training step / that of a supervised step of the base"
    training = Result(
        "refinement_training_step", round(median["refinement"] / median["supervised"], 3), unit, 1.0, "lower"
    )
    unit = "time of a further step of drawing / that of the base's image"
    drawing = Result("refinement_further_step", round(further / median["base"], 3), unit, 0.6, "lower")
    print_results([training, drawing])


def draw(engine: Engine, lr: Tensor) -> None:
    """Compute an image, (1, 3, h, w) uint8."""
    for _ in engine.run(lr, 255):
        pass


if __name__ == "__main__":
    main()
