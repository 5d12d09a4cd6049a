"""Finished trainings as small folders that a repository can hold.

A record is a folder named by its cell: `model.safetensors` (fp16), `record.json` (configuration, stepped metrics,
scores, what it was made with) and `README.md`, a model card. `restore` makes the training of it again where it is
missing.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import psutil
import safetensors.torch
from pydantic import ValidationError

from pipeline import pages, storage, tracking
from pipeline.config import Config, UserError, sentence
from pipeline.learner import read_weights

SHIPPED = str(Path(__file__).resolve().parent / "models")
"""Folder of the records that come with the package."""

Recorded = dict[str, Any]
"""record.json: "label", "training" (name), "identity" (what shaped the weights), "config", "patch_set", "result",
"seconds", "history", "scores"; "note" (what the pictures are, and on what terms); and of the process that recorded it
"recorded" (date), "commit", "machine", "versions".
"""

_PRECISION = 6
"""Significant digits of stepped metrics."""


def keep(
    folder: str,
    label: str,
    config: Config,
    facts: Recorded,
    weights: str,
    scores: dict[str, Any] | None,
) -> None:
    """Write the record of a finished training, or add what was measured since.

    Args:
        folder: of all records.
        label: the cell's.
        config: the cell's.
        facts: of a `Recorded` at least "training", "identity", "patch_set", "result", "seconds" and "history"; what
            else it has is kept, too.
        weights: path or URL of the training's weights.
        scores: what `evaluate` returned, once it was measured.

    Raises:
        UserError: if the folder holds another training of this label.
    """
    url = f"{folder}/{folder_name(label)}"
    known = find(folder, label)
    if known and known["identity"] != facts["identity"]:
        raise conflict(folder, label)
    if known is None:
        storage.write(f"{url}/model.safetensors", _in_half(weights, config.scale))
    recorded: Recorded = known or {
        "label": label,
        "config": _portable(config),
        "scores": {},
        "note": config.tune.note,
        "recorded": datetime.now(UTC).date().isoformat(),
        "commit": tracking.commit() or "unknown",
        "machine": _machine(),
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in ("torch", "ray", "mlflow")},
        },
        **facts,
        "history": [_brief(record) for record in facts["history"]],
    }
    recorded = {**recorded, "scores": _merged(recorded["scores"], scores["sets"] if scores else {})}
    if recorded != known:
        content = json.dumps(recorded, indent=1, ensure_ascii=False)
        storage.write(f"{url}/record.json", f"{content}\n".encode())
        write_card(folder, recorded)


def restore(folder: str, recorded: Recorded, home: str) -> bool:
    """Make the folder of a training, `home`, from its record; whether that has its weights.

    Raises:
        UserError: if they cannot be read.
    """
    name = folder_name(recorded["label"])
    if "model.safetensors" not in storage.names(f"{folder}/{name}"):
        return False
    weights = read_weights(f"{folder}/{name}/model.safetensors")
    whole = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    metadata = {"format": "pt", "scale": str(recorded["config"]["scale"])}
    storage.write(f"{home}/model.safetensors", safetensors.torch.save(whole, metadata))
    journal = "".join(json.dumps(record) + "\n" for record in recorded["history"])
    storage.write(f"{home}/journal/000000000-0.jsonl", journal.encode())
    storage.write_json(f"{home}/result.json", recorded["result"])
    return True


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


def conflict(folder: str, label: str) -> UserError:
    """What to say where a record of another training stands."""
    return UserError(
        f"{folder}/{folder_name(label)} holds the record of another training than this cell: expected tune.records to "
        "name another folder, or this record to be deleted"
    )


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
    """Path or URL of a record's weights.

    Raises:
        UserError: if there is no such record.
    """
    known = names(folder)
    if folder_name(label) not in known:
        raise UserError(
            f"there is no model {label}, expected one of {', '.join(known) or 'none'}, or a .safetensors file"
        )
    return f"{folder}/{folder_name(label)}/model.safetensors"


def best(folder: str) -> str:
    """Label of the record with the highest PSNR on held-out pictures.

    Raises:
        UserError: if there is none.
    """
    scored: dict[str, float] = {
        recorded["label"]: recorded["scores"]["held-out"]["mean"]["trained"]["psnr_y"]
        for recorded in load(folder)
        if "held-out" in recorded["scores"]
    }
    if not scored:
        raise UserError("no network comes with this package: expected --model FILE.safetensors")
    return max(scored, key=lambda label: scored[label])


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
    model = name if folder == SHIPPED else f"{name}/model.safetensors"
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


def _in_half(url: str, scale: int) -> bytes:
    half = {name: value.half() if value.is_floating_point() else value for name, value in read_weights(url).items()}
    content: bytes = safetensors.torch.save(half, {"format": "pt", "scale": str(scale)})
    return content


def _merged(known: dict[str, Any], measured: dict[str, Any]) -> dict[str, Any]:
    """Scores by set; a set that was measured before is taken anew only with further metrics."""

    def metrics(entry: dict[str, Any]) -> set[str]:
        return set(entry["mean"]["trained"])

    new = {name: _plain(entry) for name, entry in measured.items()}
    return known | {
        name: entry for name, entry in new.items() if name not in known or metrics(entry) > metrics(known[name])
    }


def _plain(entry: dict[str, Any]) -> dict[str, Any]:
    """Scores of a set, without the upscaled pictures and without the places of their files."""
    pictures = [{**picture, "name": _last(picture["name"]), "shown": {}} for picture in entry["pictures"]]
    return {**entry, "pictures": pictures}


def _portable(config: Config) -> dict[str, Any]:
    """The settings, without those of this machine; files by their names alone."""
    settings: dict[str, Any] = config.model_dump(mode="json", exclude={"home", "cache", "tracking", "tune", "cluster"})
    settings["source"] = [_last(source) for source in settings["source"]]
    settings["data"].pop("scratch")
    evaluate, train = settings["evaluate"], settings["train"]
    evaluate["benchmarks"] = {name: _last(source) for name, source in evaluate["benchmarks"].items()}
    for section, key in ((evaluate, "squeezenet"), (train, "init_from"), (train["perceptual"], "weights")):
        section[key] = section[key] and _last(section[key])
    return settings


def _last(place: str) -> str:
    """The last part of an absolute path or of a URL; anything else as it is."""
    return PurePosixPath(place.split("?")[0]).name if "://" in place or place.startswith("/") else place


def _brief(record: tracking.Record) -> tracking.Record:
    """A journal's record without pictures, and without what single workers did."""
    metrics = {
        key: float(f"{value:.{_PRECISION}g}")
        for key, value in record["metrics"].items()
        if not key.startswith("worker_")
    }
    return {**record, "metrics": metrics, "images": {}}


def _machine() -> dict[str, Any]:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    kinds = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": kinds[0] if kinds else platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
    }
