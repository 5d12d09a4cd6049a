"""The end of a training before its last step, decided by two ranks whose clocks and steps differ."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch

from pipeline.training import session
from pipeline.training.checkpoints import TrainingState
from pipeline.training.ranks import Ranks
from pipeline.training.session import Session


@dataclass(frozen=True)
class _Table:
    """A place where two threads wait for each other and exchange values."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=20))
    values: dict[int, object] = field(default_factory=dict)

    def exchange(self, rank: int, value: object) -> list[object]:
        self.values[rank] = value
        self.barrier.wait()
        both = [self.values[0], self.values[1]]
        self.barrier.wait()
        return both


@dataclass(frozen=True)
class _Threads(Ranks):
    """Two ranks that are threads of this process, which `torch.distributed` does not allow."""

    table: _Table = field(default_factory=_Table)

    def gather(self, value):  # type: ignore[no-untyped-def]
        return self.table.exchange(self.rank, value)

    def gather_numbers(self, values: Sequence[torch.Tensor | float]) -> list[list[float]]:
        return self.table.exchange(self.rank, [float(value) for value in values])  # type: ignore[return-value]


@pytest.mark.parametrize(("told", "start"), [(0, 0), (1, 0), (0, 100_000)])
def test_the_ranks_leave_after_the_same_step_whoever_is_told(
    told: int, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_ASK_EVERY_S", 0.02)
    table, asked = _Table(), {0: 0, 1: 0}
    left: dict[int, int] = {}

    def train(rank: int) -> None:
        def is_told() -> bool:
            asked[rank] += 1
            return rank == told and asked[rank] > 3

        own = Session(_Threads(torch.device("cpu"), rank, 2, table=table), is_told=is_told)
        for done in range(start + 1, start + 2000):
            time.sleep(0.0005 * (1 + rank))
            if own.must_leave(done):
                left[rank] = done
                return

    threads = [threading.Thread(target=train, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert left[0] == left[1]
    assert asked[0] == asked[1] == 4
    assert left[0] - start > 10  # they do not ask after every step


def test_a_report_waits_until_its_checkpoint_is_whole_and_some_time_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[int] = []
    own = Session(Ranks(torch.device("cpu")), report=lambda state: reported.append(state.step))
    own.add_checkpoint(TrainingState(10))
    own.add_checkpoint(TrainingState(20))
    assert reported == []
    monkeypatch.setattr(session, "_REPORT_EVERY_S", 0)
    own.add_checkpoint(TrainingState(30))
    assert reported == [20]
    own.end()
    own.end()
    assert reported == [20, 30]


def test_without_a_limit_nothing_ends_a_training() -> None:
    own = Session(Ranks(torch.device("cpu")))
    assert not own.must_leave(1)
    assert not own.is_time_up(logged=True)
    assert Session(Ranks(torch.device("cpu")), stop_at=time.time() - 1).is_time_up(logged=False)
