"""Versions of a registered model in MLflow, and the alias that the best of them has."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.tracking.mlflow_store import TrackedRun, Tracker

_HELD_OUT, _SCALE = "held_out_images", "scale"
"""Tags of a version that say on what its scores were measured."""


@dataclass(frozen=True)
class ModelVersion:
    """Trained weights that become a version of a registered model."""

    model: str
    """Name of the registered model, which is created if it does not exist."""
    run: TrackedRun
    """The run that has the weights as an artifact; each run has one version."""
    path: str
    """The artifact's path in the run."""
    description: str
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
    cannot be compared. A printed line says so.

    Args:
        tracker: the connection to MLflow.
        version: the version; it is registered once, and its tags are brought up to date.
        alias: the alias, which one version of the model has at a time.
        metric: the score that decides, a key of `version.scores`.
        higher_is_better: false for a distance.

    Returns:
        True if MLflow accepted it.
    """

    def register(client: Any) -> None:
        own = _find_or_create(tracker, client, version)
        tags = {_SCALE: str(version.scale), _HELD_OUT: version.held_out}
        tags |= {name: f"{score:.6g}" for name, score in version.scores.items()}
        for name, value in tags.items():
            client.set_model_version_tag(version.model, own, name, value)
        holder = client.get_registered_model(version.model).aliases.get(alias)
        if holder is not None and str(holder) != own:
            known = client.get_model_version(version.model, holder).tags
            stays = _why_not_better(tags, known, metric, higher_is_better)
            if stays:
                print(f"the alias {alias} of the model {version.model} stays at version {holder}: {stays}", flush=True)
                return
        client.set_registered_model_alias(version.model, alias, own)

    return tracker.call(register)


def _find_or_create(tracker: Tracker, client: Any, version: ModelVersion) -> str:
    """Return the number of the run's version."""
    with contextlib.suppress(*tracker.failures):  # the model exists already
        client.create_registered_model(version.model)
    found = client.search_model_versions(f"name = '{version.model}' and run_id = '{version.run.id}'")
    if found:
        return str(found[0].version)
    source = f"runs:/{version.run.id}/{version.path}"
    created = client.create_model_version(
        version.model, source, version.run.id, description=version.description, await_creation_for=0
    )
    return str(created.version)


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
    return f"its {metric} is {other:g}, that of the best new cell {own:g}"
