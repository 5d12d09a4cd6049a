"""The mark of a workflow that is finished. This module imports nothing that takes seconds."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline import storage
from pipeline.settings import Config, Tracking
from pipeline.storage import redact


@dataclass(frozen=True)
class Finished:
    """The content of finished.json, which marks a workflow that MLflow knows completely."""

    scores: str
    """Identity of the scores in the report."""
    settings: str = ""
    """Fingerprint of all settings but those of MLflow; "" if an earlier version wrote the file."""
    registrations: list[tuple[str, str]] = field(default_factory=list)
    """Tracking server or database, without the secrets of its URI, and name of each registered model that has a version
    of the training."""

    def is_registered(self, config: Config) -> bool:
        """Tell whether the training is registered as a configuration wants it.

        If a person names the model, only the server that is named now counts. Otherwise any server does, as for the
        runs of finished work, so it needs no MLflow.
        """
        model = config.registered_model
        if config.tracking.register_as:
            return (redact(config.tracking_uri), model) in self.registrations
        return model is None or model in [name for _, name in self.registrations]


def mark_finished(folder: str, config: Config, scores: str) -> None:
    """Mark the workflow in a folder as finished and registered; `scores` is the identity of its scores."""
    before = read_mark(folder)
    registrations = before.registrations if before and before.scores == scores else []
    if config.registered_model:
        registration = (redact(config.tracking_uri), config.registered_model)
        registrations = [*(known for known in registrations if known != registration), registration]
    storage.write_document(_url(folder), Finished(scores, _fingerprint(config), registrations))


def read_mark(folder: str) -> Finished | None:
    """Return the mark of the workflow in a folder, or None if it is not finished."""
    return storage.read_expendable(_url(folder), Finished)


def may_be_finished(config: Config) -> bool:
    """Tell whether a workflow with these settings was finished; if its images are unchanged, it needs no MLflow."""
    home = f"{config.outputs}/workflows"
    marks = [read_mark(f"{home}/{name}") for name in storage.names(home) if name.startswith(config.training_label)]
    return any(mark and mark.settings in ("", _fingerprint(config)) and mark.is_registered(config) for mark in marks)


def _url(folder: str) -> str:
    return f"{folder}/finished.json"


def _fingerprint(config: Config) -> str:
    return storage.fingerprint(config.model_copy(update={"tracking": Tracking()}).to_yaml())
