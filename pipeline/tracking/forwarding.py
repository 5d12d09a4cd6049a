"""Forwarding a journal to MLflow."""

from __future__ import annotations

import io
import math
import os
import sys
import time
from collections.abc import Callable, Sequence

from PIL import Image

from pipeline import storage
from pipeline.tracking.journal import JournalReader, JournalRecord
from pipeline.tracking.machine import system_metrics
from pipeline.tracking.mlflow_store import MOST_METRICS, TrackedRun
from pipeline.tracking.notes import SentImages

_PAUSE_S = 15
"""Seconds without attempts after MLflow did not answer."""
_PATIENCE_S = 60
"""Seconds for which `forward_rest` waits for MLflow."""
_SYSTEM_EVERY_S = 10
"""Seconds between two measurements of the machine."""


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
        self._step = 0
        self._measure: Callable[[], dict[str, float]] | None = None
        self._measure_at = 0.0
        # MLflow replaces a metric that is sent twice, but would show an image twice.
        self._note_url = f"{journal_url}/images/sent-{run.id}.json"
        note = storage.read_expendable(self._note_url, SentImages)
        self._sent_images: list[str] = note.files if note else []

    @property
    def backlog(self) -> int:
        """Number of records that MLflow has not received yet."""
        return len(self._unsent)

    def read_new(self) -> list[JournalRecord]:
        """Read the new records, and return them; a later call of the other methods sends them."""
        new = list(self._reader.new())
        self._unsent += new
        self._step = max([self._step, *(record.step for record in new)])
        return new

    def forward_new(self) -> list[JournalRecord]:
        """Read the new records, try to send all unsent ones, and return the new ones."""
        new = self.read_new()
        if time.monotonic() >= self._retry_at:
            while self._unsent:
                part = self._unsent[: _count_together(self._unsent)]
                if not (self._run.log_history(part) and self._send_images(part[-1])):
                    self._retry_at = time.monotonic() + _PAUSE_S
                    break
                del self._unsent[: len(part)]
        return new

    def forward_system_metrics(self) -> None:
        """Every few seconds, log how busy this machine is, unless MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING is "false".

        Measurements are lost while MLflow is away. Those of workers on other machines are not taken. If this machine
        cannot be measured, a sentence on stderr says so, and no further attempt is made.
        """
        now = time.monotonic()
        if now < self._measure_at or self._unsent:
            return
        self._measure_at = now + _SYSTEM_EVERY_S
        if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() in ("false", "0"):
            return
        try:
            self._measure = self._measure or system_metrics()
            values = self._measure()
        except Exception as error:  # of any class, from psutil or the library of a GPU, such as in some containers
            reason = storage.one_line(error, 200)
            storage.report_once(f"MLflow gets no system metrics, because this machine cannot be measured ({reason})")
            self._measure_at = math.inf
            return
        if not self._run.log_metrics(values, self._step):
            self._measure_at = now + 10 * _SYSTEM_EVERY_S

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

    def _send_images(self, record: JournalRecord) -> bool:
        for key, file in record.images.items():
            image = None if file in self._sent_images else _read_image(f"{self._reader.url}/{file}")
            if image is None:
                continue
            if not self._run.log_image(image, key, record.step):
                return False
            self._sent_images.append(file)
            storage.write_document(self._note_url, SentImages(self._sent_images))
        return True


def _count_together(records: Sequence[JournalRecord]) -> int:
    """Return how many records fit into one request: up to one with images, which follow it, and at least one."""
    metrics = 0
    for count, record in enumerate(records):
        metrics += len(record.metrics)
        if count and metrics > MOST_METRICS:
            return count
        if record.images:
            return count + 1
    return len(records)


def _read_image(url: str) -> Image.Image | None:
    """Read an image of the journal; None if it is missing or damaged."""
    content = storage.read(url)
    if content is None:
        return None
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except Exception:  # Pillow raises exceptions of many classes for a damaged file
        storage.report_once(f"{url} is damaged: MLflow does not get this image")
        return None
    return image
