import time

import torch

from pipeline.training.learner import StepResult
from pipeline.training.meter import Meter
from pipeline.training.ranks import Ranks

CPU = torch.device("cpu")


def make_steps(meter: Meter, count: int, seconds: float = 0.0) -> None:
    for _ in range(count):
        meter.add(StepResult({"objective": torch.ones(())}, {}, torch.tensor(True)), 16)
    time.sleep(seconds)


def recorded(meter: Meter, first: int, last: int) -> list[int]:
    return [done for done in range(first, last + 1) if meter.is_due(done)]


def test_on_a_cpu_records_follow_every_so_many_steps_and_the_last_one() -> None:
    meter = Meter(Ranks(CPU), 16, 95, every=10)
    assert recorded(meter, 1, 40) == [10, 20, 30, 40]
    make_steps(meter, 40)
    meter.read(40)
    assert recorded(meter, 41, 95) == [50, 60, 70, 80, 90, 95]


def test_records_that_cost_time_keep_their_distance_in_seconds() -> None:
    meter = Meter(Ranks(CPU), 16, 10_000, every=10, apart_s=1.0)
    assert recorded(meter, 1, 10) == [10]
    make_steps(meter, 10, seconds=0.1)  # at most 100 steps a second
    metrics = meter.read(10)
    assert metrics["train/objective"] == 1
    due = next(done for done in range(11, 10_000) if meter.is_due(done))
    assert due % 10 == 0
    assert -1 <= due - (10 + metrics["train/steps_per_s"]) <= 10
    assert meter.is_due(10_000)
