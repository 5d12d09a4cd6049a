"""The table that shows the progress of a grid while it trains."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.evaluation.tables import duration
from pipeline.grid.cells import Cell, Outcome, Outcomes, State

_PIPED_EVERY_S = 60.0
"""Seconds between two tables in a pipe or file if no cell changes its state."""


class LiveTable:
    """Shows the progress of the cells; use it as a context manager and call `update` about once a second.

    On a terminal the table is updated in place. Elsewhere it is printed when a cell changes its state, and otherwise
    once a minute.

    Args:
        cells: the cells, in the order of their rows.
        outcomes: their outcomes, which change over time.
        console: where the table is printed; standard output by default.
    """

    def __init__(self, cells: Sequence[Cell], outcomes: Outcomes, console: Console | None = None) -> None:
        self._cells, self._outcomes = cells, outcomes
        self._console = console or Console()
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._printed: list[Outcome] = []
        self._next_print = 0.0

    def __enter__(self) -> LiveTable:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def update(self) -> None:
        """Show the present progress."""
        if self._live:
            self._live.update(self.render(), refresh=True)
        elif self._has_news():
            self._console.print(self.render())
            self._printed = [replace(self._outcomes[cell.label]) for cell in self._cells]
            self._next_print = time.monotonic() + _PIPED_EVERY_S

    def render(self) -> Table:
        """Return the table, which fits 80 columns: long labels continue on further lines."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
        table.add_column("#", justify="right")
        table.add_column("cell", overflow="fold", min_width=8)
        for title in ("state", "step", "loss", "PSNR (Y)", "left"):
            table.add_column(title, no_wrap=True)
        for number, cell in enumerate(self._cells, start=1):
            table.add_row(*(Text(text) for text in (str(number), cell.label, *_columns(self._outcomes[cell.label]))))
        return table

    def _has_news(self) -> bool:
        outcomes = [self._outcomes[cell.label] for cell in self._cells]
        states, printed = [outcome.state for outcome in outcomes], [outcome.state for outcome in self._printed]
        return states != printed or (outcomes != self._printed and time.monotonic() >= self._next_print)


def _columns(outcome: Outcome) -> list[str]:
    left = ""
    if outcome.state is State.TRAINING and outcome.steps_per_s:
        left = duration((outcome.total - outcome.step) / outcome.steps_per_s)
    return [
        outcome.state.value,
        f"{outcome.step} of {outcome.total}",
        "" if outcome.loss is None else f"{outcome.loss:.5f}",
        "" if outcome.psnr is None else f"{outcome.psnr:.2f} dB",
        left,
    ]
