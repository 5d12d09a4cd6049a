"""Estimates of the time that a grid still needs."""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Sequence

from pipeline.grid.cells import Outcome, State

START_S = 25.0
"""Seconds from the start of a trial to its first report as long as none was observed."""


def cell_seconds(outcome: Outcome, now: float, start_s: float = START_S) -> float | None:
    """Return the seconds until a cell is trained, without waiting for others; None if its speed is unknown.

    Args:
        outcome: the cell's outcome.
        now: the time, in seconds of the monotonic clock.
        start_s: seconds from the start of a trial to its first report.
    """
    if outcome.state not in (State.WAITING, State.TRAINING):
        return 0.0
    step_s, pace = outcome.step_seconds, outcome.pace
    if step_s is None:
        return None
    waited = 0.0 if pace.started is None else now - pace.started
    start = 0.0 if pace.first else max(start_s - waited, 0.0)
    return start + (outcome.total - outcome.step) * step_s


def grid_seconds(outcomes: Sequence[Outcome], now: float, at_once: int) -> float | None:
    """Return the seconds until all cells are trained; None if the speed of one is unknown.

    Args:
        outcomes: the outcomes of the cells, in the order in which they train.
        now: the time, in seconds of the monotonic clock.
        at_once: number of cells that train at the same time.
    """
    observed = [o.pace.first[0] - o.pace.started for o in outcomes if o.pace.first and o.pace.started is not None]
    start_s = statistics.fmean(observed) if observed else START_S
    ends: list[float] = []  # when each of the cells that train at once ends
    for state in (State.TRAINING, State.WAITING):
        for outcome in outcomes:
            if outcome.state is state:
                seconds = cell_seconds(outcome, now, start_s)
                if seconds is None:
                    return None
                if len(ends) < at_once:
                    heapq.heappush(ends, seconds)
                else:
                    heapq.heapreplace(ends, ends[0] + seconds)
    return max(ends, default=0.0)
