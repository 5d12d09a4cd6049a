"""Model cards, and the sentences about a training that cards and the results page share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.evaluation.tables import common_metrics, format_value
from pipeline.networks import bundled
from pipeline.reporting import pages, records
from pipeline.reporting.records import TrainingRecord
from pipeline.settings import Config, architecture
from pipeline.settings.methods import DEFAULT_METHOD
from sr_model.terms import TERMS

_COLUMNS = ("psnr_y", "ssim_y", "psnr_rgb", "distance")
"""Metrics that every card has columns for. Records of earlier versions have no other metrics."""


def write_card(folder: str, record: TrainingRecord) -> None:
    """Write the model card of a record beside it."""
    name = records.folder_name(record.label)
    card = model_card(record, records.initial_record(folder, record), f"{name}/model.safetensors", "`record.json`")
    storage.write(f"{folder}/{name}/README.md", card.encode())


def write_cards(folder: str, found: Sequence[TrainingRecord]) -> None:
    """Write the model cards of records, and those of the bundled models whose weights a record has.

    Args:
        folder: path or URL of the records.
        found: the records.
    """
    for record in found:
        write_card(folder, record)
    for name in bundled.names():
        if card := bundled_card(folder, name):
            Path(bundled.weights(name)).with_name("README.md").write_text(card)


def bundled_card(folder: str, name: str) -> str | None:
    """Return the model card of a bundled model, or None if no record has the same weights.

    Args:
        folder: path or URL of the records.
        name: name of the bundled model.
    """
    sha256 = hashlib.sha256(Path(bundled.weights(name)).read_bytes()).hexdigest()
    record = records.with_weights(folder, sha256)
    if record is None:
        return None
    below = folder.partition("docs/results")[2]
    place = f"`docs/results{below}/{records.folder_name(record.label)}/record.json` in the project's repository"
    return model_card(record, records.initial_record(folder, record), name, place)


def model_card(record: TrainingRecord, initial: TrainingRecord | None, model: str, place: str) -> str:
    """Return a model card as Markdown.

    Args:
        record: the training.
        initial: the record whose weights it started from, if any.
        model: argument of `--model` for the example command.
        place: where the reader finds record.json, as Markdown.
    """
    config = records.configuration(record)
    return pages.render(
        "card.md.j2",
        record=record,
        config=config,
        initial=initial,
        model=model,
        place=place,
        title=architecture(config.model).title,
        network=describe_network(config),
        objective=describe_objective(config),
        further={key: label for key, label in common_metrics([record.scores]).items() if key not in _COLUMNS},
        formatted=format_value,
    )


def describe_network(*configs: Config) -> str:
    """Return the network with the settings that all configurations share: "SRResNet (channels 64, blocks 16)"."""
    facts = [config.model.facts for config in configs]
    shared = {key: value for key, value in facts[0].items() if all(others.get(key) == value for others in facts)}
    *others, last = dict.fromkeys(architecture(config.model).title for config in configs)
    titles = f"{', '.join(others)} and {last}" if others else last
    return f"{titles} ({_listed(shared)})"


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_value(value)}" for key, value in settings.items())


def _value(value: Any) -> str:
    if isinstance(value, dict):  # a network inside
        return f"{value['name']} ({_listed({key: inner for key, inner in value.items() if key != 'name'})})"
    return str(value).lower() if isinstance(value, bool) else str(value)


def describe_objective(config: Config) -> str:
    """Return the weighted terms of the objective, such as "1 l1 + 0.02 perceptual (conv2_2 of vgg19)".

    The name of the method follows, unless it is the default.
    """
    terms = " + ".join(_describe_term(config, name, weight) for name, weight in config.train.loss.items())
    return terms if config.train.method == DEFAULT_METHOD else f"{terms}, with the method {config.train.method}"


def _describe_term(config: Config, name: str, weight: float) -> str:
    kind, settings = TERMS[name], config.train.term_settings(name)
    pretrained, start = kind.pretrained(settings), kind.start(settings)
    details = [f"{' and '.join(pretrained.part)} of {pretrained.network}"] if pretrained else []
    details += [f"from {100 * start:.0f} % of the steps on"] if start else []
    return f"{weight:g} {name}" + (f" ({', '.join(details)})" if details else "")
