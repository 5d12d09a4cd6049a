"""The events of the trials of a grid, and their effects on the outcomes of its cells."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.grid.cells import Outcome, State


@dataclass(frozen=True)
class Started:
    """Ray Tune has started a trial."""


@dataclass(frozen=True)
class Progressed:
    """A trial has reported a record of its journal."""

    step: int
    loss: float | None
    psnr: float | None
    earlier: bool = False
    """True if an earlier session made the record."""
    remark: str = ""
    """A sentence about the training that was not said before, or ""."""


@dataclass(frozen=True)
class Failed:
    """A trial has failed."""

    reason: str


@dataclass(frozen=True)
class Interrupted:
    """A trial has stopped or has not started, because the time of the command is over."""


@dataclass(frozen=True)
class Ended:
    """A trial has ended without an error, at its last step or because the scheduler stopped it."""


Event = Started | Progressed | Failed | Interrupted | Ended


def apply_event(outcome: Outcome, event: Event, now: float) -> None:
    """Update the outcome of a cell by what its trial did.

    Args:
        outcome: the outcome of the cell.
        event: what its trial did.
        now: the time, in seconds of the monotonic clock.
    """
    if isinstance(event, Started):
        if outcome.state is State.WAITING:
            outcome.state = State.TRAINING
            outcome.pace.started = now
    elif isinstance(event, Progressed):
        outcome.step = max(outcome.step, event.step)
        outcome.loss = outcome.loss if event.loss is None else event.loss
        outcome.psnr = outcome.psnr if event.psnr is None else event.psnr
        outcome.remark = event.remark or outcome.remark
        if not event.earlier:
            outcome.pace.first = outcome.pace.first or (now, event.step)
            outcome.pace.last = now, event.step
    elif isinstance(event, Failed):
        outcome.fail(event.reason)
    elif isinstance(event, Interrupted):
        if outcome.state is State.TRAINING:
            outcome.state = State.WAITING
    elif outcome.state is State.TRAINING:
        outcome.state = State.FINISHED if outcome.step >= outcome.total else State.STOPPED
