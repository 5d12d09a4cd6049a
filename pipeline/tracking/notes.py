"""Notes in a folder of outputs about what MLflow has of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import TypeAdapter

from pipeline import storage


@dataclass(frozen=True)
class RunNote:
    """The MLflow runs that track one folder (tracking.json). Only the user can read the file."""

    uri: str
    """Tracking server or database that has the runs, without the secrets of its URI."""
    runs: dict[str, str] = field(default_factory=dict)
    """Id of the run below each parent run, by the parent's id; "" stands for no parent."""


@dataclass(frozen=True)
class _TrackedNote:
    """The parent runs below which MLflow has all of a finished training (tracked.json)."""

    parents: list[str]


@dataclass(frozen=True)
class SentImages:
    """The images of a journal that reached an MLflow run."""

    files: list[str] = field(default_factory=list)
    """Paths in the journal's folder."""


def read_run_note(folder: str, uri: str) -> RunNote:
    """Return the runs that track a folder on one server; none if another server tracked it."""
    note = storage.read_expendable(f"{folder}/tracking.json", RunNote, "MLflow gets new runs of this work")
    plain = storage.redact(uri)
    return RunNote(plain, note.runs if note and note.uri in (plain, uri) else {})


def write_run_note(folder: str, note: RunNote) -> None:
    """Replace a folder's note."""
    with storage.create(f"{folder}/tracking.json") as part:
        part.touch(0o600)
        part.write_bytes(TypeAdapter(RunNote).dump_json(note, indent=1) + b"\n")


def parents_of_tracked(folder: str) -> list[str]:
    """Return the ids of the parent runs below which MLflow has all of a training; "" stands for no parent."""
    note = storage.read_expendable(f"{folder}/tracked.json", _TrackedNote)
    return note.parents if note else []


def any_tracked(home: str, beginning: str) -> bool:
    """Tell whether MLflow has all of any training in the folder `home` whose name has this beginning."""
    return any(parents_of_tracked(f"{home}/{name}") for name in storage.names(home) if name.startswith(beginning))


def mark_as_tracked(folder: str, parent: str) -> None:
    """Note that MLflow has all of a training below this parent run; "" stands for no parent."""
    parents = parents_of_tracked(folder)
    if parent not in parents:
        storage.write_document(f"{folder}/tracked.json", _TrackedNote([*parents, parent]))
