"""Write finished trainings as records, and restore trainings from records."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import PurePosixPath

from pydantic import JsonValue

from pipeline import storage, tracking
from pipeline.data.patchset import PatchSet
from pipeline.evaluation.scores import Scores, SetScores
from pipeline.networks.weights import read_weights, serialise
from pipeline.reporting import cards, records
from pipeline.reporting.records import Part, PatchSetCounts, TrainingRecord, Variant
from pipeline.settings import Config, UserError
from pipeline.settings.grid import Moments
from pipeline.storage import redact
from pipeline.training import portable, runs
from pipeline.training.checkpoints import Checkpoints
from sr_model.networks.settings import RefinerSettings

_STATE = "state"
"""Folder of a record with the state of an unfinished training, in the form of a checkpoint."""

_PLAN, _BEST = "plan.json", "best.safetensors"
"""Files of a training's folder that the state holds, too: the plan, and the weights of the best validation so far."""

_SAME_PSNR = 0.05
"""dB by which the same weights may differ between two machines."""

_PRECISION = 6
"""Significant digits of the metrics in a record's history."""


def new_record(label: str, config: Config, patch_set: PatchSet, trained: runs.Trained) -> TrainingRecord:
    """Describe a finished training as a record, without scores.

    Args:
        label: label of the cell.
        config: settings of the cell.
        patch_set: the patch set that it trained on.
        trained: the finished training.
    """
    return TrainingRecord(
        label=label,
        training=trained.name,
        identity=runs.identify(config, patch_set.name),
        config=_portable(config),
        patch_set=PatchSetCounts(
            images=patch_set.manifest.totals.trained,
            held_out=patch_set.held_out,
            tiles=patch_set.tiles,
        ),
        result=trained.result,
        seconds=trained.seconds,
        history=[_shortened(record) for record in trained.history()],
        scores={},
        note=config.tune.note,
        recorded=datetime.now(UTC).date().isoformat(),
        commit=tracking.commit() or "unknown",
        machine=trained.result.machine or tracking.this_machine(),
        versions={
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in ("torch", "ray", "mlflow")},
            **trained.result.versions,
        },
    )


def save(folder: str, record: TrainingRecord, weights: str, scores: Scores | None = None) -> None:
    """Write a record, or add new scores to the one that is there.

    The record of a part is replaced by that of a later part or of the whole training, which keeps the list of parts.

    Args:
        folder: path or URL of all records.
        record: the record to write.
        weights: path or URL of the training's weights.
        scores: scores of these weights, if they were measured.

    Raises:
        UserError: if the folder holds the record of another training under this label.
        DamagedFileError: if the record in the folder is damaged.
    """
    known = records.read(folder, record.label)
    if known and not (_is_part_of(known, record) or known.identity == record.identity):
        raise conflict(folder, record.label)
    url = f"{folder}/{records.folder_name(record.label)}"
    base = known
    ends = known is not None and known.planned_steps is not None and record.planned_steps is None
    if known is None or ends or (known.planned_steps is not None and record.result.steps > known.result.steps):
        in_parts = known or record.planned_steps is not None
        base = _with_part(record, known.parts if known else []) if in_parts else record
        storage.write(f"{url}/model.safetensors", _in_half(weights, records.configuration(record).scale))
    assert base
    complete = replace(base, scores=_merged(base.scores, scores.sets if scores else {}))
    if complete.planned_steps is not None:
        means = {name: entry.mean["trained"] for name, entry in complete.scores.items()}
        complete = replace(complete, parts=[*complete.parts[:-1], replace(complete.parts[-1], scores=means)])
    if complete != known:
        storage.write_document(f"{url}/record.json", complete)
        cards.write_card(folder, complete)
    if complete.planned_steps is None:
        storage.remove(f"{url}/{_STATE}")


def save_part(folder: str, record: TrainingRecord, weights: str, home: str, moments: Moments) -> bool:
    """Write the record of a part of a training, with the state from which the training resumes.

    Args:
        folder: path or URL of all records.
        record: the record to write.
        weights: path or URL of the weights so far.
        home: path or URL of the training's folder.
        moments: precision of the kept moments.

    Returns:
        False if the record in the folder is as far, or the training has no whole checkpoint of this step.

    Raises:
        UserError: if the folder holds the record of another training under this label.
        DamagedFileError: if the record in the folder is damaged.
    """
    known = records.read(folder, record.label)
    if known and not _is_part_of(known, record):
        raise conflict(folder, record.label)
    found = Checkpoints(f"{home}/checkpoints", 1).restore()
    as_far = known is not None and known.result.steps >= record.result.steps
    if as_far or found is None or found[1].step != record.result.steps:
        return False
    files, state = found
    beside = {name: content for name in (_PLAN, _BEST) if (content := storage.read(f"{home}/{name}")) is not None}
    kept = Checkpoints(_state(folder, record.label), 1)
    kept.save({**portable.pack(files, moments), **beside}, state)
    kept.wait()
    save(folder, record, weights)
    return True


