"""Journals of trainings, and MLflow."""

from pipeline.tracking.forwarding import Forwarder
from pipeline.tracking.journal import Journal, JournalReader, JournalRecord
from pipeline.tracking.mlflow_store import TrackedRun, Tracker, fetch_config, ui_command, wait_for_server
from pipeline.tracking.provenance import commit
from pipeline.tracking.result import Best, TrainingResult

__all__ = [
    "Best",
    "Forwarder",
    "Journal",
    "JournalReader",
    "JournalRecord",
    "TrackedRun",
    "Tracker",
    "TrainingResult",
    "commit",
    "fetch_config",
    "ui_command",
    "wait_for_server",
]
