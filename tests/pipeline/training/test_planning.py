import numpy as np
import pytest
import torch

from pipeline.data.sampler import SampleOrder
from pipeline.settings import Config
from pipeline.settings.command_line import parse
from pipeline.training import memory
from pipeline.training.planning import COMPILED_FROM, Plan, has_compiler, plan_training
from pipeline.training.probe import MARGIN
from pipeline.training.ranks import Ranks

CPU = torch.device("cpu")
ORDER = SampleOrder((4,) * 12, seed=0, lanes=4, window=8, crops_per_tile=2)


def config(*more: str) -> Config:
    small = ["model.channels=16", "model.blocks=2", "data.crop=48", "train.precision=fp32", "train.length=30 steps"]
    return parse([*small, *more], "train", "")


def plan(*more: str, measure: bool = False) -> Plan:
    return plan_training(config(*more), ORDER, Ranks(CPU), measure=measure)


def test_peak_memory_is_of_what_was_done_since_it_was_reset() -> None:
    memory.reset_peak(CPU)
    before = memory.peak_mb(CPU)
    held = np.ones(25_000_000)
    assert memory.peak_mb(CPU) - before > 150
    del held
    memory.reset_peak(CPU)
    assert memory.peak_mb(CPU) < before + 100


def test_with_room_the_micro_batch_is_the_whole_share() -> None:
    assert plan("train.global_batch=24").micro_batch == 24
    assert plan("train.global_batch=24", "train.micro_batch=5").micro_batch == 5


@pytest.mark.parametrize("recompute", ["true", "false"])
def test_with_little_room_it_is_what_fits_with_a_margin(recompute: str) -> None:
    options = ["train.global_batch=4096", "model.blocks=1", f"train.recompute={recompute}"]
    some = plan(*options, "train.micro_batch=1", measure=True).memory_mb
    assert some is not None
    budget = (some + 50) / MARGIN
    found = plan(*options, f"train.memory_mb={budget}")
    assert 2 < found.micro_batch < 400
    assert found.memory_mb is not None
    assert found.memory_mb <= MARGIN * budget + 1
    assert plan(*options, "train.memory_mb=1").micro_batch == 1


def test_lengths_become_steps() -> None:
    assert plan("train.micro_batch=8").steps == 30
    assert plan("train.length=3 epochs", "train.micro_batch=8").steps == 3 * 96 // 16
    timed = plan("train.length=0.05 minutes", "train.micro_batch=8", "train.global_batch=16")
    assert timed.step_s is not None
    assert timed.steps == max(int(3 / timed.step_s), 1)


def test_it_is_compiled_from_enough_steps_on_or_as_asked() -> None:
    available = has_compiler(CPU)
    many, few = f"train.length={COMPILED_FROM} steps", f"train.length={COMPILED_FROM - 1} steps"
    micro = "train.micro_batch=8"  # so that nothing is measured
    assert plan(many, micro).compiled == available
    assert not plan(few, micro).compiled
    assert plan(few, micro, "train.compile=on").compiled
    assert not plan(many, micro, "train.compile=off").compiled