def go_on(folder: str, record: TrainingRecord, home: str, grows: bool = False) -> int | None:
    """Bring the state of a record into the folder of a training, unless that training is as far.

    Args:
        folder: path or URL of all records.
        record: the record of a part of the training, or of one that begins with the same steps.
        home: path or URL of the training's folder.
        grows: whether the training is longer than that of the record, so that it needs another plan.

    Returns:
        The step from which the training resumes; None if nothing was done.

    Raises:
        UserError: if the record has no state, or that of another step.
        DamagedFileError: if the state cannot be used.
    """
    own = Checkpoints(f"{home}/checkpoints", 1)
    mine = own.restore()
    if runs.open_training(home) or (mine is not None and mine[1].step >= record.result.steps):
        return None
    place = _state(folder, record.label)
    found = Checkpoints(place, 1).restore()
    if found is None:
        raise UserError(
            f"{place} holds no whole state, although the record {record.label} is that of a part of a training: "
            "restore it, such as from version control, or delete the record to train from the start"
        )
    files, state = found
    if state.step != record.result.steps:
        raise UserError(
            f"{place} holds the state of step {state.step}, but the record {record.label} is of step "
            f"{record.result.steps}: restore both, such as from version control"
        )
    beside = {name: files.pop(name) for name in (_PLAN, _BEST) if name in files}
    unpacked = portable.unpack(files)
    for name in ("checkpoints", "journal", _PLAN, _BEST):  # of fewer steps of the same training
        storage.remove(f"{home}/{name}")
    _write_history(home, record)
    for name, content in beside.items():
        if not (grows and name == _PLAN):
            storage.write(f"{home}/{name}", content)
    own.save(unpacked, state if _BEST in beside else replace(state, best=None))
    own.wait()
    return state.step


def _state(folder: str, label: str) -> str:
    return f"{folder}/{records.folder_name(label)}/{_STATE}"


def _is_part_of(known: TrainingRecord, record: TrainingRecord) -> bool:
    """Tell whether a record is that of a part, with which the training of another record begins."""
    if known.planned_steps is None:
        return False
    config, patch_set = records.configuration(record), str(record.identity["patch_set"])
    return known.identity == record.identity or runs.continues(
        known.identity, records.configuration(known), known.result.steps, config, patch_set
    )


def _with_part(record: TrainingRecord, known: Sequence[Part]) -> TrainingRecord:
    """Return the record of a training with its parts: the known ones, and what came after them."""
    last = Part(
        steps=record.result.steps,
        seconds=max(record.seconds - sum(part.seconds for part in known), 0.0),
        threads=record.threads if record.result.device == "cpu" else 0,
        gpus=record.result.workers if record.result.device == "cuda" else 0,
        precision=record.result.precision,
        scores={},
        recorded=record.recorded,
        commit=record.commit,
        machine=record.machine,
    )
    return replace(record, parts=[*known, last])


def add_variants(folder: str, label: str, scores: Scores) -> int:
    """Add the variants among scores to the record of a label; a variant that is there is scored on further sets.

    Args:
        folder: path or URL of all records.
        label: label of the record.
        scores: scores of `pipeline.interpolate` or of `pipeline.evaluate --steps`.

    Returns:
        Number of variants among the scores.

    Raises:
        UserError: if there is no such record, the scores have no variant, or they belong to another model.
        DamagedFileError: if the record is damaged.
    """
    record = records.read(folder, label)
    if record is None:
        raise UserError(f"{folder} has no record {label}, expected one of {', '.join(records.names(folder))}")
    found = records.read_variants(scores)
    if not found:
        raise UserError(
            "the scores have neither shares nor steps, expected those of pipeline.interpolate --sets or of "
            "pipeline.evaluate --steps"
        )
    merged = {variant.name: variant for variant in record.variants}
    model = records.configuration(record).model
    own_steps = model.steps if isinstance(model, RefinerSettings) else None
    for variant in found:
        if variant.dial == "steps":
            if own_steps is None:
                raise UserError(f"the model of the record {label} does not draw images in steps")
            if variant.value == own_steps:
                _check_same(record, variant)
        known = merged.get(variant.name, variant)
        merged[variant.name] = replace(variant, scores={**known.scores, **variant.scores})
    ordered = sorted(merged.values(), key=lambda variant: (variant.dial, variant.value))
    storage.write_document(f"{folder}/{records.folder_name(label)}/record.json", replace(record, variants=ordered))
    return len(found)


