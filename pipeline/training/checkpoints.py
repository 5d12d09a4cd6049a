"""Checkpoints of a training at any path or fsspec URL: written whole, checked when read, the newest ones kept.

A checkpoint is a folder named by its step. `state.json` is written last and completes it: it holds the checksums of
the other files. No checkpoint is ever overwritten, so the earlier ones stay safe while one is written.
"""

from __future__ import annotations

import hashlib
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from pipeline import storage
from pipeline.tracking import Best

Files = dict[str, bytes]


@dataclass(frozen=True)
class SkipCounts:
    """Steps without a finite gradient."""

    total: int = 0
    in_a_row: int = 0
    """Since the last good step."""


@dataclass(frozen=True)
class TrainingState:
    """The state of a training beside the files of a checkpoint."""

    step: int
    """Number of finished steps."""
    skips: SkipCounts = field(default_factory=SkipCounts)
    best: Best | None = None


@dataclass(frozen=True)
class _StateFile:
    state: TrainingState
    files: dict[str, str]
    """SHA-256 of each file, hexadecimal."""


class Checkpoints:
    """The checkpoints of one training, which has one writer at a time.

    Args:
        url: folder of the checkpoints.
        keep: number of checkpoints to keep, at least 1; older ones are removed.
    """

    def __init__(self, url: str, keep: int) -> None:
        self.url = url
        self._keep = keep
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

    def restore(self) -> tuple[Files, TrainingState] | None:
        """Read the newest whole checkpoint; None if there is none."""
        for step in reversed(self.steps()):
            url = f"{self.url}/{step:09d}"
            try:
                found = storage.read_document(f"{url}/state.json", _StateFile)
            except storage.DamagedFileError:
                found = _StateFile(TrainingState(step), {"state.json": "damaged"})
            if found is None:  # its writer was killed before it was complete
                continue
            files = {name: storage.read(f"{url}/{name}") or b"" for name in found.files}
            if all(hashlib.sha256(files[name]).hexdigest() == checksum for name, checksum in found.files.items()):
                return files, found.state
            print(f"the checkpoint {url} is damaged: falling back to the previous one", file=sys.stderr, flush=True)
        return None

    def steps(self) -> list[int]:
        """Steps of the checkpoints in the folder, complete or not, ascending."""
        return [int(name) for name in storage.names(self.url) if name.isdecimal()]

    def _write(self, files: Files, state: _StateFile) -> None:
        step = state.state.step
        url = f"{self.url}/{step:09d}"
        for name, content in files.items():
            storage.write(f"{url}/{name}", content)
        storage.write_document(f"{url}/state.json", state)
        for old in [other for other in self.steps() if other <= step][: -self._keep]:
            storage.remove(f"{self.url}/{old:09d}")
