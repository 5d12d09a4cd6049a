"""Events of trials, the live table, and the end of a training that the scheduler stops."""

import io
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import ray
from rich.console import Console

from pipeline.data import preparation
from pipeline.data.manifest import Manifest
from pipeline.data.patchset import PatchSet
from pipeline.grid.cells import Cell, Outcome, State
from pipeline.grid.live_table import LiveTable
from pipeline.grid.trials import Ended, Failed, Progressed, Started, apply_event
from pipeline.settings import Config, Preprocess
from pipeline.settings.command_line import parse
from pipeline.training import driver
from pipeline.training.stopping import StopTraining

PATCH_SET = PatchSet("x", Manifest("x", 4, 192, Preprocess(), [], [], []))


def test_events_lead_to_an_outcome() -> None:
    outcome = Outcome(total=10)
    apply_event(outcome, Started())
    apply_event(outcome, Progressed(5, loss=0.5, psnr=None, steps_per_s=2.0))
    apply_event(outcome, Progressed(5, loss=None, psnr=20.0, steps_per_s=None))
    assert outcome == Outcome(State.TRAINING, step=5, total=10, loss=0.5, psnr=20.0, steps_per_s=2.0)
    stopped = replace(outcome)
    apply_event(stopped, Ended())
    assert stopped.state is State.STOPPED
    apply_event(outcome, Progressed(10, loss=0.4, psnr=21.0, steps_per_s=2.0))
    apply_event(outcome, Ended())
    assert outcome.state is State.FINISHED


def test_the_end_of_a_trial_does_not_hide_its_failure() -> None:
    outcome = Outcome(total=10)
    for event in (Started(), Failed("it diverged"), Ended()):
        apply_event(outcome, event)
    assert (outcome.state, outcome.reason) == (State.FAILED, "it diverged")


def test_a_finished_cell_that_reports_once_more_stays_finished() -> None:
    outcome = Outcome(State.FINISHED, step=10, total=10)
    for event in (Started(), Progressed(4, loss=0.1, psnr=None, steps_per_s=None), Ended()):
        apply_event(outcome, event)
    assert (outcome.state, outcome.step) == (State.FINISHED, 10)


def cells(*labels: str) -> list[Cell]:
    return [Cell(label, Config(), PATCH_SET) for label in labels]


def test_a_piped_table_fits_80_columns_and_is_printed_when_a_state_changes() -> None:
    sink = io.StringIO()
    labels = "a label that is much longer than its column·lr=0.000123456", "mse[1]"
    outcomes = {label: Outcome(total=100_000) for label in labels}
    with LiveTable(cells(*labels), outcomes, Console(file=sink, width=80)) as table:
        table.update()
        table.update()
        assert sink.getvalue().count("PSNR") == 1
        first = outcomes[labels[0]]
        for event in (Started(), Progressed(99_000, loss=0.01234, psnr=30.123, steps_per_s=0.5)):
            apply_event(first, event)
        table.update()
        apply_event(first, Progressed(99_100, loss=0.01234, psnr=None, steps_per_s=0.5))
        table.update()
    lines = sink.getvalue().splitlines()
    assert sink.getvalue().count("PSNR") == 2
    assert max(map(len, lines)) <= 80
    assert any("training  99000 of 100000" in line and "30.12 dB" in line and "33.3 minutes" in line for line in lines)
    assert any("mse[1]" in line for line in lines)


def test_on_a_terminal_the_table_is_updated_in_place() -> None:
    sink = io.StringIO()
    outcomes = {"mse": Outcome(total=10)}
    console = Console(file=sink, width=80, force_terminal=True, legacy_windows=False)
    with LiveTable(cells("mse"), outcomes, console) as table:
        table.update()
        before = len(sink.getvalue())
        apply_event(outcomes["mse"], Started())
        table.update()
    assert "\x1b[1A" in sink.getvalue()[before:]


@pytest.mark.usefixtures("ray_session")
def test_a_stopped_training_frees_its_cores(small: Callable[..., list[str]]) -> None:
    options = small("train.length=100000 steps", "train.checkpoint_every=1000", "train.validate_every=100000")
    config = parse(options, "train", "")
    patch_set, _ = preparation.prepare(config)
    running = threading.Event()
    with pytest.raises(StopTraining):
        driver.train(config, patch_set, watch=lambda record: running.set(), should_stop=running.is_set)
    assert running.is_set()
    deadline = time.monotonic() + 10
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
