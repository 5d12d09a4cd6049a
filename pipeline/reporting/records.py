"""Records of trainings, finished or in part: small folders that a repository can hold.

The folder of a record is named after its label and holds `model.safetensors` (fp16), `record.json` (a
`TrainingRecord`) and `README.md`, the model card. `pipeline.grid.records` writes records.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, JsonValue, ValidationError

from pipeline import storage
from pipeline.evaluation.scores import Metrics, Scores, SetScores
from pipeline.settings import Config, UserError, explain
from pipeline.tracking import JournalRecord, Machine, TrainingResult

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
"""A name that is safe as the last part of a path."""


@dataclass(frozen=True)
class PatchSetCounts:
    """The size of the patch set that a training used."""

    images: int
    """Images with at least one training tile."""
    held_out: int
    """Held-out images."""
    tiles: int
    """Training tiles."""


@dataclass(frozen=True)
class Variant:
    """The scores of a model at one position of its dial, such as a share of another model or a number of steps."""

    name: str
    """Such as "alpha 0.2" or "4 steps"."""
    dial: str
    """"alpha" or "steps"."""
    value: float
    scores: dict[str, Metrics]
    """Mean scores by the name of the set."""


@dataclass(frozen=True)
class Part:
    """A part of a training that was made in parts, from the end of the part before to its own."""

    steps: int
    """Number of finished steps at its end."""
    seconds: float
    """Seconds of this part."""
    threads: int
    """CPU threads, all workers together; 0 on GPUs."""
    precision: str
    """Precision of the forward and backward pass."""
    scores: dict[str, Metrics]
    """Mean scores at its end by the name of the set; empty for the last part of a finished training, whose scores are
    those of the record."""
    recorded: str
    """Date of its end, ISO 8601."""
    commit: str
    """Commit of the code that trained."""
    machine: Machine
    gpus: int = 0
    """GPUs; 0 on CPUs."""


_DIALS = {
    "alpha": re.compile(r"(?:^|, )(alpha (\d+(?:\.\d+)?))(?=$|,| \()"),
    "steps": re.compile(r"(?:^|, )((\d+) steps?)(?=$|,| \()"),
}
"""Names of variants in the scores of `pipeline.interpolate` and of `pipeline.evaluate --steps`, by dial."""


def read_variants(scores: Scores) -> list[Variant]:
    """Return the variants among the methods of scores, whose names have the position of a dial.

    Raises:
        UserError: if several methods of a set have the same position, or a method had other options that change scores.
    """
    found: dict[str, Variant] = {}
    for set_name, entry in scores.sets.items():
        for method, metrics in entry.mean.items():
            for dial, pattern in _DIALS.items():
                match = pattern.search(method)
                if not match:
                    continue
                if method[match.end() :] not in ("", ", euler"):
                    raise UserError(
                        f"the scores of {set_name} have '{method}', expected those of one model without further "
                        f"options, such as '{method[: match.end()]}'"
                    )
                name = match[1]
                variant = found.setdefault(name, Variant(name, dial, float(match[2]), {}))
                if set_name in variant.scores:
                    raise UserError(f"the scores of {set_name} have {name} several times: expected those of one model")
                variant.scores[set_name] = metrics
    return sorted(found.values(), key=lambda variant: (variant.dial, variant.value))


_REMEDY = "restore it, such as from version control, or delete its folder"


def _check_identity(identity: dict[str, JsonValue]) -> dict[str, JsonValue]:
    if not isinstance(identity.get("patch_set"), str) or "algorithm" not in identity:
        raise ValueError("patch_set or algorithm is missing")
    if not isinstance(identity.get("train"), dict):
        raise ValueError("train is missing")
    return identity


def _check_scores(scores: dict[str, SetScores]) -> dict[str, SetScores]:
    for name, entry in scores.items():
        for metrics in (entry.mean, *(image.scores for image in entry.images)):
            for method in ("bicubic", "trained"):
                if not {"psnr_y", "ssim_y", "psnr_rgb"} <= metrics.get(method, {}).keys():
                    raise ValueError(f"the set {name} lacks scores of the method {method}")
    return scores


def _check_versions(versions: dict[str, str]) -> dict[str, str]:
    if not {"torch", "ray"} <= versions.keys():
        raise ValueError("the version of torch or ray is missing")
    return versions


@dataclass(frozen=True)
class TrainingRecord:
    """A training, finished or in part: how it was run, and what came of it. This is the content of record.json."""

    __pydantic_config__ = ConfigDict(ser_json_inf_nan="constants")

    label: Annotated[str, Field(min_length=1)]
    """Label of the grid's cell, such as "nobn·mse"."""
    training: Name
    """Name of the training."""
    identity: Annotated[dict[str, JsonValue], AfterValidator(_check_identity)]
    """Everything that shapes the weights, files by their content."""
    config: dict[str, JsonValue]
    """The settings without those of the machine, files by their names alone."""
    patch_set: PatchSetCounts
    result: TrainingResult
    seconds: float
    """Seconds of training, all sessions together."""
    history: list[JournalRecord]
    """The journal without images and without the metrics of single workers."""
    scores: Annotated[dict[str, SetScores], AfterValidator(_check_scores)]
    """Scores by the name of the set; empty until the weights are scored."""
    note: str
    """Origin and terms of the training images, for the model card."""
    recorded: str
    """Date of the record, ISO 8601."""
    commit: str
    """Commit of the code that trained."""
    machine: Machine
    versions: Annotated[dict[str, str], AfterValidator(_check_versions)]
    """Versions of Python and of the packages that matter, by name."""
    variants: list[Variant] = field(default_factory=list)
    """Further scores of the same weights: mixed with another model, or with other numbers of steps."""
    planned_steps: int | None = None
    """Steps of the whole training, if these weights are those of a part; None if the training is finished."""
    parts: list[Part] = field(default_factory=list)
    """The parts so far, if the training was made in parts."""

    @property
    def threads(self) -> int:
        """CPU threads of the training, all workers together."""
        return self.result.threads * self.result.workers

    @property
    def hardware(self) -> str:
        """Name what trained, such as "1 of 2 cores (AMD EPYC)" or "1 GPU (NVIDIA H200 with 150 GB)"."""
        if self.result.device == "cpu":
            return f"{self.threads} of {self.machine.cores} cores ({self.machine.processor})"
        count = f"{self.result.workers} GPU{'s' if self.result.workers > 1 else ''}"
        return f"{count} ({self.machine.accelerator})" if self.machine.accelerator else count


