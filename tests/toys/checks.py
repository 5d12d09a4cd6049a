"""Checks of a training with all three: exact resume, equal ranks, and a whole training."""

import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from pipeline.data import patchset
from pipeline.data.reader import Batch
from pipeline.networks.weights import load_network
from pipeline.settings import Config, UserError, with_values
from pipeline.settings.command_line import parse
from pipeline.training.learner import Learner
from pipeline.training.ranks import Ranks
from pipeline.training.worker import Worker
from tests.toys.network import Toy

CPU = torch.device("cpu")


def samples(step: int, part: slice) -> Batch:
    rng = np.random.default_rng(step)
    lr, hr = (rng.integers(0, 256, (6, side, side, 3), np.uint8) for side in (8, 32))
    return Batch(torch.from_numpy(lr[part]), torch.from_numpy(hr[part]), torch.zeros(6, dtype=torch.int64)[part])


def make_steps(learner: Learner, first: int, last: int) -> None:
    for step in range(first, last):
        learner.step(step, [samples(step, slice(0, 2)), samples(step, slice(2, 6))], 2)


def check_settings(config: Config) -> None:
    other = with_values(config, {"model.name": "srresnet", "model.blocks": 3})
    assert other.model.model_dump()["blocks"] == 3
    assert with_values(other, {"model.name": "toy"}).model.model_dump()["width"] == 4
    for option, message in {
        "model.blocks=2": "unknown key model.blocks",
        "model.width=few": "model.width is 'few'",
    }.items():
        with pytest.raises(UserError, match=message):
            parse(["model.name=toy", option], "train", "")


def check_exact_resume(config: Config) -> None:
    straight, first, second = (Learner(config, 4, Ranks(CPU), "fp32") for _ in range(3))
    make_steps(straight, 0, 4)
    make_steps(first, 0, 2)
    second.load(first.save(), first.skips)
    make_steps(second, 2, 4)
    assert second.save() == straight.save(), "2 + 2 steps differ from 4"


def check_ranks(rank: int, config: Config, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    learner = Learner(config, 4, Ranks(CPU, rank, 2), "fp32")
    for step in range(4):
        learner.step(step, [samples(step, slice(3 * rank, 3 * rank + 3))], 1)
    files = learner.save()
    ranks = learner.ranks.gather({name: files[name] for name in ("model.safetensors", "ema.safetensors")})
    assert ranks[0] == ranks[1], "ranks have different weights"
    dist.destroy_process_group()


def main() -> None:
    url, folder, *options = sys.argv[1:]
    config = parse(options, "train", "")
    check_settings(config)
    check_exact_resume(config)
    spawn(check_ranks, (config, folder), nprocs=2)
    Worker(config, patchset.load(url), folder, Ranks(CPU)).run()
    net = load_network(f"{folder}/model.safetensors")
    assert isinstance(net, Toy)
    print(f"{type(net).__name__} x{net.scale} with {net.first.out_channels} channels")
