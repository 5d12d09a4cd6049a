"""The page that the whole run writes: a row for each case."""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from tests.chaos.cases import CASES, Case
from tests.chaos.ground import CHECKPOINT_EVERY, CORES, STEPS

_HEAD = """\
# Faults

`make chaos` plays the faults below on [the local stack](../guides/local-stack.md): two Ray nodes with a core each,
MLflow, PostgreSQL and an S3 store, all on one machine. It disturbs a command at random moments, which the seed chooses,
and then checks that

- the command, or its rerun, ends as if nothing had happened: the shards, the trained weights and the
  enlarged images are the same, byte for byte, as those of an undisturbed command,
- a training resumes from the newest checkpoint that was whole when the fault came, or from a later one, and repeats at
  most `train.checkpoint_every` steps,
- in a local home, finished shards and images are not made again, except for at most {cores_used} that were being noted,
- MLflow has every record of every training in the end, and its runs are marked as finished.

`python -m tests.chaos --case NAME --seed N` plays one case, and `--list` prints their names.

The rows were written on {date} by runs with seed {seeds} on {cores} cores: {count} of {all} cases with {times}
faults, {failed} failed, {skipped} skipped, {minutes:.0f} minutes together. The trainings have {steps} steps and a
checkpoint every {every}. To save time, settings of Ray are shorter than usual (a node that does not answer is given up
after 15 seconds, and a lost head after 10 instead of 60), and commands and workers are forked from processes that have
imported the libraries.{rest}

| command | fault | times | what you see | lost | result |
|---|---|---|---|---|---|
"""

_NOT_PLAYED = "\n\nThe other {} cases have not been played to their end with this version yet; `make chaos` plays all."


@dataclass
class Row:
    """The outcome of a case."""

    case: Case
    times: int = 0
    """Number of faults."""
    lost: list[int] = field(default_factory=list)
    """Steps that were repeated after each fault."""
    unit: str = ""
    seen: list[str] = field(default_factory=list)
    problem: str = ""
    """The promise that was broken; "" if none."""
    skipped: str = ""
    """The reason why the case was not played; "" if it was."""
    seconds: float = 0
    seed: int = 0

    def summary(self) -> str:
        """Return the result in a line."""
        if self.skipped:
            return f"skipped: {self.skipped}"
        if self.problem:
            return f"FAILED after {self.seconds:.0f} s: {self.problem}"
        lost = f", {self.unit} repeated: {', '.join(map(str, self.lost))}" if self.lost else ""
        seen = f", seen: {self.seen}" if self.seen else ""
        return f"passed in {self.seconds:.0f} s, faults: {self.times}{lost}{seen}"

    def line(self) -> str:
        """Return the row of the table."""
        cells = [self.case.stage, self.case.fault, str(self.times or "")]
        if self.skipped:
            cells += ["not played", "", f"{self.skipped[0].upper()}{self.skipped[1:]}."]
        elif self.problem:
            cells += ["**failed**", "", _clean(self.problem)[:300]]
        else:
            cells += [_shown(self.seen), _lost(self.lost, self.unit), self.case.outcome]
        return f"| {' | '.join(cells)} |"


def keep_row(folder: Path, row: Row) -> None:
    """Write a row to a file of its own, in place of an older one."""
    file = folder / "rows" / f"{row.case.name}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(asdict(replace(row, case=None))))  # type: ignore[arg-type]


def write_table(file: Path, folder: Path) -> None:
    """Write the page from the rows that are kept in a folder."""
    kept = {case: folder / "rows" / f"{case.name}.json" for case in CASES}
    rows = [Row(**{**json.loads(row.read_text()), "case": case}) for case, row in kept.items() if row.exists()]
    head = _HEAD.format(
        date=datetime.now(UTC).date().isoformat(),
        seeds=", ".join(str(seed) for seed in sorted({row.seed for row in rows})),
        cores=os.cpu_count(),
        count=len(rows),
        all=len(CASES),
        times=sum(row.times for row in rows),
        failed=sum(bool(row.problem) for row in rows),
        skipped=sum(bool(row.skipped) for row in rows),
        minutes=sum(row.seconds for row in rows) / 60,
        steps=STEPS,
        every=CHECKPOINT_EVERY,
        cores_used=CORES,
        rest=_NOT_PLAYED.format(len(CASES) - len(rows)) if len(rows) < len(CASES) else "",
    )
    file.write_text(head + "\n".join(row.line() for row in rows) + "\n")


def _shown(seen: list[str]) -> str:
    """Return the first sentence that told the user about the fault."""
    sentences = [_clean(text) for text in seen if text]
    return sentences[0][:220] if sentences else "nothing"


def _lost(lost: list[int], unit: str) -> str:
    if not lost:
        return "not measured"
    return f"{', '.join(map(str, lost))} {unit}" if any(lost) else "nothing"


def _clean(text: str) -> str:
    """Return a text without places of this machine, as a part of a table."""
    text = re.sub(r"/[\w./-]*/(homes/[\w-]+|disk)(?=[ /:,])|s3://[\w-]+/[\w-]+", "HOME", text)
    text = re.sub(r"/[\w./-]*/(small|noise|photos)(?=[ /:,])", "SOURCE", text)
    text = re.sub(r"198\.1[89]\.\d+\.\d+", "ADDRESS", re.sub(r"\s+", " ", text))
    return text.replace("|", "\\|").replace("<", "&lt;")
