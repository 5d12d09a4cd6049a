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
from pathlib import Path, PurePosixPath
from typing import Any

import psutil
import safetensors.torch

from pipeline import storage, tracking
from pipeline.networks.weights import read_weights
from pipeline.reporting.records import Recorded, find, folder_name, write_card
from pipeline.settings import Config, UserError

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


def conflict(folder: str, label: str) -> UserError:
    """What to say where a record of another training stands."""
    return UserError(
        f"{folder}/{folder_name(label)} holds the record of another training than this cell: expected tune.records to "
        "name another folder, or this record to be deleted"
    )


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
    """Scores of a set, without the upscaled images and without the places of their files."""
    images = [{**image, "name": _last(image["name"]), "shown": {}} for image in entry["images"]]
    return {**entry, "images": images}


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


def _brief(record: tracking.JournalRecord) -> tracking.JournalRecord:
    """A journal's record without images, and without what single workers did."""
    metrics = {
        key: float(f"{value:.{_PRECISION}g}") for key, value in record.metrics.items() if not key.startswith("worker_")
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
