"""Journals of trainings, and runs in MLflow."""

from pipeline.tracking.addresses import ui_command
from pipeline.tracking.artifacts import fetch_config, fetch_weights
from pipeline.tracking.contact import wait_for_server
from pipeline.tracking.forwarding import Forwarder
from pipeline.tracking.journal import Journal, JournalReader, JournalRecord, RecordKind
from pipeline.tracking.logged_models import TrainedModel, describe_model
from pipeline.tracking.mlflow_store import TrackedRun, Tracker, find_problem
from pipeline.tracking.models import ModelVersion, register_version
from pipeline.tracking.notes import any_tracked, mark_as_tracked, parents_of_tracked
from pipeline.tracking.provenance import commit
from pipeline.tracking.result import Best, Machine, TrainingResult, this_machine

__all__ = [
    "Best",
    "Forwarder",
    "Journal",
    "JournalReader",
    "JournalRecord",
    "Machine",
    "ModelVersion",
    "RecordKind",
    "TrackedRun",
    "Tracker",
    "TrainedModel",
    "TrainingResult",
    "any_tracked",
    "commit",
    "describe_model",
    "fetch_config",
    "fetch_weights",
    "find_problem",
    "mark_as_tracked",
    "parents_of_tracked",
    "register_version",
    "this_machine",
    "ui_command",
    "wait_for_server",
]
