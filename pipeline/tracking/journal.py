"""The journal of a training: an append-only log of metrics and images in the training's folder.

If MLflow is unavailable, the journal keeps what MLflow did not receive.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal

from PIL import Image
from pydantic import Field

from pipeline import storage

RecordKind = Literal["session", "train", "validation", "skipped"]
"""Start of a session, means over the last training steps, a validation, or a step that was not finite."""


@dataclass(frozen=True)
class JournalRecord:
    """One line of a journal."""

    kind: RecordKind
    step: Annotated[int, Field(ge=0, lt=2**63)]
    """Number of finished optimizer steps."""
    time: Annotated[int, Field(ge=0, lt=2**47)]
    """Unix time in milliseconds."""
    metrics: dict[str, float]
    images: dict[str, Annotated[str, Field(pattern=r"^images/[^./\\][^/\\]*$")]] = field(default_factory=dict)
    """File of each image in the journal's folder, by its key in MLflow."""


class Journal:
    """Writes the records of one training into a folder, which must have no other writer.

    Args:
        url: path or fsspec URL of the folder.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._pending: list[JournalRecord] = []

    def append(
        self, kind: RecordKind, step: int, metrics: dict[str, float], images: dict[str, str] | None = None
    ) -> None:
        """Add a record. Readers see it after `flush`."""
        self._pending.append(JournalRecord(kind, step, time.time_ns() // 1_000_000, metrics, images or {}))

    def flush(self) -> None:
        """Write the added records as one file. The names of the files sort by step, then by time."""
        if self._pending:
            lines = "".join(json.dumps(asdict(record)) + "\n" for record in self._pending)
            storage.write(f"{self.url}/{self._pending[0].step:09d}-{time.time_ns()}.jsonl", lines.encode())
            self._pending = []

    def save_image(self, name: str, image: Image.Image) -> str:
        """Write an image as PNG and return its file for a record's `images`."""
        sink = io.BytesIO()
        image.save(sink, "PNG")
        storage.write(f"{self.url}/images/{name}.png", sink.getvalue())
        return f"images/{name}.png"


class JournalReader:
    """Reads each record of a journal once, and skips the records of steps repeated after an interruption.

    A line that is not a record, such as a torn one, is skipped, and one sentence on stderr names its file. No result
    depends on the journal.

    Args:
        url: path or fsspec URL of the journal's folder.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._read: set[str] = set()
        self._seen: set[tuple[str, int, int]] = set()

    def new(self) -> Iterator[JournalRecord]:
        """Yield the records since the last call, in order of steps."""
        files = [name for name in storage.names(self.url) if name.endswith(".jsonl") and name not in self._read]
        for file in files:
            url = f"{self.url}/{file}"
            content = storage.read(url)
            self._read.add(file)
            for line in (content or b"").splitlines():
                try:
                    record = storage.parse_document(line, JournalRecord, url, "")
                except storage.DamagedFileError:
                    storage.report_once(f"{url} is damaged: the lines that are no records are skipped")
                    continue
                session = record.time if record.kind == "session" else 0  # each session has a record of its own
                key = (record.kind, record.step, session)
                if key not in self._seen:
                    self._seen.add(key)
                    yield record
