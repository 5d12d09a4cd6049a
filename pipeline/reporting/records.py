"""Records of trainings, read."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from pydantic import ValidationError

from pipeline import storage
from pipeline.reporting import pages
from pipeline.settings import Config, UserError, sentence

Recorded = dict[str, Any]
"""record.json: "label", "training" (name), "identity" (what shaped the weights), "config", "patch_set", "result",
"seconds", "history", "scores"; "note" (what the images are, and on what terms); and of the process that recorded it
"recorded" (date), "commit", "machine", "versions".
"""


def find(folder: str, label: str) -> Recorded | None:
    """The record of a cell, if there is one.

    Raises:
        UserError: if it is damaged.
    """
    return _read(f"{folder}/{folder_name(label)}/record.json")


def load(folder: str) -> list[Recorded]:
    """All records of a folder.

    Raises:
        UserError: if one is damaged.
    """
    found = (_read(f"{folder}/{name}/record.json") for name in names(folder))
    return [recorded for recorded in found if recorded]


def names(folder: str) -> list[str]:
    """Names of the records' folders."""
    return [name for name in storage.names(folder) if "." not in name]


def weights(folder: str, label: str) -> str:
    """Path or URL of a record's weights."""
    return f"{folder}/{folder_name(label)}/model.safetensors"


def folder_name(label: str) -> str:
    """Of a cell's record: "nobn·mse" becomes "nobn-mse"."""
    return storage.plain_name(label.replace("·", "-")).replace(".", "_")


def origin(folder: str, recorded: Recorded) -> Recorded | None:
    """The record whose weights a recorded training started from; None if it started from none, or from others."""
    start = recorded["identity"]["train"]["init_from"]
    for name in names(folder) if start else ():
        if hashlib.sha256(storage.read(f"{folder}/{name}/model.safetensors") or b"").hexdigest() == start:
            return _read(f"{folder}/{name}/record.json")
    return None


def write_card(folder: str, recorded: Recorded) -> None:
    """Write a record's model card beside it."""
    storage.write(f"{folder}/{folder_name(recorded['label'])}/README.md", card(folder, recorded).encode())


def card(folder: str, recorded: Recorded) -> str:
    """The model card, Markdown."""
    name = folder_name(recorded["label"])
    model = f"{name}/model.safetensors"
    return pages.render("card.md.j2", r=recorded, model=model, cores=cores, origin=origin(folder, recorded))


def cores(recorded: Recorded) -> int:
    """CPU threads that a training had, all workers together; all of the machine's where an older record is silent."""
    result = recorded["result"]
    threads: int = result["threads"] * result["workers"] if "threads" in result else recorded["machine"]["cores"]
    return threads


def _read(url: str) -> Recorded | None:
    try:
        recorded: Recorded | None = storage.read_json(url)
        if recorded and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", recorded["training"]):
            raise ValueError(f"the training's name is {recorded['training']!r}")
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{url} is damaged: {error}, expected the JSON that pipeline.tune wrote") from None
    return recorded


def configuration(recorded: Recorded, **more: Any) -> Config:
    """The settings of a record, and more sections or values beside them.

    Raises:
        UserError: if this version of the pipeline doesn't know them.
    """
    try:
        return Config(**recorded["config"], **more)
    except ValidationError as error:
        raise UserError(f"the record {recorded['label']} is of another version: {sentence(error)}") from None


def provenance(recorded: Recorded) -> dict[str, str]:
    """Tags of an MLflow run that say where a recorded training was made."""
    return {
        "mlflow.source.git.commit": recorded["commit"],
        "sr.recorded": recorded["recorded"],
        "sr.machine": json.dumps(recorded["machine"]),
        "sr.versions": json.dumps(recorded["versions"]),
    }
