"""Print every line of a process as a JSON object, for programs that collect logs.

All output passes through: what the pipeline prints, what libraries print and log, and unexpected exceptions. The line
of a stage that a terminal would update in place comes as plain lines, as in a file.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import TextIO


@dataclass(frozen=True)
class LogContext:
    """The fields that all lines of a process share for some time."""

    stage: str = ""
    """The work that is under way, such as "train"; without any, the name of the command."""
    run: str = ""
    """Id of the MLflow run; "" without one."""
    worker: str = ""
    """Number of the training worker; "" in other processes."""


_context: LogContext | None = None
"""None as long as this process prints plain text."""
_find_stage: Callable[[], str] = str
_lock = threading.RLock()


def log_context() -> LogContext | None:
    """Return the present fields, for `print_json` in another process; None if this process prints plain text."""
    return _context and replace(_context, stage=_find_stage() or _context.stage)


def print_json(context: LogContext | None, find_stage: Callable[[], str] | None = None) -> None:
    """Print JSON from now on; does nothing if `context` is None.

    Args:
        context: the first values of the fields.
        find_stage: returns the name of the stage that is under way, or "".
    """
    global _context, _find_stage
    if context is None:
        return
    _context = context
    if find_stage:
        _find_stage = find_stage
    if not isinstance(sys.stdout, _JsonLines):
        sys.stdout = _JsonLines(sys.stdout, "info")
        sys.stderr = _JsonLines(sys.stderr, "warning")
        sys.excepthook = _print_exception
        atexit.register(_finish_lines)


@contextlib.contextmanager
def logged_as(run: str) -> Iterator[None]:
    """Give the lines that are printed while the block runs the id of an MLflow run."""
    global _context
    before = _context
    if before is not None:
        _context = replace(before, run=run)
    try:
        yield
    finally:
        _context = before


class _JsonLines(io.TextIOBase):
    """A stream that writes each line of text as a JSON object to another stream.

    Args:
        stream: the other stream.
        level: level of the lines, unless they begin with "error: ".
    """

    def __init__(self, stream: TextIO, level: str) -> None:
        self._stream, self._level = stream, level
        self._begun = threading.local()  # `print` writes a line and its end apart, so threads could mix them

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def write(self, text: str) -> int:
        *lines, rest = (getattr(self._begun, "text", "") + text).split("\n")
        self._begun.text = rest
        for line in lines:
            if line.strip():
                level = "error" if line.startswith("error: ") else self._level
                _write(self._stream, level, line.removeprefix("error: "))
        return len(text)

    def finish(self) -> None:
        """Write the line that this thread has begun."""
        if getattr(self._begun, "text", ""):
            self.write("\n")

    def flush(self) -> None:
        self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return False

    def writable(self) -> bool:
        return True


def _finish_lines() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, _JsonLines):
            stream.finish()


def _write(stream: TextIO, level: str, message: str, **more: str) -> None:
    context = log_context() or LogContext()
    record = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "level": level,
        **{key: value for key, value in asdict(context).items() if value},
        "host": socket.gethostname(),
        "process": os.getpid(),
        "message": message.rstrip(),
        **more,
    }
    with _lock:
        stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        stream.flush()


def _print_exception(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """Print an exception that nothing handles as one object."""
    text = "".join(traceback.format_exception(kind, error, where))
    stream = sys.stderr._stream if isinstance(sys.stderr, _JsonLines) else sys.stderr
    _write(stream, "error", f"{kind.__name__}: {error}", traceback=text)
