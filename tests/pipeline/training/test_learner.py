from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.distributed as dist

from pipeline.data.reader import Batch
from pipeline.networks.weights import build_network, load_weights
from pipeline.settings import Config, UserError
from pipeline.settings.command_line import parse
from pipeline.training.checkpoints import SkipCounts
from pipeline.training.learner import Learner, SkippedStep, StepResult
from pipeline.training.ranks import Ranks
from pipeline.training.schedule import ema_decay, learning_rate
from sr_model.networks.srresnet import SRResNet
from sr_model.terms import TERMS, TermKind
from sr_model.terms.pixel import l1
from tests.commands import run_ranks
from tests.sr_model.terms.test_perceptual import random_weights

CPU = torch.device("cpu")


def config(*more: str) -> Config:
    small = ["model.channels=8", "model.blocks=2", "model.batch_norm=false", "train.precision=fp32"]
    return parse([*small, "train.global_batch=16", *more], "train", "")


def batch(n: int = 16, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    lr, hr = (rng.integers(0, 256, (n, side, side, 3), np.uint8) for side in (8, 32))
    return Batch(*map(torch.from_numpy, (lr, hr, rng.integers(0, 8, n))))


def split(whole: Batch, sizes: list[int], start: int = 0) -> list[Batch]:
    ends = start + np.cumsum(sizes)
    return [Batch(*(part[end - n : end] for part in whole)) for end, n in zip(ends, sizes, strict=True)]


def make_learner(
    settings: Config, steps: int = 10, world_size: int = 1, rank: int = 0, compiled: bool = False
) -> Learner:
    return Learner(settings, steps, Ranks(CPU, rank, world_size), "fp32", compiled)


def network(learner: Learner) -> SRResNet:
    assert isinstance(learner.net, SRResNet)
    return learner.net


def make_step(learner: Learner, step: int, sizes: list[int], seed: int = 0) -> StepResult:
    return learner.step(step, split(batch(seed=seed), sizes), len(sizes))


def gradients(micro_sizes: list[int], start: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
    """In float64, of this rank's samples [start, start + sum(micro_sizes)) of the batch of 16."""
    torch.set_default_dtype(torch.float64)
    try:
        learner = make_learner(config("train.clip_norm=1e9", "train.lr=1e-9"), world_size=world)
        learner.step(0, split(batch(), micro_sizes, start), len(micro_sizes))
        return {name: p.grad.clone() for name, p in learner.net.named_parameters() if p.grad is not None}
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("sizes", [[8, 8], [5, 5, 6], [1] * 16, [0, 16], [3, 13]])
def test_accumulated_gradients_equal_those_of_one_batch(sizes: list[int]) -> None:
    whole = gradients([16])
    for name, gradient in gradients(sizes).items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-10, atol=1e-14)


SHARES = ([3, 3], [2, 3], [0, 5])
"""Micro-batches of three ranks."""


def test_ranks_with_unequal_shares_have_the_gradients_of_one_batch(tmp_path: Path) -> None:
    run_ranks(_save_gradients, (str(tmp_path),), len(SHARES))
    whole = gradients([16])
    for rank in range(len(SHARES)):
        for name, gradient in torch.load(tmp_path / f"{rank}.pt").items():
            torch.testing.assert_close(gradient, whole[name], rtol=1e-10, atol=1e-14)


def _save_gradients(rank: int, folder: str) -> None:
    world = len(SHARES)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    start = sum(sum(sizes) for sizes in SHARES[:rank])
    torch.save(gradients(SHARES[rank], start, world), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_one_step_moves_once_however_many_micro_batches() -> None:
    one, many = make_learner(config(), 10), make_learner(config(), 10)
    make_step(one, 0, [16])
    make_step(many, 0, [4, 4, 4, 4])
    assert [s["step"] for s in many.optimizers[0].state.values()] == [
        s["step"] for s in one.optimizers[0].state.values()
    ]
    for a, b in zip(one.net.parameters(), many.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


def test_the_moving_average_has_its_closed_form() -> None:
    learner = make_learner(config("train.ema_decay=0.9"), 100)
    expected = {n: p.detach().clone().double() for n, p in learner.net.named_parameters()}
    for step in range(25):
        make_step(learner, step, [16], seed=step)
        d = min(0.9, (1 + step) / (10 + step))
        for name, p in learner.net.named_parameters():
            expected[name] = d * expected[name] + (1 - d) * p.detach().double()
    for name, p in learner.ema.named_parameters():
        torch.testing.assert_close(p.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_the_average_warms_up() -> None:
    assert ema_decay(0, 0.999) == pytest.approx(0.1)
    assert ema_decay(10**6, 0.999) == 0.999


def test_batch_norm_statistics_are_averaged_too() -> None:
    learner = make_learner(config("model.batch_norm=true"), 10)
    make_step(learner, 0, [16])
    assert isinstance(learner.ema, SRResNet)
    mean = learner.ema.bn_body.running_mean
    assert isinstance(mean, torch.Tensor)
    assert mean.abs().sum() > 0


def test_the_learning_rate_warms_up_and_follows_a_cosine() -> None:
    settings = config("train.lr=1.0", "train.warmup=0.1", "train.lr_final=0.1").train
    rates = [learning_rate(step, 100, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.55)
    assert rates[99] == pytest.approx(0.1, abs=1e-3)


def test_the_learning_rate_stays_and_falls_linearly() -> None:
    more = ("train.lr=1.0", "train.warmup=0.1", "train.lr_final=0.1", "train.stable=0.4", "train.schedule=linear")
    rates = [learning_rate(step, 100, config(*more).train) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:41] == pytest.approx([1.0] * 32)
    assert rates[70] == pytest.approx(0.55)
    assert rates[99] == pytest.approx(0.1 + 0.9 / 60)


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1), ("sqrt", 2), ("linear", 4)])
def test_the_learning_rate_grows_with_the_global_batch(scaling: str, factor: float) -> None:
    settings = config("train.lr=1e-3", f"train.lr_scaling={scaling}", "train.global_batch=64").train
    plain = config("train.lr=1e-3").train
    for step in (0, 10, 99):
        assert learning_rate(step, 100, settings) == pytest.approx(factor * learning_rate(step, 100, plain))


@pytest.mark.parametrize("term", ["charbonnier", "l1", "mse", "phase", "tv"])
def test_every_term_of_the_objective_moves_the_network(term: str) -> None:
    learner = make_learner(config(f'train.loss={{"{term}": 1.0}}'), 10)
    assert make_step(learner, 0, [16]).norms["gradient_norm"] > 1e-4


def test_the_perceptual_term_joins_at_its_start(tmp_path: Path) -> None:
    safetensors.torch.save_file(random_weights(), tmp_path / "vgg19.safetensors")
    options = [f"train.perceptual.weights={tmp_path}/vgg19.safetensors", 'train.perceptual.layers={"conv1_2": 1}']
    joining = make_learner(config('train.loss={"l1": 1, "perceptual": 1}', "train.perceptual.start=0.5", *options), 4)
    alone = make_learner(config('train.loss={"l1": 1}'), 4)
    for step in range(2):
        assert set(make_step(joining, step, [16]).sums) - {"objective"} == {"l1"}
        make_step(alone, step, [16])
    for mine, other in zip(everything(joining), everything(alone), strict=True):
        assert torch.equal(mine, other)
    for step in (2, 3):
        assert set(make_step(joining, step, [16]).sums) - {"objective"} == {"l1", "perceptual"}


@pytest.mark.parametrize("batch_norm", ["true", "false"])
@pytest.mark.parametrize("sizes", [[8, 8], [0, 16]])
def test_recomputed_activations_change_nothing(batch_norm: str, sizes: list[int]) -> None:
    plain, recomputed = (
        make_learner(config(f"model.batch_norm={batch_norm}", f"train.recompute={how}"), 10)
        for how in ("false", "true")
    )
    for step in range(3):
        make_step(plain, step, sizes, seed=step)
        make_step(recomputed, step, sizes, seed=step)
    for (name, a), b in zip(plain.net.state_dict().items(), recomputed.net.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def everything(learner: Learner) -> list[torch.Tensor]:
    states = [state for optimizer in learner.optimizers for state in optimizer.state.values()]
    moments = [value for state in states for value in state.values()]
    return [
        value.clone() for value in (*learner.net.state_dict().values(), *learner.ema.state_dict().values(), *moments)
    ]


def test_a_step_that_is_not_finite_changes_nothing_and_names_the_term(monkeypatch: pytest.MonkeyPatch) -> None:
    infinite = iter([False, False, False, True, False, False])  # the second micro-batch of the second step

    def sometimes(sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
        # Only the value is infinite: its gradient alone would tell nothing.
        return l1(sr, hr) + (torch.tensor(float("inf")) if next(infinite) else 0)

    monkeypatch.setitem(TERMS, "l1", TermKind("l1", lambda *_: sometimes))
    options = ("model.batch_norm=true", "train.optimizer=muon", 'train.loss={"mse": 1.0, "l1": 0.5}')
    learner = make_learner(config(*options), 10)
    make_step(learner, 0, [8, 8])
    before = everything(learner)
    assert learner.take_skipped() == []
    assert not make_step(learner, 1, [8, 8]).finite
    assert learner.take_skipped() == [SkippedStep(2, "l1", SkipCounts(1, 1))]
    assert all(torch.equal(a, b) for a, b in zip(before, everything(learner), strict=True))
    assert make_step(learner, 2, [8, 8]).finite
    assert learner.take_skipped() == []
    assert learner.skips == SkipCounts(1, 0)
    assert not all(torch.equal(a, b) for a, b in zip(before, everything(learner), strict=True))


def test_a_gradient_that_is_not_finite_skips_the_step() -> None:
    learner = make_learner(config(), 10)
    network(learner).conv_last.weight.register_hook(lambda gradient: gradient * float("nan"))
    make_step(learner, 0, [16])
    assert [skipped.culprit for skipped in learner.take_skipped()] == ["gradient"]


def test_several_terms_that_are_not_finite_are_named_as_mlflow_takes_it() -> None:
    learner = make_learner(config('train.loss={"mse": 1.0, "l1": 0.5}'), 10)
    torch.nn.init.constant_(network(learner).conv_last.weight, float("nan"))
    make_step(learner, 0, [16])
    assert [skipped.culprit for skipped in learner.take_skipped()] == ["mse-l1"]


@pytest.mark.long
@pytest.mark.parametrize("options", [(), ("train.recompute=true", "model.batch_norm=true")], ids=["plain", "recompute"])
def test_compiled_it_learns_the_same(options: tuple[str, ...]) -> None:
    plain, compiled = (make_learner(config(*options), 10, compiled=how) for how in (False, True))
    for step in range(3):
        make_step(plain, step, [5, 5, 6], seed=step)
        make_step(compiled, step, [5, 5, 6], seed=step)
    assert list(compiled.net.state_dict()) == list(plain.net.state_dict())
    for a, b in zip(plain.net.state_dict().values(), compiled.net.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-4)


@pytest.mark.long
@pytest.mark.parametrize("options", [(), ("train.recompute=true",)], ids=["plain", "recompute"])
def test_compiled_ranks_learn_the_same(options: tuple[str, ...], tmp_path: Path) -> None:
    run_ranks(_compare_compiled, (str(tmp_path), options), 2)


def _compare_compiled(rank: int, folder: str, options: tuple[str, ...]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    large = config("model.channels=64", *options)  # more weights than DDP's first bucket takes
    plain, compiled = (make_learner(large, 10, 2, rank, compiled=how) for how in (False, True))
    assert not torch._dynamo.config.optimize_ddp  # the graph that was tried out is the one that is trained
    for step in range(3):
        own = split(batch(seed=step), [8], start=8 * rank)
        for learner in (plain, compiled):
            assert learner.step(step, own).finite
    for a, b in zip(plain.net.state_dict().values(), compiled.net.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-4)
    dist.destroy_process_group()


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_stopped_and_restored_is_never_stopped(optimizer: str) -> None:
    options = ("model.batch_norm=true", f"train.optimizer={optimizer}")
    straight = make_learner(config(*options), 10)
    for step in range(6):
        make_step(straight, step, [8, 8], seed=step)
    first = make_learner(config(*options), 10)
    for step in range(3):
        make_step(first, step, [8, 8], seed=step)
    files = first.save()
    second = make_learner(config(*options), 10)
    second.load(files, first.skips)
    assert second.optimizers[0].param_groups[0]["lr"] == first.optimizers[0].param_groups[0]["lr"]
    for step in range(3, 6):
        make_step(second, step, [8, 8], seed=step)
    for mine, theirs in ((second.net, straight.net), (second.ema, straight.ema)):
        for (name, a), b in zip(mine.state_dict().items(), theirs.state_dict().values(), strict=True):
            assert torch.equal(a, b), name
    assert second.optimizers[0].param_groups[0]["lr"] == straight.optimizers[0].param_groups[0]["lr"]


def test_training_starts_from_given_weights(tmp_path: Path) -> None:
    learner = make_learner(config(), 10)
    make_step(learner, 0, [16])
    (tmp_path / "model.safetensors").write_bytes(learner.save()["model.safetensors"])
    started = make_learner(config(f"train.init_from={tmp_path / 'model.safetensors'}"), 10)
    for a, b in zip(started.net.parameters(), learner.net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    weights = make_learner(config()).save()["model.safetensors"]
    (tmp_path / "model.safetensors").write_bytes(weights)
    other = build_network(4, config("model.blocks=3").model, 0)
    with pytest.raises(UserError, match="belong to another network"):
        load_weights(other, str(tmp_path / "model.safetensors"))
    (tmp_path / "bad.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="cannot read the weights"):
        load_weights(other, str(tmp_path / "bad.safetensors"))
    with pytest.raises(UserError, match="cannot read the weights"):
        load_weights(other, str(tmp_path / "none.safetensors"))


def test_the_initial_network_is_a_function_of_the_seed() -> None:
    torch.manual_seed(1)
    a = build_network(4, config().model, 7)
    torch.manual_seed(2)
    b, c = build_network(4, config().model, 7), build_network(4, config().model, 8)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(a.parameters(), c.parameters(), strict=True))
