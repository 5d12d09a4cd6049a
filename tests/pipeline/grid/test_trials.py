"""Events of trials, the live table, and the end of a training that the scheduler stops."""

import io
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from rich.console import Console

from pipeline.data import patchset, preparation
from pipeline.grid import trials
from pipeline.grid.cells import Cell, Outcome, Outcomes, State
from pipeline.grid.events import Ended, Event, Failed, Interrupted, Progressed, Started, apply_event
from pipeline.grid.live_table import LiveTable
from pipeline.settings import Config, Preprocess
from pipeline.settings.command_line import parse
from pipeline.training import driver
from pipeline.training.stopping import StopTraining

PATCH_SET = patchset.assemble("x", "x", 4, Preprocess(), [], 0)


def progressed(step: int, loss: float | None = None, psnr: float | None = None) -> Progressed:
    return Progressed(step, loss, psnr)


def test_events_lead_to_an_outcome() -> None:
    outcome = Outcome(total=10)
    event: Event
    for event in (Started(), progressed(5, loss=0.5), progressed(5, psnr=20.0)):
        apply_event(outcome, event, now=0)
    assert outcome == Outcome(State.TRAINING, step=5, total=10, loss=0.5, psnr=20.0)
    stopped = replace(outcome)
    apply_event(stopped, Ended(), now=0)
    assert stopped.state is State.STOPPED
    for event in (progressed(10, loss=0.4, psnr=21.0), Ended()):
        apply_event(outcome, event, now=0)
    assert outcome.state is State.FINISHED


def test_a_trial_whose_time_is_over_waits_for_the_next_command() -> None:
    outcome = Outcome(total=10)
    for event in (Started(), progressed(5), Interrupted(), Ended()):
        apply_event(outcome, event, now=0)
    assert (outcome.state, outcome.step) == (State.WAITING, 5)
    finished = Outcome(State.FINISHED, step=10, total=10)
    apply_event(finished, Interrupted(), now=0)
    assert finished.state is State.FINISHED


def test_the_end_of_a_trial_does_not_hide_its_failure() -> None:
    outcome = Outcome(total=10)
    for event in (Started(), Failed("it diverged"), Ended()):
        apply_event(outcome, event, now=0)
    assert (outcome.state, outcome.reason) == (State.FAILED, "it diverged")


def test_a_finished_cell_that_reports_once_more_stays_finished() -> None:
    outcome = Outcome(State.FINISHED, step=10, total=10)
    for event in (Started(), progressed(4, loss=0.1), Ended()):
        apply_event(outcome, event, now=0)
    assert (outcome.state, outcome.step) == (State.FINISHED, 10)


def cells(*labels: str) -> list[Cell]:
    return [Cell(label, Config(), PATCH_SET) for label in labels]


LONG = "a label that is much longer than its column·lr=0.000123456"


def shown(labels: Sequence[str], outcomes: Outcomes, **settings: Any) -> tuple[LiveTable, io.StringIO]:
    sink = io.StringIO()
    console = Console(file=sink, width=80, height=24, legacy_windows=False, **settings)
    return LiveTable(cells(*labels), outcomes, 1, console), sink


def test_a_remark_about_a_cell_is_printed_once() -> None:
    outcomes = {"gan": Outcome(total=100)}
    table, sink = shown(["gan"], outcomes)
    with table:
        for remark in ("", "step 20: it has learnt nothing", "", "step 60: it wins"):
            apply_event(outcomes["gan"], Progressed(20, None, None, remark=remark), now=0)
            for _ in range(2):
                table.update()
    assert sink.getvalue().splitlines() == [
        "grid: gan step 20: it has learnt nothing",
        "grid: gan step 60: it wins",
    ]


