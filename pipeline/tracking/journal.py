"""The journal of a training: append-only records on its storage, from which an outage of MLflow is made good."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Literal

from PIL import Image

from pipeline import storage

RecordKind = Literal["session", "train", "validation", "skipped"]
"""The start of a session, means over the last steps, a validation, or a step that was not finite."""


@dataclass(frozen=True)
class JournalRecord:
    """One line of a journal."""

    kind: RecordKind
    step: int
    """Number of finished steps."""
    time: int
    """Unix time in milliseconds."""
    metrics: dict[str, float]
    images: dict[str, str] = field(default_factory=dict)
    """File in the journal's folder, by the key that MLflow shows."""


class Journal:
    """Writes the records of one training into a folder at any fsspec URL; it needs to be the only writer."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._pending: list[JournalRecord] = []

    def append(
        self, kind: RecordKind, step: int, metrics: dict[str, float], images: dict[str, str] | None = None
    ) -> None:
        """Add a record, which readers see after `flush`."""
        self._pending.append(JournalRecord(kind, step, time.time_ns() // 1_000_000, metrics, images or {}))

    def flush(self) -> None:
        """Write the added records as one file. File names sort by step, then by time."""
        if self._pending:
            lines = "".join(json.dumps(asdict(record)) + "\n" for record in self._pending)
            storage.write(f"{self.url}/{self._pending[0].step:09d}-{time.time_ns()}.jsonl", lines.encode())
            self._pending = []

    def save_image(self, name: str, image: Image.Image) -> str:
        """Write an image beside the records and return the file name for a record."""
        sink = io.BytesIO()
        image.save(sink, "PNG")
        storage.write(f"{self.url}/images/{name}.png", sink.getvalue())
        return f"images/{name}.png"


class JournalReader:
    """Gives each record of a journal once; records of steps that were repeated after an interruption are skipped."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._read: set[str] = set()
        self._seen: set[tuple[str, int, int]] = set()

    def new(self) -> Iterator[JournalRecord]:
        """Records since the last call, in order of steps.

        Raises:
            DamagedFileError: if a line of the journal is not a record.
        """
        files = [name for name in storage.names(self.url) if name.endswith(".jsonl") and name not in self._read]
        for file in files:
            url = f"{self.url}/{file}"
            content = storage.read(url)
            self._read.add(file)
            for line in (content or b"").splitlines():
                record = storage.parse_document(line, JournalRecord, url)
                session = record.time if record.kind == "session" else 0  # every session has a record of its own
                key = (record.kind, record.step, session)
                if key not in self._seen:
                    self._seen.add(key)
                    yield record
