"""The progress of a grid on the screen while it trains."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline import terminal
from pipeline.grid.cells import Cell, Outcome, Outcomes, State
from pipeline.grid.estimates import cell_seconds, grid_seconds

_NAMED_IN_A_LINE = 3
"""Cells that a plain line describes."""

_WIDE = 100
"""Columns from which the table also shows the loss."""


class LiveTable:
    """Shows the progress of the cells; use it as a context manager and call `update` about once a second.

    On a terminal, a table is updated in place; if the terminal is too low for all cells, the table has those that
    train. Elsewhere, a line is printed when a cell changes its state, and one about the cells that train if there was
    none for some seconds.

    Args:
        cells: the cells, in the order of their rows.
        outcomes: their outcomes, which change over time.
        at_once: number of cells that train at the same time.
        console: where the progress is shown; standard output by default.
    """

    def __init__(self, cells: Sequence[Cell], outcomes: Outcomes, at_once: int, console: Console | None = None) -> None:
        self._cells, self._outcomes, self._at_once = cells, outcomes, at_once
        self._console = console or terminal.make_console()
        live = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = Live(console=self._console, auto_refresh=False, transient=True) if live else None
        self._printed = {cell.label: outcomes[cell.label].state for cell in cells}
        self._remarks = {cell.label: outcomes[cell.label].remark for cell in cells}
        self._next_line = time.monotonic() + terminal.LINE_EVERY_S

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
        """Show the present progress, and print each remark about a cell once."""
        for cell in self._cells:
            remark = self._outcomes[cell.label].remark
            if remark != self._remarks[cell.label]:
                self._remarks[cell.label] = remark
                self._print(f"{cell.label} {remark}")
        if self._live:
            self._live.update(Group(self.render(), Text(self.summary())), refresh=True)
            return
        for cell in self._cells:
            outcome = self._outcomes[cell.label]
            if outcome.state is not self._printed[cell.label]:
                self._printed[cell.label] = outcome.state
                self._print(f"{cell.label} {_describe(outcome)}")
        if time.monotonic() >= self._next_line:
            training = [cell.label for cell in self._cells if self._outcomes[cell.label].state is State.TRAINING]
            named = [f"{label} {_describe(self._outcomes[label])}" for label in training[:_NAMED_IN_A_LINE]]
            named += [f"and {len(training) - len(named)} more"] if len(training) > len(named) else []
            self._print("; ".join([self.summary(), *named]))

    def summary(self) -> str:
        """Return the number of cells by state, and the time left."""
        outcomes = [self._outcomes[cell.label] for cell in self._cells]
        counts = {state: sum(outcome.state is state for outcome in outcomes) for state in State}
        text = f"{counts[State.FINISHED]} of {len(outcomes)} cells finished"
        for state in (State.TRAINING, State.WAITING, State.STOPPED, State.FAILED):
            text += f", {counts[state]} {state}" if counts[state] else ""
        left = grid_seconds(outcomes, time.monotonic(), self._at_once)
        return f"{text}, about {terminal.duration(left)} left" if left else text

    def render(self) -> Table:
        """Return the table, which fits the terminal: a long label loses its middle."""
        room = self._console.height - 4  # the header, the summary and a line for other output
        shown = list(enumerate(self._cells, start=1))
        if len(shown) > room:
            shown = [entry for entry in shown if self._outcomes[entry[1].label].state is State.TRAINING][:room]
        wide = self._console.width >= _WIDE
        titles = ["#", "cell", "state", "step", *(["loss"] if wide else []), "PSNR (Y)", "left"]
        rows = [[str(number), *_columns(self._outcomes[cell.label], wide)] for number, cell in shown]
        widths = [max(map(len, column)) for column in zip([t for t in titles if t != "cell"], *rows, strict=True)]
        for_label = max(self._console.width - sum(widths) - 2 * len(widths), 8)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
        for title in titles:
            table.add_column(title, no_wrap=True, justify="right" if title == "#" else "left")
        for row, (_, cell) in zip(rows, shown, strict=True):
            table.add_row(*(Text(text) for text in (row[0], _shorten(cell.label, for_label), *row[1:])))
        return table

    def _print(self, line: str) -> None:
        self._console.print(f"grid: {line}", markup=False, highlight=False, soft_wrap=True)
        self._next_line = time.monotonic() + terminal.LINE_EVERY_S


def _describe(outcome: Outcome) -> str:
    """Return state and figures of a cell as text."""
    if outcome.state is State.FAILED:
        return f"failed: {outcome.reason}"
    figures = [f"{_state(outcome)} at step {outcome.step} of {outcome.total}"]
    figures += [f"{outcome.psnr:.2f} dB"] if outcome.psnr is not None else []
    return ", ".join(figures)


def _columns(outcome: Outcome, wide: bool) -> list[str]:
    """Return the cells of a row behind the label."""
    left = cell_seconds(outcome, time.monotonic()) if outcome.state is State.TRAINING else None
    return [
        _state(outcome),
        f"{outcome.step} of {outcome.total}",
        *([("" if outcome.loss is None else f"{outcome.loss:.5f}")] if wide else []),
        "" if outcome.psnr is None else f"{outcome.psnr:.2f} dB",
        "" if left is None else terminal.duration(left),
    ]


def _state(outcome: Outcome) -> str:
    """Return the state; a trial that trains has "starting" until its first report."""
    starting = outcome.state is State.TRAINING and not outcome.pace.first
    return "starting" if starting else outcome.state.value


def _shorten(label: str, width: int) -> str:
    """Leave out the middle of a label that is longer than its column."""
    if len(label) <= width:
        return label
    tail = (width - 1) // 2
    return f"{label[: width - 1 - tail]}…{label[-tail:]}"
