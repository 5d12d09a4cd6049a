"""Parameters with a learning rate of their own."""

from collections.abc import Iterator

import numpy as np
import torch

from pipeline.data.reader import Batch
from pipeline.settings import Config
from pipeline.settings.command_line import parse
from pipeline.training.checkpoints import SkipCounts
from pipeline.training.learner import Learner
from pipeline.training.methods.method import RATE_FACTOR
from pipeline.training.ranks import Ranks
from pipeline.training.schedule import learning_rate

SRCNN = ("model.name=srcnn", "model.channels=8", "train.precision=fp32", "train.global_batch=4", "train.warmup=0")


def config(*options: str) -> Config:
    return parse([*SRCNN, *options], "train", "")


def batches(step: int) -> Iterator[Batch]:
    rng = np.random.default_rng(step)
    lr, hr = (torch.from_numpy(rng.integers(0, 256, (4, side, side, 3), np.uint8)) for side in (8, 32))
    yield Batch(lr, hr, torch.zeros(4, dtype=torch.int64))


def make_learner(settings: Config, steps: int = 0) -> Learner:
    """Make a learner that has made so many of four steps."""
    learner = Learner(settings, 4, Ranks(torch.device("cpu")), "fp32")
    for step in range(steps):
        learner.step(step, batches(step))
    return learner


def test_the_last_layer_of_srcnn_learns_slowly() -> None:
    """The first step of Adam changes each weight with a gradient by the learning rate."""
    settings = config("model.last_rate=0.25")
    learner = make_learner(settings)
    before = {name: value.detach().clone() for name, value in learner.net.named_parameters()}
    learner.step(0, batches(0))
    rate = learning_rate(0, 4, settings.train)
    assert learner.learning_rate == rate
    for name, value in learner.net.named_parameters():
        factor = 0.25 if name.startswith("conv3") else 1
        torch.testing.assert_close((value - before[name]).abs().max().item(), factor * rate, rtol=0.01, atol=0)


def test_a_resumed_training_keeps_the_rates() -> None:
    settings = config()
    straight, first, second = make_learner(settings, 4), make_learner(settings, 2), make_learner(settings)
    second.load(first.save(), SkipCounts())
    for step in (2, 3):
        second.step(step, batches(step))
    for resumed, expected in zip(second.net.parameters(), straight.net.parameters(), strict=True):
        assert torch.equal(resumed, expected)
    factors = [group.get(RATE_FACTOR) for optimizer in second.optimizers for group in optimizer.param_groups]
    assert factors == [None, 0.1]


def test_muon_and_adam_share_the_factor() -> None:
    adam, muon = make_learner(config("train.optimizer=muon"), 1).optimizers
    assert [len(group["params"]) for group in adam.param_groups] == [3, 2]
    assert [group["params"][0].shape for group in muon.param_groups] == [(4, 8, 5, 5)]
    assert muon.param_groups[0]["lr"] == adam.param_groups[0]["lr"] == 10 * adam.param_groups[1]["lr"]


def test_other_networks_have_one_group_as_before() -> None:
    (adam,) = make_learner(
        parse(["model.channels=4", "model.blocks=1", "train.precision=fp32"], "train", "")
    ).optimizers
    assert len(adam.param_groups) == 1
    assert RATE_FACTOR not in adam.param_groups[0]
