"""The measurements of a run: one JSON line each, written as soon as it is known, and a table for readers."""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from benchmarks.measuring import Result
from pipeline.storage import one_line

_FILE = "results.jsonl"
_HEADER = ("measurement", "value", "unit", "predicted", "measured / predicted", "target", "")


@dataclass(frozen=True)
class Measurement:
    """One line of results.jsonl."""

    section: str
    """The section that measured it."""
    result: Result
    predicted: float | None = None
    """Value that was predicted before; None if nothing was."""
    note: str = ""
    """The reason for which there is no value, or what else to know."""

    @property
    def ratio(self) -> float | None:
        """Measured over predicted value."""
        value = self.result.value
        return value / self.predicted if value is not None and self.predicted else None

    @property
    def verdict(self) -> str:
        """Tells whether the target was met, and the note."""
        value, target = self.result.value, self.result.target
        words = [self.note] if self.note else []
        if value is None:
            words.insert(0, "not measured")
        elif target is not None:
            met = value >= target if self.result.better == "higher" else value <= target
            words.insert(0, "met" if met else "missed")
        return ": ".join(words)


class Recorder:
    """Appends the measurements of a section to results.jsonl.

    Args:
        folder: the folder of the results.
        section: name of the section.
        predicted: the predicted values, by name of the measurement.
    """

    def __init__(self, folder: Path, section: str, predicted: Mapping[str, float]) -> None:
        self._file, self._section, self._predicted = folder / _FILE, section, predicted

    def add(
        self,
        name: str,
        value: float | None,
        unit: str,
        target: float | None = None,
        better: Literal["higher", "lower"] = "lower",
        note: str = "",
    ) -> None:
        """Write a measurement; None stands for one that failed, and then the note says why."""
        finite = value if value is not None and math.isfinite(value) else None
        if value is not None and finite is None:
            note = f"the value is {value}"
        result = Result(name, finite, unit, target, better)
        line = json.dumps(asdict(Measurement(self._section, result, self._predicted.get(name), note)))
        with self._file.open("a") as file:
            file.write(f"{line}\n")

    @contextmanager
    def attempt(self, name: str, unit: str = "") -> Iterator[None]:
        """Record an exception of the block as a measurement without a value, and go on after the block."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.add(name, None, unit, note=f"{type(error).__name__}: {one_line(error, 160)}")


def read(folder: Path) -> list[Measurement]:
    """Read all measurements in a folder, in the order in which they were made."""
    file = folder / _FILE
    lines = file.read_text().splitlines() if file.exists() else []
    entries = (json.loads(line) for line in lines)
    return [Measurement(**{**entry, "result": Result(**entry["result"])}) for entry in entries]


def table(measurements: Sequence[Measurement]) -> str:
    """Return the measurements as Markdown tables, one for each section."""
    text = []
    for section in dict.fromkeys(m.section for m in measurements):
        own = [m for m in measurements if m.section == section]
        text += [f"## {section}", "", *_aligned([_HEADER, *map(_cells, own)]), ""]
    return "\n".join(text)


def predictions_table(predicted: Mapping[str, float]) -> str:
    """Return the predicted values as a Markdown table."""
    rows = [(name, _number(value)) for name, value in predicted.items()]
    return "\n".join(_aligned([("measurement", "predicted"), *rows]))


def _cells(m: Measurement) -> tuple[str, ...]:
    numbers = (m.predicted, m.ratio, m.result.target)
    return (m.result.name, _number(m.result.value), m.result.unit, *map(_number, numbers), m.verdict)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    lines = [f"| {' | '.join(row)} |" for row in padded]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines
