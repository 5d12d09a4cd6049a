"""Forwarding a journal to MLflow."""

from __future__ import annotations

import io
import sys
import time

from PIL import Image

from pipeline import storage
from pipeline.tracking.journal import JournalReader, JournalRecord
from pipeline.tracking.mlflow_store import TrackedRun
from pipeline.tracking.notes import SentImages

_PAUSE_S = 15
"""Seconds without attempts after MLflow did not answer."""
_PATIENCE_S = 60
"""Seconds for which `forward_rest` waits for MLflow."""


class Forwarder:
    """Sends the records of a journal to an MLflow run in order.

    Records that MLflow does not accept at the moment are sent by a later call.

    Args:
        journal_url: path or fsspec URL of the journal's folder.
        run: the run that receives the records.
    """

    def __init__(self, journal_url: str, run: TrackedRun) -> None:
        self._reader = JournalReader(journal_url)
        self._run = run
        self._unsent: list[JournalRecord] = []
        self._retry_at = 0.0
        # MLflow replaces a metric that is sent twice, but would show an image twice.
        self._note_url = f"{journal_url}/images/sent-{run.id}.json"
        note = storage.read_document(self._note_url, SentImages)
        self._sent_images: list[str] = note.files if note else []

    def forward_new(self) -> list[JournalRecord]:
        """Read the new records, try to send all unsent ones, and return the new ones."""
        new = list(self._reader.new())
        self._unsent += new
        if time.monotonic() >= self._retry_at:
            while self._unsent:
                if not self._send(self._unsent[0]):
                    self._retry_at = time.monotonic() + _PAUSE_S
                    break
                self._unsent.pop(0)
        return new

    def forward_rest(self) -> bool:
        """Try for up to a minute to send all remaining records; return True if MLflow has them all."""
        deadline = time.monotonic() + _PATIENCE_S
        self._retry_at = 0
        self.forward_new()
        while self._unsent and time.monotonic() < deadline:
            time.sleep(2)
            self.forward_new()
        if self._unsent:
            print(
                f"{len(self._unsent)} records did not reach MLflow; they are kept in {self._reader.url}: "
                "rerun the same command to send them",
                file=sys.stderr,
            )
        return not self._unsent

    def _send(self, record: JournalRecord) -> bool:
        if not self._run.log_metrics(record.metrics, record.step, record.time):
            return False
        for key, file in record.images.items():
            content = None if file in self._sent_images else storage.read(f"{self._reader.url}/{file}")
            if content is None:
                continue
            if not self._run.log_image(Image.open(io.BytesIO(content)), key, record.step):
                return False
            self._sent_images.append(file)
            storage.write_document(self._note_url, SentImages(self._sent_images))
        return True
