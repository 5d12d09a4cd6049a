"""Finished trainings as small folders that a repository can hold.

A record is a folder named by its cell: `model.safetensors` (fp16), `record.json` (configuration, stepped metrics,
scores, what it was made with) and `README.md`, a model card. `restore` makes the training of it again where it is
missing.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import safetensors.torch

from pipeline import pages, storage, tracking
from pipeline.config import Config, UserError
from pipeline.learner import read_weights

SHIPPED = str(Path(__file__).resolve().parent / "models")
"""Folder of the records that come with the package."""

Recorded = dict[str, Any]
"""record.json: "label", "training" (name), "config", "patch_set", "result", "scores", "history", "seconds", "recorded"
(date), "commit", "machine", "versions"."""

_PRECISION = 6
"""Significant digits of stepped metrics."""


def keep(
    folder: str,
    label: str,
    config: Config,
    training: str,
    home: str,
    facts: dict[str, Any],
    scores: dict[str, Any] | None,
) -> None:
    """Write the record of a finished training, or complete it; one that says the same is left as it is.

    Args:
        folder: of all records.
        label: the cell's.
        config: the cell's.
        training: name of the training.
        home: folder of the training.
        facts: "patch_set", "result", "seconds" and "history", as in `Recorded`.
        scores: what `evaluate` returned, once it was measured.

    Raises:
        UserError: if the folder holds another training of this label.
    """
    url = f"{folder}/{folder_name(label)}"
    known = find(folder, label)
    if known and known["training"] != training:
        raise UserError(
            f"{url} holds the record of another training, {known['training']}: expected tune.records to name another "
            "folder, or this record to be deleted"
        )
    if known and (scores is None or known["scores"] is not None):
        return
    if known is None:
        half = {
            name: value.half() if value.is_floating_point() else value
            for name, value in read_weights(f"{home}/model.safetensors").items()
        }
        metadata = {"format": "pt", "scale": str(config.scale)}
        storage.write(f"{url}/model.safetensors", safetensors.torch.save(half, metadata))
    recorded: Recorded = known or {
        "label": label,
        "training": training,
        "config": _portable(config),
        **facts,
        "history": [_brief(record) for record in facts["history"]],
        "scores": None,
        "recorded": datetime.now(UTC).date().isoformat(),
        "commit": tracking.commit(),
        "machine": {"processor": _processor(), "cores": psutil.cpu_count(), "memory_gb": _memory_gb()},
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in ("torch", "ray", "mlflow")},
        },
    }
    if scores:
        recorded["scores"] = {name: _plain(entry) for name, entry in scores["sets"].items()}
    lines = json.dumps(recorded, indent=1, ensure_ascii=False)
    storage.write(f"{url}/record.json", f"{lines}\n".encode())
    storage.write(f"{url}/README.md", card(recorded, config.tune.note).encode())


def restore(folder: str, label: str, training: str, home: str) -> bool:
    """Make the folder of a training from its record, if that is there and whole; whether it was."""
    recorded = find(folder, label)
    url = f"{folder}/{folder_name(label)}/model.safetensors"
    if recorded is None or recorded["training"] != training or storage.read(url) is None:
        return False
    weights = {name: value.float() if value.is_floating_point() else value for name, value in read_weights(url).items()}
    metadata = {"format": "pt", "scale": str(recorded["config"]["scale"])}
    storage.write(f"{home}/model.safetensors", safetensors.torch.save(weights, metadata))
    write_history(recorded, home)
    return True


def write_history(recorded: Recorded, home: str) -> None:
    """Make the journal and the result of a training from its record."""
    journal = "".join(json.dumps(record) + "\n" for record in recorded["history"])
    storage.write(f"{home}/journal/000000000-0.jsonl", journal.encode())
    storage.write_json(f"{home}/result.json", recorded["result"])


def find(folder: str, label: str) -> Recorded | None:
    """The record of a cell, if there is one."""
    recorded: Recorded | None = storage.read_json(f"{folder}/{folder_name(label)}/record.json")
    return recorded


def load(folder: str) -> list[Recorded]:
    """All records of a folder."""
    found = [storage.read_json(f"{folder}/{name}/record.json") for name in labels(folder)]
    return [recorded for recorded in found if recorded]


def labels(folder: str) -> list[str]:
    """Names of the records' folders."""
    return [name for name in storage.names(folder) if not name.startswith(".")]


def weights(folder: str, label: str) -> str:
    """Path or URL of a record's weights.

    Raises:
        UserError: if there is no such record.
    """
    known = labels(folder)
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
        if recorded["scores"]
    }
    if not scored:
        raise UserError("no network comes with this package: expected --model FILE.safetensors")
    return max(scored, key=lambda label: scored[label])


def folder_name(label: str) -> str:
    """Of a cell's record: "nobn·mse" becomes "nobn-mse"."""
    return storage.plain_name(label.replace("·", "-"))


def card(recorded: Recorded, note: str) -> str:
    """The model card, Markdown."""
    return pages.render("card.md.j2", r=recorded, note=note, name=folder_name(recorded["label"]))


def _portable(config: Config) -> dict[str, Any]:
    """The settings, without those of this machine; files by their names alone."""
    settings: dict[str, Any] = config.model_dump(mode="json", exclude={"home", "cache", "tracking", "tune", "cluster"})
    settings["source"] = [Path(source).name for source in settings["source"]]
    settings["data"].pop("scratch")
    evaluate, train = settings["evaluate"], settings["train"]
    evaluate["benchmarks"] = {name: Path(source).name for name, source in evaluate["benchmarks"].items()}
    places = ((evaluate, "squeezenet"), (train, "init_from"), (train["perceptual"], "weights"))
    for section, key in places:
        section[key] = section[key] and Path(section[key]).name
    return settings


def _brief(record: tracking.Record) -> tracking.Record:
    """A journal's record without pictures, and without what single workers did."""
    metrics = {
        key: float(f"{value:.{_PRECISION}g}")
        for key, value in record["metrics"].items()
        if not key.startswith("worker_")
    }
    return {**record, "metrics": metrics, "images": {}}


def _plain(entry: dict[str, Any]) -> dict[str, Any]:
    """Scores of a set, without the upscaled pictures."""
    return {**entry, "pictures": [{**picture, "shown": {}} for picture in entry["pictures"]]}


def _processor() -> str:
    lines = storage.read("/proc/cpuinfo") or b""
    names = [line.partition(":")[2].strip() for line in lines.decode().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_gb() -> float:
    return round(psutil.virtual_memory().total / 2**30, 1)
