"""Precisions, and the loss scale of fp16: PyTorch computes autocast in fp16 on CPUs, too."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from pipeline.settings import Config
from pipeline.training.checkpoints import LossScale, SkipCounts
from pipeline.training.learner import Learner
from pipeline.training.precision import LossScaler, Precision, choose_precision
from pipeline.training.ranks import Ranks
from sr_model.networks.srresnet import SRResNet
from tests.commands import run_ranks
from tests.pipeline.training.test_learner import CPU, batch, config, everything, split

START = LossScale(2.0**12 * 16, 0, calibrating=True)
"""State of the loss scale before the first step of a global batch of 16."""


def make_learner(settings: Config, precision: Precision, rank: int = 0, world_size: int = 1) -> Learner:
    return Learner(settings, 20, Ranks(CPU, rank, world_size), precision)


def make_steps(learner: Learner, first: int, last: int) -> None:
    for step in range(first, last):
        learner.step(step, split(batch(seed=step), [8, 8]), 2)


def overflow_at(learner: Learner, scales: set[float]) -> None:
    """Let the gradient be infinite while the loss scale has one of these values, as an overflow of fp16 would."""
    assert isinstance(learner.net, SRResNet)

    def overflow(gradient: torch.Tensor) -> torch.Tensor:
        assert learner.loss_scale is not None
        return gradient * float("inf") if learner.loss_scale.value in scales else gradient

    learner.net.conv_last.weight.register_hook(overflow)


def test_the_scale_halves_doubles_and_calibrates() -> None:
    scaler = LossScaler(CPU, global_batch=3)
    first = scaler.value.item()
    finite, infinite = torch.tensor(True), torch.tensor(False)
    assert not scaler.update(infinite)  # it calibrates
    assert scaler.state() == LossScale(first / 2, 0, calibrating=True)
    for _ in range(1999):
        assert not scaler.update(finite)
    assert scaler.state() == LossScale(first / 2, 1999, calibrating=False)
    assert scaler.update(infinite)  # and this is a fault
    assert scaler.state() == LossScale(first / 4, 0, calibrating=False)
    for _ in range(2000):
        scaler.update(finite)
    assert scaler.state() == LossScale(first / 2, 0, calibrating=True)
    assert not scaler.update(infinite)
    assert scaler.state() == LossScale(first / 4, 0, calibrating=True)


def test_at_its_least_scale_every_skip_is_a_fault() -> None:
    scaler, infinite = LossScaler(CPU, global_batch=16), torch.tensor(False)
    faults = [bool(scaler.update(infinite)) for _ in range(20)]
    assert faults == [False] * 12 + [True] * 8
    assert scaler.state().value == 16


def test_a_restored_scale_goes_on_alike() -> None:
    outcomes = [bool(bit) for bit in np.random.default_rng(0).integers(0, 4, 60)]
    straight, first, second = (LossScaler(CPU, 16) for _ in range(3))
    for finite in outcomes[:30]:
        straight.update(torch.tensor(finite))
        first.update(torch.tensor(finite))
    second.load(first.state())
    for finite in outcomes[30:]:
        assert bool(straight.update(torch.tensor(finite))) == bool(second.update(torch.tensor(finite)))
        assert straight.state() == second.state()


@pytest.mark.long
def test_fp16_learns_as_fp32_does() -> None:
    full, half = (make_learner(config("train.lr=1e-3"), precision) for precision in ("fp32", "fp16"))
    for learner in (full, half):
        make_steps(learner, 0, 20)
        assert learner.take_skipped() == []
    start = make_learner(config(), "fp32").net.parameters()
    moved = [(a - s, b - s) for a, b, s in zip(full.net.parameters(), half.net.parameters(), start, strict=True)]
    path, other = (torch.cat([part[i].flatten() for part in moved]) for i in range(2))
    assert torch.cosine_similarity(path, other, dim=0) > 0.98
    assert half.loss_scale == LossScale(START.value, 20, calibrating=False)
    assert full.loss_scale is None


def test_gradients_in_fp16_do_not_depend_on_the_scale() -> None:
    norms = []
    for scale in (2.0**8, 2.0**16, 2.0**20):
        learner = make_learner(config(), "fp16")
        learner.load(learner.save(), SkipCounts(), LossScale(scale, 0, calibrating=False))
        norms.append(learner.step(0, [batch()]).norms["gradient_norm"].item())
    assert norms == pytest.approx([norms[-1]] * 3, rel=0.02)
    assert learner.step(1, [batch()]).norms["gradient_norm"].isfinite()


def test_an_overflow_skips_the_step_and_halves_the_scale() -> None:
    learner = make_learner(config("model.batch_norm=true", "train.optimizer=muon"), "fp16")
    overflow_at(learner, {START.value, START.value / 2})
    before = everything(learner)
    make_steps(learner, 0, 2)
    kept = [value for value in everything(learner) if value.any()]  # without moments, which are 0 now
    for a, b in zip([value for value in before if value.any()], kept, strict=True):
        assert torch.equal(a, b)
    skipped = learner.take_skipped()
    assert [(s.step, s.culprit, s.skips) for s in skipped] == [
        (1, "gradient", SkipCounts(1, 0)), (2, "gradient", SkipCounts(2, 0))
    ]  # fmt: skip
    assert learner.loss_scale == LossScale(START.value / 4, 0, calibrating=True)
    make_steps(learner, 2, 4)
    assert learner.take_skipped() == []
    overflow_at(learner, {START.value / 4})
    make_steps(learner, 4, 5)
    assert [s.skips for s in learner.take_skipped()] == [SkipCounts(3, 1)]  # now it counts


def test_stopped_and_restored_in_fp16_is_never_stopped() -> None:
    def learner() -> Learner:
        made = make_learner(config("model.batch_norm=true"), "fp16")
        overflow_at(made, {START.value})
        return made

    straight, first, second = (learner() for _ in range(3))
    make_steps(straight, 0, 6)
    make_steps(first, 0, 3)
    first.take_skipped()
    second.load(first.save(), first.skips, first.loss_scale)
    make_steps(second, 3, 6)
    for learner_ in (straight, second):
        learner_.take_skipped()
    assert second.skips == straight.skips == SkipCounts(1, 0)
    assert second.loss_scale == straight.loss_scale
    assert second.save() == straight.save()


def test_ranks_decide_alike_in_fp16(tmp_path: Path) -> None:
    run_ranks(_train_as_rank, (str(tmp_path),), 2)


def _train_as_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    learner = make_learner(config(), "fp16", rank, 2)
    if rank == 1:  # the overflow is on one rank alone
        overflow_at(learner, {START.value})
    for step in range(4):
        learner.step(step, split(batch(seed=step), [8], start=8 * rank))
    found = (learner.take_skipped(), learner.loss_scale, learner.save()["model.safetensors"])
    first, second = learner.ranks.gather(found)
    assert first == second
    assert [(s.step, s.culprit) for s in found[0]] == [(1, "gradient")]
    assert learner.loss_scale == LossScale(START.value / 2, 3, calibrating=False)
    dist.destroy_process_group()


def test_auto_takes_bf16_where_the_processor_has_it() -> None:
    processor = Path("/proc/cpuinfo")
    if not processor.exists():
        pytest.skip("no /proc/cpuinfo on this system")
    has_bf16 = bool({"avx512_bf16", "amx_bf16"} & set(processor.read_text().split()))
    assert (choose_precision("auto", CPU) == "bf16") == has_bf16


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((6, 0), "fp32"), ((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")],
)
def test_auto_on_gpus(capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert choose_precision("auto", torch.device("cuda")) == expected


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_a_named_precision_is_taken(precision: str) -> None:
    assert choose_precision(precision, CPU) == precision


def test_tf32_holds_during_a_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for precision in ("fp32", "tf32"):
        learner = make_learner(config(), precision)
        learner.net.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
        learner.step(0, [batch()])
    assert seen == [False, True]
