"""The variants of a grid: the configuration with every combination of the values on its axes, under short labels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.settings import Config, UserError, with_values
from pipeline.settings.grid import Tune

_DISTRIBUTIONS = ("uniform", "loguniform", "randint", "lograndint", "choice")
"""Names of the distributions in `ray.tune` that a setting can be drawn from."""


@dataclass(frozen=True)
class Variant:
    """One variant of the configuration."""

    label: str
    """Short name made of its values, such as "nobn·perceptual"."""
    config: Config


@dataclass(frozen=True)
class _Value:
    """One value on an axis of the grid."""

    key: str
    """Dotted key of the setting."""
    label: str
    value: Any


def list_variants(config: Config) -> list[Variant]:
    """Combine the values on the axes of `tune.grid`, draw those of `tune.sample`, and add the cells of `tune.also`.

    The order and the drawn values depend only on the configuration; `train.seed` seeds the draws.

    Raises:
        UserError: for a key that is not a setting, a value that a setting does not accept, or labels that are not
            distinct.
    """
    settings = config.tune
    # A cell is not a grid itself, but its records need these settings.
    own = Tune(grid={}, records=settings.records, new_records=settings.new_records, note=settings.note)
    plain = {"tune": own.model_dump()}
    variants = []
    rng = np.random.RandomState(config.train.seed)
    for point in itertools.product(*_axes(settings)):
        labels: set[str] = set()
        for _ in range(settings.samples if settings.sample else 1):
            drawn = list(_draw_values(settings, rng))
            label = "·".join(value.label for value in (*point, *drawn))
            if label not in labels:  # the same value may be drawn twice
                values = {value.key: value.value for value in (*point, *drawn)}
                variants.append(Variant(label or config.name, with_values(config, {**values, **plain})))
            labels.add(label)
    for label, values in settings.also.items():
        variants.append(Variant(label, with_values(config, {**values, **plain})))
    _check_labels(variants)
    return variants


def _axes(settings: Tune) -> list[list[_Value]]:
    axes = []
    for key, values in settings.grid.items():
        labeled = values.items() if isinstance(values, dict) else [(_label(key, value), value) for value in values]
        if not labeled:
            raise UserError(f"tune.grid.{key} is empty, expected at least one value")
        axes.append([_Value(key, label, value) for label, value in labeled])
    return axes


def _draw_values(settings: Tune, rng: np.random.RandomState) -> Iterator[_Value]:
    for key, distribution in settings.sample.items():
        value = _draw(key, distribution, rng)
        yield _Value(key, _label(key, value), value)


def _draw(key: str, distribution: dict[str, list[Any]], rng: np.random.RandomState) -> Any:
    """Draw a value from a distribution such as {"uniform": [0, 1]}."""
    name, arguments = next(iter(distribution.items())) if len(distribution) == 1 else ("", [])
    if name not in _DISTRIBUTIONS:
        raise UserError(
            f"tune.sample.{key} is {distribution}, expected one of {', '.join(_DISTRIBUTIONS)} with its arguments"
        )
    import ray.tune  # here, because it takes seconds and most mistakes are found without it

    try:
        drawn = getattr(ray.tune, name)(*([arguments] if name == "choice" else arguments)).sample(random_state=rng)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"tune.sample.{key} is {distribution}: {error}") from None
    return drawn.item() if isinstance(drawn, np.generic) else drawn


def _label(key: str, value: Any) -> str:
    """Label a value, such as "nobn", "mse+tv" or "lr=0.001"."""
    if key == "model.batch_norm":
        return "bn" if value else "nobn"
    if key == "model.name":
        return str(value)
    if isinstance(value, dict):
        return "+".join(value)
    name = key.rpartition(".")[2]
    return f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}"


def _check_labels(variants: list[Variant]) -> None:
    """Require labels that can be printed in a line, and that stay distinct in the names of folders."""
    for label in (variant.label for variant in variants):
        if not label.strip() or not label.isprintable():
            raise UserError(f"a cell has the name {label!r}, expected a name that can be printed in a line")
    from pipeline.reporting import records  # here, because it imports torch and most mistakes are found without it

    names = [records.folder_name(variant.label) for variant in variants]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"several cells would be called {', '.join(twice)}: expected different values, or names for them such as "
            'tune.grid={"train.loss": {"NAME": {"mse": 1.0}}}, that differ in letters or digits'
        )