def _check_same(record: TrainingRecord, variant: Variant) -> None:
    """Raise a UserError if a variant with the record's own number of steps has other scores than the record."""
    for name, metrics in variant.scores.items():
        if name in record.scores:
            known = record.scores[name].mean["trained"]["psnr_y"]
            if abs(metrics["psnr_y"] - known) > _SAME_PSNR:
                raise UserError(
                    f"after {variant.name}, {name} has {metrics['psnr_y']:.2f} dB, and {known:.2f} dB in the record "
                    f"{record.label}: expected scores of the recorded model"
                )


def restore(folder: str, record: TrainingRecord, home: str) -> bool:
    """Recreate the folder of a training from its record.

    Args:
        folder: path or URL of all records.
        record: the record of the training.
        home: path or URL of the training's folder.

    Returns:
        False if the record has no weights or is that of a part, so nothing was written.

    Raises:
        UserError: if the weights cannot be read.
    """
    url = records.weights(folder, record.label)
    if record.planned_steps is not None or not storage.exists(url):
        return False
    weights = {name: value.float() if value.is_floating_point() else value for name, value in read_weights(url).items()}
    storage.write(f"{home}/model.safetensors", serialise(weights, records.configuration(record).scale))
    _write_history(home, record)
    storage.write(f"{home}/config.yaml", records.configuration(record).to_yaml().encode())
    storage.write_document(f"{home}/result.json", record.result)
    return True


def _write_history(home: str, record: TrainingRecord) -> None:
    journal = "".join(json.dumps(asdict(line)) + "\n" for line in record.history)
    storage.write(f"{home}/journal/000000000-0.jsonl", journal.encode())


def conflict(folder: str, label: str) -> UserError:
    """Return the error for a folder that holds the record of another training under a label."""
    return UserError(
        f"{folder}/{records.folder_name(label)} holds the record of another training than this cell: expected "
        "tune.records to name another folder, or this record to be deleted"
    )


def _in_half(url: str, scale: int) -> bytes:
    half = {name: value.half() if value.is_floating_point() else value for name, value in read_weights(url).items()}
    return serialise(half, scale)


def _merged(known: Mapping[str, SetScores], measured: Mapping[str, SetScores]) -> dict[str, SetScores]:
    """Add the scores of new sets; the scores of a known set are replaced only by ones with further metrics."""

    def metrics(entry: SetScores) -> set[str]:
        return set(entry.mean["trained"])

    new = {
        name: _portable_scores(entry)
        for name, entry in measured.items()
        if name not in known or metrics(entry) > metrics(known[name])
    }
    return {**known, **new}


def _portable_scores(entry: SetScores) -> SetScores:
    """Leave out the enlarged images and the places of files."""
    return replace(entry, images=[replace(image, name=_file_name(image.name), shown={}) for image in entry.images])


def _portable(config: Config) -> dict[str, JsonValue]:
    """Return the settings without those of this machine, and files by their names alone."""
    settings = config.model_dump(mode="json", exclude={"home", "cache", "log_format", "tracking", "tune", "cluster"})
    del settings["data"]["scratch"]
    return {key: _without_folders(value) for key, value in settings.items()}


def _without_folders(value: JsonValue) -> JsonValue:
    if isinstance(value, dict):
        return {key: _without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_folders(entry) for entry in value]
    return _file_name(value) if isinstance(value, str) else value


def _file_name(text: str) -> str:
    """Return the last part of an absolute path or of a URL, and any other text unchanged."""
    plain = redact(text).split("?")[0]
    return PurePosixPath(plain).name if "://" in text or text.startswith("/") else text


def _shortened(record: tracking.JournalRecord) -> tracking.JournalRecord:
    """Leave out images and the metrics of single workers, and round the others."""
    metrics = {
        key: float(f"{value:.{_PRECISION}g}") for key, value in record.metrics.items() if not key.startswith("worker_")
    }
    return replace(record, metrics=metrics, images={})
