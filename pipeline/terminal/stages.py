"""Show how far a long stage of the work has come.

On a terminal, the innermost stage of the process has one line, which is updated in place and disappears at the end. In
a pipe or a file, a stage prints plain lines, at most one every `LINE_EVERY_S` seconds, and also prints one if nothing
has happened for that long. A stage that counts something leaves one line when it ends.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task
from rich.progress_bar import ProgressBar
from rich.table import Column
from rich.text import Text

LINE_EVERY_S = 10.0
"""Seconds between two lines of a stage in a pipe or a file."""

_FIRST_LINE_AFTER_S = 2.0
"""Seconds after which a stage that counts nothing prints its first line in a pipe or a file."""

_RATE_OVER_S = 300.0
"""Seconds over which the rate is averaged. The first result is left out, because it includes the start of workers."""

_stack: list[Stage] = []
"""The stages of this process that are under way; the last one is shown."""
_lock = threading.RLock()


class Stage:
    """A stage of the work that is under way; `stage` makes one.

    Args:
        progress: keeps the counts and, on a terminal, shows them.
        label: name of the stage, such as "preprocess"; it may be empty if there is a message.
        message: what happens as long as nothing is counted, such as "the workers are starting".
        total: number of results to come; None if nothing is counted yet.
        unit: what is counted, such as "images".
    """

    def __init__(self, progress: Progress, label: str, message: str, total: float | None, unit: str) -> None:
        self._progress, self._label, self._message, self._unit = progress, label, message, unit
        self._details = ""
        self._task = progress.add_task(label, total=total)
        self._started = time.monotonic()
        self._next_line = self._started + (_FIRST_LINE_AFTER_S if total is None else LINE_EVERY_S)

    def update(
        self,
        completed: float | None = None,
        details: str | None = None,
        message: str | None = None,
    ) -> None:
        """Change what is known of the progress; an argument that is None changes nothing.

        Args:
            completed: number of results so far.
            details: further facts, such as "2 rejected".
            message: what happens as long as nothing is counted.
        """
        with _lock:
            self._message = self._message if message is None else message
            self._details = self._details if details is None else details
            self._progress.update(self._task, completed=completed)
            self.print_when_due()

    def begin_at(self, completed: float, total: float) -> None:
        """Begin to count; results of earlier sessions are in `completed` and do not shape the time left.

        Args:
            completed: number of results so far.
            total: number of results, those so far among them.
        """
        with _lock:
            self._progress.reset(self._task, completed=completed, total=total)  # type: ignore[arg-type]

    @property
    def rate(self) -> float | None:
        """Results per second without the first one; None if there are too few."""
        return self._entry.speed

    def line(self) -> str:
        """Return the state of the stage as a line of text."""
        entry = self._entry
        label = f"{self._label}: " if self._label else ""
        elapsed = duration(time.monotonic() - self._started)
        if entry.total is None:
            return f"{label}{self._message}, {elapsed} so far" + (f", {self._details}" if self._details else "")
        text = f"{label}{_number(entry.completed)} of {_number(entry.total)} {self._unit}"
        left = None if entry.finished else entry.time_remaining
        if not (left and self._live):  # a live line has room for one of the two times
            text += f" in {elapsed}"
        if left:
            text += f", about {duration(left)} left"
        return f"{text}, {self._details}" if self._details else text

    def print_when_due(self) -> None:
        """Print a plain line if there is no terminal and the last one is some seconds old."""
        with _lock:
            if not self._live and _stack and _stack[-1] is self and time.monotonic() >= self._next_line:
                self._print(self.line())

    @property
    def _entry(self) -> Task:
        return next(task for task in self._progress.tasks if task.id == self._task)

    @property
    def _live(self) -> bool:
        return not self._progress.disable

    def _print(self, line: str) -> None:
        print(line, flush=True)
        self._next_line = time.monotonic() + LINE_EVERY_S

    def _show(self, visible: bool) -> None:
        self._progress.update(self._task, visible=visible)
        if visible:
            self._next_line = max(self._next_line, time.monotonic() + LINE_EVERY_S)

    def _finish(self, complete: bool) -> None:
        if complete and self._entry.total and self._entry.finished:
            self._print(self.line())
        self._progress.remove_task(self._task)


@contextlib.contextmanager
def stage(label: str, message: str = "", total: float | None = None, unit: str = "") -> Iterator[Stage]:
    """Show a stage of the work while the block runs.

    Args:
        label: name of the stage, such as "preprocess"; it may be empty if there is a message.
        message: what happens as long as nothing is counted, such as "Ray is starting".
        total: number of results to come; None if nothing is counted, or not yet.
        unit: what is counted, such as "images".

    Yields:
        The stage, whose `update` tells it about results.
    """
    with _lock:
        outer = _stack[-1] if _stack else None
        progress = outer._progress if outer else _new_progress()
        if outer:
            outer._show(visible=False)
        current = Stage(progress, label, message, total, unit)
        _stack.append(current)
        ended = threading.Event()
        if outer is None:
            if not progress.disable:
                progress.start()
            threading.Thread(target=_tick, args=(ended,), name="progress", daemon=True).start()
    complete = False
    try:
        yield current
        complete = True
    finally:
        ended.set()
        with _lock:
            _stack.remove(current)
            current._finish(complete)
            if outer is None:
                if not progress.disable:
                    progress.stop()
            elif _stack and _stack[-1] is outer:
                outer._show(visible=True)


def stage_name() -> str:
    """Return the name of the innermost stage that has one and is under way; "" without one."""
    return next((shown._label for shown in reversed(_stack) if shown._label), "")


def make_console() -> Console:
    """Return a console for standard output, which is a terminal only if it can be written to as one.

    Other output that is printed meanwhile, such as a long path, is not broken into lines.
    """
    return Console(force_terminal=sys.stdout.isatty(), soft_wrap=True)


def duration(seconds: float) -> str:
    """Format a time for people: in seconds below two minutes, in minutes below two hours, in hours above."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _new_progress() -> Progress:
    console = make_console()
    return Progress(
        SpinnerColumn("line"),  # plain characters, which every terminal has
        _Bar(bar_width=16, table_column=Column()),
        _Line(table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        console=console,
        transient=True,
        speed_estimate_period=_RATE_OVER_S,
        disable=not console.is_terminal or console.is_dumb_terminal,
        expand=True,
    )


class _Bar(BarColumn):
    """A bar for a stage that counts."""

    def render(self, task: Task) -> ProgressBar | Text:  # type: ignore[override]
        return super().render(task) if task.total is not None else Text("")


class _Line(ProgressColumn):
    """The line of a stage."""

    max_refresh = 0.2

    def render(self, task: Task) -> Text:
        return Text(next((shown.line() for shown in _stack if shown._task == task.id), ""))


def _tick(ended: threading.Event) -> None:
    """Print a line for a stage from which nothing is heard, until the outermost stage has ended."""
    while not ended.wait(1):
        with _lock, contextlib.suppress(OSError, ValueError):  # standard output was closed
            if _stack:
                _stack[-1].print_when_due()


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.1f}"
