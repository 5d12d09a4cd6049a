"""Ending a training early, so that its cores are free at once."""

from __future__ import annotations

import time

from pipeline import storage
from pipeline.settings import Config, UserError


class StopTraining(SystemExit):
    """Ends a training before its last step. As a SystemExit it marks the training's MLflow run as KILLED."""


class OutOfTime(SystemExit):
    """Ends a command whose time is over, with exit code 0. As a SystemExit it marks MLflow runs as KILLED.

    Args:
        step: number of finished steps; None if the training did not start.
        total: number of steps of the training; None if it is not known.
    """

    def __init__(self, step: int | None = None, total: int | None = None) -> None:
        super().__init__(0)
        self.step, self.total = step, total

    def sentence(self, config: Config) -> str:
        """Return what happened, and what to do, as a sentence."""
        where = "before its first step" if self.step is None else f"at step {self.step} of {self.total}"
        return describe_stop(f"training stopped {where}", config)


def describe_stop(what: str, config: Config) -> str:
    """Return the sentence for work that `cluster.stop_after` stopped; `what` says what was stopped where."""
    return f"{what} after {config.cluster.stop_after}, as cluster.stop_after says: rerun the same command to resume"


def check_time(stop_at: float | None) -> None:
    """Check that a training may still start.

    Args:
        stop_at: Unix time after which training stops; None for no limit.

    Raises:
        OutOfTime: if it has passed.
    """
    if stop_at is not None and time.time() >= stop_at:
        raise OutOfTime


PERMANENT = (UserError, storage.DamagedFileError)
"""Errors of a worker that no restart mends."""
