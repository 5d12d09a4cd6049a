"""The mark of a workflow that is finished. This module imports nothing that takes seconds."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline import storage
from pipeline.settings import Config


@dataclass(frozen=True)
class Finished:
    """The content of finished.json, which marks a workflow that MLflow knows completely."""

    scores: str
    """Identity of the scores in the report."""
    settings: str = ""
    """Fingerprint of all settings; "" if an earlier version wrote the file."""


def mark_finished(folder: str, config: Config, scores: str) -> None:
    """Mark the workflow in a folder as finished; `scores` is the identity of its scores."""
    storage.write_document(_url(folder), Finished(scores, _fingerprint(config)))


def read_mark(folder: str) -> Finished | None:
    """Return the mark of the workflow in a folder, or None if it is not finished."""
    return storage.read_expendable(_url(folder), Finished)


def may_be_finished(config: Config) -> bool:
    """Tell whether a workflow with these settings was finished; if its images are unchanged, it needs no MLflow."""
    home = f"{config.outputs}/workflows"
    marks = [read_mark(f"{home}/{name}") for name in storage.names(home) if name.startswith(config.training_label)]
    return any(mark and mark.settings in ("", _fingerprint(config)) for mark in marks)


def _url(folder: str) -> str:
    return f"{folder}/finished.json"


def _fingerprint(config: Config) -> str:
    return storage.fingerprint(config.to_yaml())
