"""Adversarial training with the engine: the promises of ordinary training hold for two networks."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pipeline.settings import Config, UserError
from pipeline.settings.command_line import parse
from pipeline.training.checkpoints import SkipCounts
from pipeline.training.learner import Learner, StepResult
from pipeline.training.methods import METHODS, find_method
from pipeline.training.methods.gan_checks import remark
from pipeline.training.precision import Precision
from pipeline.training.ranks import Ranks
from pipeline.training.runs import identify
from tests.commands import run_ranks
from tests.pipeline.training.test_learner import batch, split

CPU = torch.device("cpu")
SMALL = (
    "model.channels=8", "model.blocks=1", "model.batch_norm=false", "train.global_batch=6", "data.crop=32",
    "train.method=gan", "train.gan.from_scratch=true", "train.gan.patch.channels=4", "train.gan.warmup_steps=1",
    "train.loss=l1=1", "train.gan.weight=0.1", "train.gan.r1=0.1", "train.gan.r2=0.1", "train.gan.penalty_every=2",
    "train.gan.artefacts=1",
)  # fmt: skip

PAPER = ("train.gan.discriminator=paper", "train.gan.paper.channels=4")


def config(*more: str) -> Config:
    return parse([*SMALL, *more], "train", "")


def make_learner(*more: str, rank: int = 0, world: int = 1, precision: Precision = "fp32") -> Learner:
    return Learner(config(*more), 8, Ranks(CPU, rank, world), precision)


def make_step(learner: Learner, step: int, sizes: list[int], start: int = 0) -> StepResult:
    return learner.step(step, split(batch(6, seed=step), sizes, start), len(sizes))


def states(learner: Learner) -> dict[str, bytes]:
    return learner.save()


def test_memory_is_planned_for_steps_of_both_networks_with_penalties() -> None:
    rare = config("train.gan.warmup_steps=5000", "train.gan.penalty_every=16")
    heaviest = Learner(METHODS["gan"].heaviest(rare), 8, Ranks(CPU), "fp32")
    for step in (1, 2):
        assert {"objective", "discriminator/r1", "discriminator/r2"} <= set(make_step(heaviest, step, [6]).sums)


def test_the_discriminator_trains_alone_first_and_then_both_do() -> None:
    learner = make_learner("train.gan.warmup_steps=2")
    start = states(learner)
    names = set()
    for step in range(2):
        names = set(make_step(learner, step, [6]).sums)
    alone = states(learner)
    assert names >= {f"discriminator/{name}" for name in ("objective", "accuracy", "true_logit", "enlarged_logit")}
    assert "objective" not in names
    assert alone["model.safetensors"] == start["model.safetensors"]
    assert alone["ema.safetensors"] == start["ema.safetensors"]
    assert alone["discriminator.safetensors"] != start["discriminator.safetensors"]
    result = make_step(learner, 2, [6])
    assert {"objective", "l1", "adversarial", "artefacts", "discriminator/r1", "discriminator/r2"} <= set(result.sums)
    assert states(learner)["model.safetensors"] != start["model.safetensors"]
    assert "discriminator/r1" not in make_step(learner, 3, [6]).sums


@pytest.mark.parametrize(
    "options",
    [
        ("train.gan.adversarial=pairing", "train.optimizer=muon"),
        (*PAPER, "train.gan.adversarial=vanilla", "model.batch_norm=true", "train.gan.r1=0", "train.gan.r2=0"),
    ],
    ids=["patch", "paper"],
)
def test_two_steps_and_two_more_are_four(options: tuple[str, ...]) -> None:
    straight, first, second = (make_learner(*options) for _ in range(3))
    for step in range(4):
        make_step(straight, step, [4, 2])
    for step in range(2):
        make_step(first, step, [4, 2])
    second.load(first.save(), first.skips)
    for step in range(2, 4):
        make_step(second, step, [4, 2])
    assert second.save() == straight.save()


def test_accumulation_changes_nothing_beyond_rounding() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        whole, split_up = make_learner(), make_learner()
        for step in range(3):
            make_step(whole, step, [6])
            make_step(split_up, step, [1, 0, 3, 2])
    finally:
        torch.set_default_dtype(torch.float32)
    assert_close(split_up, whole)


def assert_close(one: Learner, other: Learner) -> None:
    for name, module in one._networks().items():
        theirs = other._networks()[name].state_dict()
        for key, value in module.state_dict().items():
            torch.testing.assert_close(value, theirs[key], rtol=1e-6, atol=1e-9, msg=f"{name}: {key} differs")


SHARES = ([3, 1], [2, 0])
"""Micro-batches of two ranks."""


def test_workers_may_come_and_go(tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        alone, resumed = make_learner(), make_learner()
        for step in range(4):
            make_step(alone, step, [6])
        run_ranks(_make_two_steps, (str(tmp_path),), 2)
        resumed.load(torch.load(tmp_path / "0.pt"), SkipCounts())
        for step in range(2, 4):
            make_step(resumed, step, [6])
    finally:
        torch.set_default_dtype(torch.float32)
    assert_close(resumed, alone)
    assert torch.load(tmp_path / "0.pt") == torch.load(tmp_path / "1.pt")


def _make_two_steps(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    learner = make_learner(rank=rank, world=2)
    for step in range(2):
        make_step(learner, step, SHARES[rank], start=sum(SHARES[0]) if rank else 0)
    torch.save(learner.save(), f"{folder}/{rank}.pt")
    with pytest.raises(UserError, match=r"train.gan.paper has BatchNorm.*expected one worker or"):
        make_learner(*PAPER, rank=rank, world=2)
    dist.destroy_process_group()


def test_a_step_that_is_not_finite_changes_neither_network() -> None:
    learner = make_learner(*PAPER, "model.batch_norm=true", "train.gan.r1=0", "train.gan.r2=0")
    for step in range(2):
        make_step(learner, step, [6])
    before = states(learner)
    (weight, *_) = learner.net.parameters()
    hook = weight.requires_grad_().register_hook(lambda gradient: gradient * math.nan)
    assert not make_step(learner, 2, [6]).finite
    hook.remove()
    after = states(learner)
    assert {name for name in before if before[name] != after[name]} <= {"optimizer.pt"}  # the learning rate is in it
    assert [skipped.culprit for skipped in learner.take_skipped()] == ["gradient"]
    assert make_step(learner, 3, [6]).finite
    assert states(learner)["discriminator.safetensors"] != before["discriminator.safetensors"]


def test_half_precision_learns_with_one_loss_scale() -> None:
    learner = make_learner("train.precision=fp16", precision="fp16")
    for step in range(4):
        make_step(learner, step, [6])
    assert learner.loss_scale is not None
    assert learner.skips.total < 4
    assert all(
        torch.isfinite(value).all() for net in learner._networks().values() for value in net.state_dict().values()
    )


@pytest.mark.long
def test_compiled_it_learns_the_same() -> None:
    plain, compiled = (Learner(config(), 8, Ranks(CPU), "fp32", how) for how in (False, True))
    for step in range(3):
        make_step(plain, step, [4, 2])
        make_step(compiled, step, [4, 2])
    for a, b in zip(plain.net.state_dict().values(), compiled.net.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3)


def test_each_network_has_its_learning_rate() -> None:
    learner = make_learner("train.lr=1e-3", "train.gan.lr=1e-4", "train.gan.warmup_steps=4", "train.schedule=linear")
    rates = []
    for step in range(8):
        make_step(learner, step, [6])
        rates.append([optimizer.param_groups[0]["lr"] for optimizer in learner.optimizers])
    network, discriminator = zip(*rates, strict=True)
    assert network[4:] == pytest.approx([1e-3, 1e-3, 6.7e-4, 3.4e-4])  # its schedule begins when it joins
    assert network[:4] == network[4:5] * 4
    assert discriminator[0] == discriminator[1] == pytest.approx(1e-4)
    assert discriminator[7] < 0.2e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["train.gan.from_scratch=false"], "without train.init_from, expected the weights of a trained network"),
        (["data.crop=36"], "data.crop is 36, expected a multiple of 8 for train.gan.discriminator=patch"),
        (["train.gan.discriminator=paper", "data.crop=40"], "expected a multiple of 16 for"),
    ],
)
def test_settings_that_it_cannot_work_with_are_refused(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_method(config(*options))


def test_an_unknown_discriminator_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"train.gan.discriminator is 'judge', expected one of patch, paper"):
        config("train.gan.discriminator=judge")


def test_only_the_sections_that_take_part_name_a_training() -> None:
    plain = identify(parse([], "train", ""), "x")
    assert plain == identify(parse(["train.gan.weight=1", "train.gan.paper.channels=8"], "train", ""), "x")
    train = plain["train"]
    assert isinstance(train, dict)
    assert not {"gan", "method"} & train.keys()
    first, same, other = (
        identify(config(*more), "x") for more in ((), ("train.gan.paper.channels=8",), ("train.gan.patch.channels=8",))
    )
    assert first == same != other
    assert config().training_label.endswith("-nobn-l1-gan")


@pytest.mark.parametrize(
    ("accuracy", "sentence"),
    [(0.5, "it has learnt nothing"), (0.999, "it wins completely"), (0.8, "")],
)
def test_a_discriminator_that_learns_nothing_or_wins_is_said(accuracy: float, sentence: str) -> None:
    alone = [{"step": 50.0 * i, "train/discriminator/accuracy": 0.5} for i in range(1, 5)]
    both = [
        {"step": 200 + 50.0 * i, "train/discriminator/accuracy": accuracy, "train/objective": 1.0} for i in range(1, 15)
    ]
    assert remark([*alone, *both[:10]]) == ""  # not yet enough steps
    assert (sentence in remark([*alone, *both])) if sentence else remark([*alone, *both]) == ""
    assert remark([{"step": 1.0, "train/objective": 1.0}]) == ""
