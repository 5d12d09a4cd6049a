"""Checkpoints of a training at any path or fsspec URL: whole or not there, checked when read, the newest ones kept.

A checkpoint is a folder named by its step. `state.json` is written last and makes it one: it holds the checksum of
every other file. None is ever overwritten, so that those before it are safe whatever happens while one is written.
"""

from __future__ import annotations

import hashlib
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from pipeline import storage

Files = dict[str, bytes]

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

    def save(self, step: int, files: Files, state: State) -> None:
        """Publish a checkpoint in the background.

        Raises:
            OSError: if the one before could not be written.
        """
        self.wait()
        checksums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        self._writing = self._pool.submit(self._publish, files, {**state, "step": step, "files": checksums})

    def wait(self) -> None:
        """Until what was saved is published.

        Raises:
            OSError: if it could not be written.
        """
        if self._writing:
            writing, self._writing = self._writing, None
            writing.result()

    def restore(self) -> tuple[Files, State] | None:
        """The newest whole checkpoint's files and state; None if there is none."""
        for step in reversed(self.steps()):
            url = f"{self.url}/{step:09d}"
            try:
                state: State | None = storage.read_json(f"{url}/state.json")
            except ValueError:
                state = None
            if state is None:  # was being written when its writer was killed
                continue
            files = {name: storage.read(f"{url}/{name}") or b"" for name in state["files"]}
            if all(hashlib.sha256(files[name]).hexdigest() == checksum for name, checksum in state["files"].items()):
                return files, state
            print(f"the checkpoint {url} is damaged: going back to the one before", file=sys.stderr, flush=True)
        return None

    def steps(self) -> list[int]:
        """Steps of the checkpoints in the folder, finished or not, ascending."""
        return [int(name) for name in storage.names(self.url) if name.isdecimal()]

    def _publish(self, files: Files, state: State) -> None:
        url = f"{self.url}/{state['step']:09d}"
        for name, content in files.items():
            storage.write(f"{url}/{name}", content)
        storage.write_json(f"{url}/state.json", state)
        for step in [step for step in self.steps() if step <= state["step"]][: -self._keep]:
            storage.remove(f"{self.url}/{step:09d}")
