"""Feed mutated inputs to a function, and collect what is not a documented outcome.

Each input depends on the campaign's name and the input's number alone, so a fault can be repeated by its number.
"""

import contextlib
import gc
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

SECONDS = 4.0
"""CPU seconds that an input may take; most take milliseconds."""
MEMORY = 2**30
"""Bytes of address space that all inputs together may take beyond what the process has at the start."""

_SLICE = 200
"""Most inputs of a slice in the default suite."""

whole_campaign = pytest.mark.long
"""Mark of a campaign that `make fuzz` runs; the default suite runs a slice of it."""


@dataclass
class Tally:
    """The outcomes of the inputs of a campaign."""

    name: str
    inputs: int = 0
    refused: int = 0
    """Inputs that ended with a documented exception."""
    faults: int = 0
    slowest: float = 0.0
    """CPU seconds of the slowest input."""
    peak_mb: float = 0.0
    """Most memory that the process had beyond what it had at the start, in MiB."""


TALLIES: list[Tally] = []
"""Campaigns of the test that runs; `tests/fuzz/conftest.py` collects them."""


class TookTooLongError(BaseException):
    """An input took too long. It is no `Exception`, so that nothing under test catches it."""


@dataclass(frozen=True)
class Campaign:
    """Mutated inputs of one kind.

    Args:
        name: name of the kind, which seeds the random generator.
        make: makes an input.
        use: reads an input. It may raise `expected`; everything else, even an `AssertionError`, is a fault.
        expected: the documented exceptions.
        folder: folder in which files may be written, moved and removed; None for nowhere.
        seconds: CPU seconds that an input may take.
    """

    name: str
    make: Callable[[random.Random], Any]
    use: Callable[[Any], object]
    expected: tuple[type[Exception], ...]
    folder: Path | None = None
    seconds: float = SECONDS
    _tally: Tally = field(default_factory=lambda: Tally(""), init=False, repr=False)

    def run(self, count: int) -> None:
        """Use the first `count` inputs.

        Raises:
            AssertionError: if there is a fault; the text shows the first ones.
        """
        tally, faults = self._tally, list[str]()
        tally.name, tally.inputs = self.name, count
        TALLIES.append(tally)
        if count > _SLICE:
            gc.collect()  # so that old garbage does not make room
        with _limits(), _peak_memory(tally), _watched_files(self.folder) as elsewhere:
            for number in range(count):
                fault = self.try_input(number)
                if elsewhere:
                    fault = f"it writes to {', '.join(elsewhere)}"
                    elsewhere.clear()
                if fault:
                    faults.append(f"{self.name} {number}: {fault}")
        tally.faults = len(faults)
        shown = "\n".join(faults[:10])
        assert not faults, f"{len(faults)} of {count} inputs are faults:\n{shown}"

    def input(self, number: int) -> Any:
        """Return an input by its number."""
        return self.make(random.Random(f"{self.name} {number}"))

    def try_input(self, number: int) -> str:
        """Use an input, and return what is wrong, or an empty text."""
        content = self.input(number)
        started = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, self.seconds)
        try:
            self.use(content)
        except self.expected as error:
            signal.setitimer(signal.ITIMER_PROF, 0)
            self._tally.refused += 1
            if not str(error).strip() or "\n" in str(error):
                return f"{type(error).__name__} is not one sentence: {str(error)!r}"
            if "enough memory" in str(error):
                return f"it takes too much memory: {error}"
        except BaseException as error:
            signal.setitimer(signal.ITIMER_PROF, 0)
            if isinstance(error, KeyboardInterrupt):
                raise
            frame = traceback.extract_tb(error.__traceback__)[-1]
            return f"{type(error).__name__}: {str(error)[:300]} ({Path(frame.filename).name}, line {frame.lineno})"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        taken = time.process_time() - started
        self._tally.slowest = max(self._tally.slowest, taken)
        return f"it took {taken:.1f} s" if taken > self.seconds else ""


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """Limit the address space, and let the timer interrupt an input."""

    def stop(*_: object) -> None:
        raise TookTooLongError("the input takes too many CPU seconds")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    before = signal.signal(signal.SIGPROF, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextlib.contextmanager
def _peak_memory(tally: Tally) -> Iterator[None]:
    """Measure the most memory that this process has in a block."""
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    try:
        yield
    finally:
        tally.peak_mb = (_memory("VmHWM") - before) / 2**10


def _memory(name: str) -> int:
    """Return a value of this process in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


_CHANGES = {
    "open": (0,), "os.mkdir": (0,), "os.rename": (0, 1), "os.link": (1,), "os.symlink": (1,), "os.remove": (0,),
    "os.rmdir": (0,), "os.truncate": (0,), "os.chmod": (0,),
}  # fmt: skip
"""Events of Python that change files, and which of their arguments are the paths that change."""


@dataclass
class _Watch:
    """The folder in which files may change, and the paths elsewhere that something has changed."""

    folder: str | None = None
    elsewhere: list[str] | None = None


_watch = _Watch()


@contextlib.contextmanager
def _watched_files(folder: Path | None) -> Iterator[list[str]]:
    """Collect the paths outside of a folder that something in this process changes. Libraries in C are not seen."""
    if not hasattr(sys, "_watches_files"):  # a hook cannot be removed
        sys.addaudithook(_note_change)
        sys._watches_files = True  # type: ignore[attr-defined]
    elsewhere: list[str] = []
    _watch.folder, _watch.elsewhere = (os.path.realpath(folder) if folder else None), elsewhere
    try:
        yield elsewhere
    finally:
        _watch.elsewhere = None


def _note_change(event: str, arguments: tuple[Any, ...]) -> None:
    elsewhere = _watch.elsewhere
    if elsewhere is None or event not in _CHANGES:
        return
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
        return
    for path in (arguments[place] for place in _CHANGES[event]):
        if isinstance(path, int) or path is None:  # a file that is open already
            continue
        folder, name = os.path.split(os.fsdecode(path))
        place = os.path.join(os.path.realpath(folder), name)
        allowed = place.startswith("/dev/") or "/__pycache__/" in f"{place}/"
        if not allowed and (_watch.folder is None or not f"{place}/".startswith(f"{_watch.folder}/")):
            elsewhere.append(place)
