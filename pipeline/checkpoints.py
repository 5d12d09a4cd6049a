"""Checkpoints of a training at any path or fsspec URL: whole or not there, checked when read, the newest ones kept.

A checkpoint is a folder named by its step. `state.json` is written last and makes it one: it holds the checksum of
every other file. None is ever overwritten, so that those before it are safe whatever happens while one is written.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from pipeline import storage

T = TypeVar("T")

State = dict[str, Any]
"""What a checkpoint holds beside its files, JSON-like; "step" is the number of finished steps."""


class Checkpoints:
    """The checkpoints of one training; one writer at a time.

    Args:
        url: folder that they lie in.
        keep: how many, at least 1; older ones are removed.
    """

    def __init__(self, url: str, keep: int) -> None:
        self.url = url
        self._keep = keep
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(self, step: int, write: Callable[[Path], State]) -> None:
        """Have `write` fill a local folder and return the state now, and publish them in the background.

        Raises:
            OSError: if the checkpoint before could not be written, or there is no room here.
        """
        self.wait()
        folder = tempfile.TemporaryDirectory(prefix="sr-checkpoint-")
        try:
            state = {**write(Path(folder.name)), "step": step}
        except BaseException:
            folder.cleanup()
            raise
        self._writing = self._pool.submit(self._publish, folder, state)

    def wait(self) -> None:
        """Until what was saved is published.

        Raises:
            OSError: if it could not be written.
        """
        if self._writing:
            writing, self._writing = self._writing, None
            writing.result()

    def restore(self, read: Callable[[Path, State], T]) -> T | None:
        """Hand the newest whole checkpoint's files and state to `read`; None if there is none."""
        for step in reversed(self.steps()):
            url = f"{self.url}/{step:09d}"
            try:
                state = storage.read_json(f"{url}/state.json")
            except ValueError:
                state = None
            if state is None:  # was being written when its writer was killed
                continue
            with tempfile.TemporaryDirectory(prefix="sr-checkpoint-") as folder:
                if all(_fetch(f"{url}/{name}", Path(folder, name), sha256) for name, sha256 in state["files"].items()):
                    return read(Path(folder), state)
            print(f"the checkpoint {url} is damaged: going back to the one before", file=sys.stderr, flush=True)
        return None

    def steps(self) -> list[int]:
        """Steps of the checkpoints in the folder, finished or not, ascending."""
        return [int(name) for name in storage.names(self.url) if name.isdecimal()]

    def _publish(self, folder: tempfile.TemporaryDirectory[str], state: State) -> None:
        with folder:
            url = f"{self.url}/{state['step']:09d}"
            files = sorted(Path(folder.name).iterdir())
            state["files"] = {file.name: storage.sha256(file) for file in files}
            for file in files:
                storage.copy(file, f"{url}/{file.name}")
            storage.write_json(f"{url}/state.json", state)
        for step in self.steps()[: -self._keep]:
            storage.remove(f"{self.url}/{step:09d}")


def _fetch(url: str, file: Path, sha256: str) -> bool:
    content = storage.read(url)
    if content is None:
        return False
    file.write_bytes(content)
    return storage.sha256(file) == sha256
