"""Checkpoints of a training at any path or fsspec URL: written whole, checked when read, the newest ones kept.

A checkpoint is a folder named by its step. `state.json` is written last and completes it: it holds the checksums of
the other files. No checkpoint is ever overwritten, so the earlier ones stay safe while one is written.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from pipeline import storage
from pipeline.tracking import Best

Files = dict[str, bytes]

OPTIMIZERS = "optimizer.pt"
"""The file of a checkpoint with the states of the optimizers, by the name of the module."""


_FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")]
_Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class SkipCounts:
    """Steps without a finite gradient."""

    total: _Count = 0
    in_a_row: _Count = 0
    """Since the last good step, without those that only calibrated the loss scale of fp16."""


@dataclass(frozen=True)
class LossScale:
    """The state of the loss scale of a training in fp16."""

    value: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    good_steps: _Count
    """Finite steps since the scale last changed."""
    calibrating: bool
    """True until the first finite step after the start or after an increase."""


@dataclass(frozen=True)
class TrainingState:
    """The state of a training beside the files of a checkpoint."""

    step: _Count
    """Number of finished steps."""
    skips: SkipCounts = field(default_factory=SkipCounts)
    best: Best | None = None
    loss_scale: LossScale | None = None
    """None unless the precision is fp16."""


@dataclass(frozen=True)
class _StateFile:
    state: TrainingState
    files: Annotated[dict[_FileName, str], Field(min_length=1)]
    """SHA-256 of each file, hexadecimal."""


class Checkpoints:
    """The checkpoints of one training, which has one writer at a time.

    Args:
        url: folder of the checkpoints.
        keep: number of checkpoints to keep, at least 1; older ones are removed.
        observe: is told the seconds that each checkpoint took to write, in another thread.
    """

    def __init__(self, url: str, keep: int, observe: Callable[[float], None] | None = None) -> None:
        self.url = url
        self._keep, self._observe = keep, observe
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(self, files: Files, state: TrainingState) -> None:
        """Write a checkpoint in the background.

        Raises:
            OSError: if the previous one could not be written.
        """
        self.wait()
        checksums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        self._writing = self._pool.submit(self._write, files, _StateFile(state, checksums))

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            OSError: if it could not be written.
        """
        if self._writing:
            writing, self._writing = self._writing, None
            writing.result()

    def check(self) -> None:
        """Check without waiting that the last checkpoint did not fail.

        Raises:
            OSError: if it could not be written.
        """
        if self._writing and self._writing.done():
            self.wait()

    def restore(self) -> tuple[Files, TrainingState] | None:
        """Read the newest whole checkpoint; None if there is none. A damaged one is reported on stderr."""
        for step in reversed(self.steps()):
            url = f"{self.url}/{step:09d}"
            try:
                found = storage.read_document(f"{url}/state.json", _StateFile, "")
                if found is None:  # its writer was killed before it was complete
                    continue
                return _read_files(url, found, step), found.state
            except storage.DamagedFileError as error:
                storage.report_once(f"the checkpoint {url} is damaged: falling back to the previous one ({error})")
        return None

    def steps(self) -> list[int]:
        """Steps of the checkpoints in the folder, complete or not, ascending."""
        return [int(name) for name in storage.names(self.url) if name.isdecimal()]

    def _write(self, files: Files, state: _StateFile) -> None:
        started = time.monotonic()
        step = state.state.step
        url = f"{self.url}/{step:09d}"
        for name, content in files.items():
            storage.write(f"{url}/{name}", content)
        storage.write_document(f"{url}/state.json", state)
        if self._observe:
            self._observe(time.monotonic() - started)
        for old in [other for other in self.steps() if other <= step][: -self._keep]:
            storage.remove(f"{self.url}/{old:09d}")


def _read_files(url: str, state: _StateFile, step: int) -> Files:
    """Read the files of a checkpoint.

    Raises:
        DamagedFileError: if one is missing or has another checksum, or the state is that of another step.
    """
    if state.state.step != step:
        raise storage.DamagedFileError(f"state.json is of step {state.state.step}")
    files = {}
    for name, checksum in state.files.items():
        content = storage.read(f"{url}/{name}")
        if content is None:
            raise storage.DamagedFileError(f"{name} is missing")
        if hashlib.sha256(content).hexdigest() != checksum:
            raise storage.DamagedFileError(f"{name} has another checksum than state.json says")
        files[name] = content
    return files