def read(folder: str, label: str) -> TrainingRecord | None:
    """Return the record of a label, or None if the folder has none.

    Raises:
        DamagedFileError: if it is damaged.
    """
    return _read(folder, folder_name(label))


def read_all(folder: str) -> list[TrainingRecord]:
    """Return all records of a folder, sorted by the names of their folders.

    Raises:
        DamagedFileError: if one is damaged.
    """
    found = (_read(folder, name) for name in names(folder))
    return [record for record in found if record]


def names(folder: str) -> list[str]:
    """Return the names of the records' folders, sorted."""
    return [name for name in storage.names(folder) if storage.exists(f"{folder}/{name}/record.json")]


def weights(folder: str, label: str) -> str:
    """Return the path or URL of a record's weights."""
    return f"{folder}/{folder_name(label)}/model.safetensors"


def folder_name(label: str) -> str:
    """Turn a cell's label into the name of its record's folder: "nobn·mse" becomes "nobn-mse"."""
    return storage.plain_name(label.replace("·", "-")).replace(".", "_")


def with_weights(folder: str, sha256: str) -> TrainingRecord | None:
    """Return the record whose weights file has this checksum, if there is one."""
    for name in names(folder):
        content = storage.read(f"{folder}/{name}/model.safetensors")
        if content is not None and hashlib.sha256(content).hexdigest() == sha256:
            return _read(folder, name)
    return None


def _read(folder: str, name: str) -> TrainingRecord | None:
    return storage.read_document(f"{folder}/{name}/record.json", TrainingRecord, _REMEDY)


EARLIER = "first-edition"
"""Folder of the records of the first edition, below the folder of the records or beside it."""


def earlier_label(label: str) -> str:
    """Return the label of a record of the first edition, as it is called beside later ones."""
    return f"{label}, first edition"


def initial_record(folder: str, record: TrainingRecord) -> TrainingRecord | None:
    """Return the record whose weights a training started from, if the folder or the first edition has it."""
    train = record.identity["train"]
    start = train.get("init_from") if isinstance(train, dict) else None
    if not isinstance(start, str):
        return None
    if known := with_weights(folder, start):
        return known
    earlier = (with_weights(f"{place}/{EARLIER}", start) for place in (folder, folder.rpartition("/")[0]))
    known = next((record for record in earlier if record), None)
    return known and dataclasses.replace(known, label=earlier_label(known.label))


def configuration(record: TrainingRecord, **more: Any) -> Config:
    """Return the settings of a record.

    Args:
        record: the record.
        more: further sections or values by name, such as `home`.

    Raises:
        UserError: if this version of the pipeline does not know the settings.
    """
    try:
        return Config(**{**record.config, **more})
    except ValidationError as error:
        raise UserError(f"the record {record.label} is of another version: {explain(error)}") from None


def provenance(record: TrainingRecord) -> dict[str, str]:
    """Return tags for an MLflow run that say where and when a training was recorded."""
    return {
        "mlflow.source.git.commit": record.commit,
        "sr.recorded": record.recorded,
        "sr.machine": json.dumps(dataclasses.asdict(record.machine)),
        "sr.versions": json.dumps(record.versions),
    }
