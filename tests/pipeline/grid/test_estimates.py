"""The time that a grid still needs."""

import pytest

from pipeline.grid.cells import Outcome, State
from pipeline.grid.estimates import START_S, cell_seconds, grid_seconds
from pipeline.grid.events import Progressed, Started, apply_event


def waiting(steps: int = 100, step_s: float | None = 0.5) -> Outcome:
    return Outcome(total=steps, step_s=step_s)


def trained(start: float, *reports: tuple[float, int]) -> Outcome:
    outcome = waiting()
    apply_event(outcome, Started(), start)
    for now, step in reports:
        apply_event(outcome, Progressed(step, loss=0.1, psnr=None), now)
    return outcome


def test_the_start_of_trials_is_counted() -> None:
    assert cell_seconds(waiting(), now=0) == START_S + 50
    assert grid_seconds([waiting(), waiting(), waiting()], now=0, at_once=1) == 3 * (START_S + 50)
    assert grid_seconds([waiting(), waiting(), waiting()], now=0, at_once=2) == 2 * (START_S + 50)


def test_the_observed_start_replaces_the_assumed_one() -> None:
    outcomes = [trained(0, (60, 10), (70, 20)), waiting()]  # 60 s to the first report, then a second a step
    assert grid_seconds(outcomes, now=70, at_once=1) == pytest.approx(80 + 60 + 50)


def test_a_first_slow_report_does_not_shape_the_speed() -> None:
    assert cell_seconds(trained(0, (90, 10)), now=90) == pytest.approx(90 * 0.5)  # as planned
    assert cell_seconds(trained(0, (90, 10), (92, 20)), now=92) == pytest.approx(80 * 0.2)


def test_records_of_earlier_sessions_do_not_shape_the_speed() -> None:
    outcome = waiting()
    apply_event(outcome, Started(), 0)
    for step in (10, 20, 30, 40):
        apply_event(outcome, Progressed(step, loss=0.1, psnr=20.0, earlier=True), 1)
    assert (outcome.step, outcome.psnr) == (40, 20.0)
    assert cell_seconds(outcome, now=10, start_s=25) == 15 + 60 * 0.5
    apply_event(outcome, Progressed(50, loss=0.1, psnr=None), 25)
    apply_event(outcome, Progressed(60, loss=0.1, psnr=None), 30)
    assert cell_seconds(outcome, now=30) == 40 * 0.5


def test_nothing_is_left_of_ended_cells_and_an_unknown_speed_gives_no_estimate() -> None:
    ended = [Outcome(state, step=10, total=100) for state in (State.FINISHED, State.STOPPED, State.FAILED)]
    assert grid_seconds(ended, now=0, at_once=2) == 0
    assert grid_seconds([*ended, waiting(step_s=None)], now=0, at_once=2) is None
