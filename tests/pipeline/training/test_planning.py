import json
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from pipeline.data.reader import Batch
from pipeline.data.sampler import SampleOrder
from pipeline.settings import Config, UserError
from pipeline.settings.command_line import parse
from pipeline.training import memory, runs
from pipeline.training.compilers import has_compiler
from pipeline.training.learner import Learner, StepResult
from pipeline.training.planning import (
    COMPILED_FROM,
    Plan,
    decide,
    describe_devices,
    describe_imbalance,
    plan_training,
)
from pipeline.training.probe import MARGIN, MemoryUse, Probe
from pipeline.training.ranks import Ranks
from tests.commands import run_ranks

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


def test_with_little_room_it_is_what_fits_with_a_margin() -> None:
    # A process of its own, because memory that earlier tests freed may be used again and hide what is measured.
    run_ranks(_check_little_room)


def _check_little_room(_: int) -> None:
    for recompute in ("true", "false"):
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


class Measured:
    """Measurements of a made-up device: a compiled step takes half of the time."""

    def __init__(self, problem: str = "") -> None:
        self.problem = problem

    def memory_use(self, share: int) -> MemoryUse:
        return MemoryUse(100, 10, share)

    def peak_mb(self, micro_batch: int) -> float:
        return 1000.0 * micro_batch

    def step_seconds(self, micro_batch: int, count: int, compiled: bool = False) -> float:
        return 0.05 if compiled else 0.1

    def why_not_compiled(self, micro_batch: int, count: int) -> str:
        return self.problem


def decided(
    *more: str, problem: str = "", measure: bool = False, steps: int | None = None, device: torch.device = CPU
) -> Plan:
    return decide(
        config(*more).train,
        share=8,
        epoch_length=100,
        device=device,
        devices="a made-up device",
        precision="fp32",
        measurements=Measured(problem),
        measure=measure,
        steps=steps,
    )


MANY, FEW = f"train.length={COMPILED_FROM} steps", f"train.length={COMPILED_FROM - 1} steps"


def test_it_is_compiled_from_enough_steps_on_or_as_asked() -> None:
    assert decided(MANY).compiled
    assert not decided(FEW).compiled
    assert decided(FEW, "train.compile=on").compiled
    assert not decided(MANY, "train.compile=off").compiled


def test_where_compiling_fails_the_training_is_not_compiled_and_says_so() -> None:
    plan = decided(MANY, problem="no Python.h")
    assert not plan.compiled
    assert plan.note == "the training is not compiled, because torch.compile does not work here: no Python.h"
    with pytest.raises(UserError, match=r"train.compile is on, but torch.compile does not work .*: no Python.h"):
        decided(FEW, "train.compile=on", problem="no Python.h")


def test_on_a_gpu_a_given_micro_batch_is_tried_and_on_a_cpu_it_is_taken() -> None:
    gpu = torch.device("cuda")
    assert decided("train.micro_batch=4").memory_mb is None
    assert decided("train.micro_batch=4", device=gpu).memory_mb == 4000
    assert decided("train.micro_batch=32", device=gpu).memory_mb == 8000  # a worker has eight samples
    assert decided("train.micro_batch=auto", device=gpu).memory_mb == 180


def test_minutes_are_planned_from_the_steps_that_will_run() -> None:
    assert decided("train.length=1 minutes").steps == 600
    assert decided("train.length=1 minutes", "train.compile=on").steps == 1200
    assert decided("train.length=1 minutes", steps=77).steps == 77


@pytest.mark.long
def test_a_compiled_step_is_tried_on_this_machine() -> None:
    probe = Probe(config("model.channels=8", "model.blocks=1"), Ranks(CPU), "fp32")
    assert (probe.why_not_compiled(2, 2) == "") == has_compiler(CPU)


def test_a_patch_that_does_not_fit_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Learner, "step", out_of_memory_from(1))
    with pytest.raises(UserError, match="a single patch of 48 pixels does not fit in the memory of CPU"):
        plan("train.global_batch=24")


def test_a_rank_that_runs_out_of_memory_keeps_no_other_rank_waiting(tmp_path: Path) -> None:
    run_ranks(_plan_as_rank, (str(tmp_path),), 2)
    first, second = (json.loads((tmp_path / str(rank)).read_text()) for rank in range(2))
    assert first == second == 3


def _plan_as_rank(rank: int, folder: str) -> None:
    timeout = timedelta(seconds=60)
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=2, timeout=timeout)
    if rank == 1:  # its GPU is smaller than that of the other rank
        Learner.step = out_of_memory_from(4)  # type: ignore[method-assign]
    found = Probe(config("train.memory_mb=100000"), Ranks(CPU, rank, 2), "fp32").memory_use(8)
    Path(folder, str(rank)).write_text(json.dumps(found.largest_batch))
    dist.destroy_process_group()


def test_a_given_micro_batch_that_does_not_fit_is_the_same_sentence_on_all_ranks(tmp_path: Path) -> None:
    run_ranks(_try_as_rank, (str(tmp_path),), 2)
    first, second = ((tmp_path / str(rank)).read_text() for rank in range(2))
    assert first == second
    assert "is too small for micro-batches of up to 8 patches of 48 pixels: expected train.recompute=true, " in first


def _try_as_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    if rank == 1:
        Learner.step = out_of_memory_from(8)  # type: ignore[method-assign]
    probe = Probe(config("train.micro_batch=8"), Ranks(CPU, rank, 2), "fp32")
    assert probe.peak_mb(4) > 0
    with pytest.raises(UserError) as error:
        probe.peak_mb(8)
    Path(folder, str(rank)).write_text(str(error.value))
    dist.destroy_process_group()


def test_a_plan_names_the_kinds_of_devices_of_all_ranks(tmp_path: Path) -> None:
    run_ranks(_describe_as_rank, (str(tmp_path),), 3)
    assert {(tmp_path / str(rank)).read_text() for rank in range(3)} == {"A100, T4"}


def _describe_as_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=3)
    memory.describe = lambda device: "A100" if rank == 1 else "T4"
    Path(folder, str(rank)).write_text(describe_devices(Ranks(CPU, rank, 3)))
    dist.destroy_process_group()


def out_of_memory_from(samples: int) -> Callable[..., StepResult]:
    """Return a step that runs out of memory from so many samples on."""
    real = Learner.step

    def step(self: Learner, step: int, batches: Iterable[Batch], count: int = 1) -> StepResult:
        batches = list(batches)
        if max(len(batch.lr) for batch in batches) >= samples:
            raise torch.OutOfMemoryError("no memory is left")
        return real(self, step, batches, count)

    return step


def test_lanes_that_some_number_of_workers_cannot_share_are_told() -> None:
    assert describe_imbalance(8, 8, 8) is None
    assert describe_imbalance(8, 1, 4) is None
    assert describe_imbalance(4096, 504, 512) is None
    told = describe_imbalance(8, 1, 8)
    assert told is not None
    assert "if there are 7 workers, one of them trains on 1.75 times as many samples" in told
    assert "data.lanes 64 keeps that at or below 1.13" in told
    assert describe_imbalance(64, 1, 8) is None


def test_only_another_order_of_row_groups_is_another_training() -> None:
    """Trainings from before the setting keep their names."""
    plain = runs.identify(config(), "set")
    assert runs.identify(config("data.order=dealt"), "set") == plain
    assert "order" not in plain["data"]  # type: ignore[operator]
    assert runs.identify(config("data.order=permuted"), "set") != plain
