"""Feed mutated inputs to a function, and collect what is not a documented outcome.

Each input depends on the campaign's name and the input's number alone, so a fault can be repeated by its number.
"""

import contextlib
import gc
import random
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SECONDS = 4.0
"""CPU seconds that an input may take; most take milliseconds."""
MEMORY = 2**30
"""Bytes of address space that all inputs together may take beyond what the process has at the start."""

whole_campaign = pytest.mark.long
"""Mark of a campaign that `make fuzz` runs; the default suite runs a slice of it."""


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
        seconds: CPU seconds that an input may take.
    """

    name: str
    make: Callable[[random.Random], Any]
    use: Callable[[Any], object]
    expected: tuple[type[Exception], ...]
    seconds: float = SECONDS

    def run(self, count: int) -> None:
        """Use the first `count` inputs.

        Raises:
            AssertionError: if there is a fault; the text shows the first ones.
        """
        faults: list[str] = []
        with _limits():
            for number in range(count):
                if fault := self.try_input(number):
                    faults.append(f"{self.name} {number}: {fault}")
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
        return f"it took {taken:.1f} s" if taken > self.seconds else ""


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """Limit the address space, and let the timer interrupt an input."""

    def stop(*_: object) -> None:
        raise TookTooLongError("the input takes too many CPU seconds")

    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    before = signal.signal(signal.SIGPROF, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
