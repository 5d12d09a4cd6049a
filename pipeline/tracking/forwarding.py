"""Journal to MLflow."""

from __future__ import annotations

import io
import sys
import time

from PIL import Image

from pipeline import storage
from pipeline.tracking.journal import JournalReader, JournalRecord
from pipeline.tracking.mlflow_store import TrackedRun


class Forwarder:
    """Sends a journal to a run, in order, and keeps what the server could not take for the next call."""

    def __init__(self, journal_url: str, run: TrackedRun) -> None:
        self._reader = JournalReader(journal_url)
        self._run = run
        self._waiting: list[JournalRecord] = []
        self._retry_at = 0.0
        # Unlike metrics, an image sent twice would stand there twice.
        self._images_note = f"{journal_url}/images/sent-{run.id}.json"
        self._images_sent: list[str] = storage.read_json(self._images_note) or []

    def pump(self) -> list[JournalRecord]:
        """Read new records and try to send everything; returns the new ones."""
        new = list(self._reader.new())
        self._waiting += new
        if time.monotonic() >= self._retry_at:
            while self._waiting:
                if not self._send(self._waiting[0]):
                    self._retry_at = time.monotonic() + 15
                    break
                self._waiting.pop(0)
        return new

    def drain(self) -> bool:
        """Try for a minute, or until everything is sent; whether all was. The journal keeps the rest."""
        deadline = time.monotonic() + 60
        self._retry_at = 0
        self.pump()
        while self._waiting and time.monotonic() < deadline:
            time.sleep(2)
            self.pump()
        if self._waiting:
            print(
                f"{len(self._waiting)} records did not reach MLflow: they are in {self._reader.url}; "
                "run the same command again to send them",
                file=sys.stderr,
            )
        return not self._waiting

    def _send(self, record: JournalRecord) -> bool:
        if not self._run.log_metrics(record.metrics, record.step, record.time):
            return False
        for key, file in record.images.items():
            content = None if file in self._images_sent else storage.read(f"{self._reader.url}/{file}")
            if content is None:
                continue
            if not self._run.log_image(Image.open(io.BytesIO(content)), key, record.step):
                return False
            self._images_sent.append(file)
            storage.write_json(self._images_note, self._images_sent)
        return True
