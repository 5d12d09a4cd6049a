"""Journals of trainings, and runs in MLflow."""

from pipeline.tracking.forwarding import Forwarder
from pipeline.tracking.journal import Journal, JournalReader, JournalRecord, RecordKind
from pipeline.tracking.mlflow_store import TrackedRun, Tracker, fetch_config, ui_command, wait_for_server
from pipeline.tracking.notes import mark_as_tracked, parents_of_tracked
from pipeline.tracking.provenance import commit
from pipeline.tracking.result import Best, TrainingResult

__all__ = [
    "Best",
    "Forwarder",
    "Journal",
    "JournalReader",
    "JournalRecord",
    "RecordKind",
    "TrackedRun",
    "Tracker",
    "TrainingResult",
    "commit",
    "fetch_config",
    "mark_as_tracked",
    "parents_of_tracked",
    "ui_command",
    "wait_for_server",
]
