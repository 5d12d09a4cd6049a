"""Versions of a registered model in MLflow, and the alias that the best of them has."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.tracking.mlflow_store import TrackedRun, Tracker

_HELD_OUT, _SCALE = "held_out_images", "scale"
"""Tags of a version that say on what its scores were measured."""


@dataclass(frozen=True)
class ModelVersion:
    """Trained weights that become a version of a registered model."""

    model: str
    """Name of the registered model, which is created if it does not exist."""
    run: TrackedRun
    """The run of the training, which has logged its model; each run has one version."""
    description: str
    """A sentence about the training; the version's description adds its scores and a link to the run."""
    scale: int
    held_out: str
    """Identifies the held-out images and how they are scored. Scores are compared only where it is equal."""
    scores: Mapping[str, float]
    """Scores by their names, which become tags of the version, such as {"held-out/psnr_y": 28.4}."""


def register_version(
    tracker: Tracker, version: ModelVersion, alias: str, metric: str, higher_is_better: bool = True
) -> bool:
    """Register a version, and give it the alias if no version with a score that is as good has it.

    The alias stays where it is if its version was scored on other images or at another scale, because such scores
    cannot be compared. A printed line says so. It moves without a comparison from another version of the same run.

    Args:
        tracker: the connection to MLflow.
        version: the version; it is registered once, and its tags are brought up to date.
        alias: the alias, which one version of the model has at a time.
        metric: the score that decides, a key of `version.scores`.
        higher_is_better: false for a distance.

    Returns:
        True if MLflow accepted it.
    """
    model_id = version.run.find_model()
    if model_id is None:
        storage.report_once(f"MLflow has no model of the run {version.run.id} yet: rerun the command to register it")
        return False

    def register(client: Any) -> None:
        own = _find_or_create(tracker, client, version, model_id)
        tags = {_SCALE: str(version.scale), _HELD_OUT: version.held_out}
        tags |= {name: f"{score:.6g}" for name, score in version.scores.items()}
        for name, value in tags.items():
            client.set_model_version_tag(version.model, own, name, value)
        holder = client.get_registered_model(version.model).aliases.get(alias)
        if holder is not None and str(holder) != own:
            known = client.get_model_version(version.model, holder)
            is_same = known.run_id == version.run.id  # such as that of an earlier release, which MLflow cannot load
            if not is_same and (stays := _why_not_better(tags, known.tags, metric, higher_is_better)):
                print(f"the alias {alias} of the model {version.model} stays at version {holder}: {stays}", flush=True)
                return
        if str(holder) != own:
            client.set_registered_model_alias(version.model, alias, own)
            print(f"models:/{version.model}@{alias} is now version {own}", flush=True)

    return tracker.call(register)


def _find_or_create(tracker: Tracker, client: Any, version: ModelVersion, model_id: str) -> str:
    """Return the number of the version of the run and its model, with an up-to-date description."""
    with contextlib.suppress(*tracker.failures):  # the model exists already
        client.create_registered_model(version.model)
    # MLflow would look for a source models:/ID at its global URI, which the pipeline leaves alone.
    text, source = _describe(client, version), client.get_logged_model(model_id).artifact_location
    versions = client.search_model_versions(f"name = '{version.model}' and run_id = '{version.run.id}'")
    for known in versions:  # those of earlier releases of this pipeline have another source, which MLflow cannot load
        if known.source == source:
            if known.description != text:
                client.update_model_version(version.model, known.version, description=text)
            return str(known.version)
    created = client.create_model_version(
        version.model, source, version.run.id, description=text, await_creation_for=0, model_id=model_id
    )
    return str(created.version)


def _describe(client: Any, version: ModelVersion) -> str:
    """Return the description of a version as Markdown: the training, its scores, and a link to its run."""
    experiment = client.get_run(version.run.id).info.experiment_id
    lines = [f"{version.description} ([run](#/experiments/{experiment}/runs/{version.run.id}))", ""]
    lines += [f"- {name}: {score:.6g}" for name, score in version.scores.items()]
    return "\n".join(lines)


def _why_not_better(tags: Mapping[str, str], known: Mapping[str, str], metric: str, higher_is_better: bool) -> str:
    """Return why a version does not take over the alias, or "" if it is better than the one that has it."""
    if any(tags[name] != known.get(name) for name in (_SCALE, _HELD_OUT)):
        return "it was scored on other images, so the new version cannot be compared with it"
    try:
        own, other = float(tags[metric]), float(known[metric])
    except (KeyError, ValueError):
        return f"the {metric} of one of the two versions is not known"
    if own > other if higher_is_better else own < other:
        return ""
    return f"its {metric} is {other:g}, that of the new version {own:g}"