def test_in_a_pipe_a_line_is_printed_when_a_state_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = {label: Outcome(total=100_000, step_s=2.0) for label in (LONG, "mse[1]")}
    table, sink = shown([LONG, "mse[1]"], outcomes)
    with table:
        for events in ([], [Started()], [progressed(99_000, psnr=30.123)], [progressed(99_100)]):
            for event in events:
                apply_event(outcomes[LONG], event, now=time.monotonic())
            for _ in range(3):
                table.update()
        assert sink.getvalue() == f"grid: {LONG} starting at step 0 of 100000\n"
        apply_event(outcomes["mse[1]"], Failed("no room"), now=0)
        table.update()
        later = time.monotonic() + 60
        monkeypatch.setattr(time, "monotonic", lambda: later)
        table.update()
    _, failed, summary = sink.getvalue().splitlines()
    assert failed == "grid: mse[1] failed: no room"
    assert summary.startswith("grid: 0 of 2 cells finished, 1 training, 1 failed, about ")
    assert summary.endswith(f" left; {LONG} training at step 99100 of 100000, 30.12 dB")
    assert "\x1b" not in sink.getvalue()


def test_an_unexpected_error_of_a_cell_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise AttributeError("'Train' object has no attribute\n'phase'")

    trial: Any = object.__new__(trials._Trial)
    trial._job, trial._training = SimpleNamespace(stop_file=""), SimpleNamespace(next_report=fail)
    assert trial.step() == {"done": True, "error": "AttributeError: 'Train' object has no attribute 'phase'"}
    assert "in fail" in capsys.readouterr().err  # the traceback is in the trial's log


def test_the_table_fits_80_columns_and_shortens_labels_in_the_middle() -> None:
    outcomes = {label: Outcome(total=100_000, step_s=2.0) for label in (LONG, "mse[1]")}
    table, sink = shown([LONG, "mse[1]"], outcomes)
    for event in (Started(), progressed(99_000, loss=0.01234, psnr=30.123)):
        apply_event(outcomes[LONG], event, now=time.monotonic())
    Console(file=sink, width=80).print(table.render())
    lines = sink.getvalue().splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= 80
    first = r"1  a label that …=0\.000123456 +training +99000 of 100000 +30\.12 dB +33\.3 minutes"
    assert re.fullmatch(first, lines[1].rstrip())
    assert re.match(r"2  mse\[1\] +waiting", lines[2])


def test_a_table_that_is_higher_than_the_terminal_has_the_cells_that_train() -> None:
    labels = [f"lr={number}" for number in range(40)]
    outcomes = {label: Outcome(total=10) for label in labels}
    table, _ = shown(labels, outcomes)
    for label in ("lr=7", "lr=30"):
        apply_event(outcomes[label], Started(), now=0)
    sink = io.StringIO()
    Console(file=sink, width=80).print(table.render())
    assert [line.split()[:2] for line in sink.getvalue().splitlines()[1:]] == [["8", "lr=7"], ["31", "lr=30"]]
    assert table.summary() == "0 of 40 cells finished, 2 training, 38 waiting"


def test_on_a_terminal_the_table_is_updated_in_place() -> None:
    outcomes = {"mse": Outcome(total=10)}
    table, sink = shown(["mse"], outcomes, force_terminal=True)
    with table:
        table.update()
        before = len(sink.getvalue())
        apply_event(outcomes["mse"], Started(), now=0)
        table.update()
    assert "\x1b[1A" in sink.getvalue()[before:]


@pytest.mark.long
@pytest.mark.usefixtures("ray_session")
def test_a_stopped_training_frees_its_cores(small: Callable[..., list[str]]) -> None:
    options = small("train.length=100000 steps", "train.checkpoint_every=1000", "train.validate_every=100000")
    config = parse(options, "train", "")
    patch_set, _ = preparation.prepare(config)
    running = threading.Event()
    with pytest.raises(StopTraining):
        driver.train(
            config,
            patch_set,
            watch=lambda records, earlier: running.set() if records else None,
            should_stop=running.is_set,
        )
    assert running.is_set()
    deadline = time.monotonic() + 10
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
