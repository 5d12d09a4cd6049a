"""Settings of the network: a union of the settings of all networks, told apart by `model.name`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Discriminator, Tag

from sr_model.networks import ARCHITECTURES, DEFAULT, Architecture, NetworkSettings


def _name(value: Any) -> str | None:
    """Read the name of the network off unvalidated settings, where the default need not be named."""
    if isinstance(value, dict):
        name = value.get("name", DEFAULT)
        return name if isinstance(name, str) else None
    return getattr(value, "name", None)


if TYPE_CHECKING:
    Model = NetworkSettings
elif len(ARCHITECTURES) == 1:
    Model = ARCHITECTURES[DEFAULT].settings
else:
    Model = Annotated[
        Union[tuple(Annotated[entry.settings, Tag(entry.name)] for entry in ARCHITECTURES.values())],  # noqa: UP007
        Discriminator(_name),
    ]


def known_settings(name: str) -> dict[str, Any]:
    """Default settings of a network as a mapping; only the name if there is no such network."""
    entry = ARCHITECTURES.get(name)
    return {"name": name} if entry is None else entry.settings().model_dump()  # type: ignore[call-arg]


def settings_for(name: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that stay if a section of the model gets another network: those that both networks have.

    Args:
        name: the other network.
        values: settings of the section, whose network is the default if they do not name one.
    """
    before, after = ARCHITECTURES.get(values.get("name", DEFAULT)), ARCHITECTURES.get(name)
    if before is None or after is None or before is after:
        return dict(values)
    lost = before.settings.model_fields.keys() - after.settings.model_fields.keys()
    return {key: value for key, value in values.items() if key not in lost}


def networks_with(key: str) -> list[str]:
    """Return the networks that have a setting, such as "batch_norm"."""
    return [name for name, entry in ARCHITECTURES.items() if key in entry.settings.model_fields]


def known_networks() -> list[str]:
    """The values that `model.name` can have."""
    return list(ARCHITECTURES)


def without_network_name(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Drop networks' names, which pydantic inserts into the location of a mistake in a union of networks."""
    if location[:1] != ("model",):
        return location
    return tuple(part for part in location if part not in ARCHITECTURES)


def default_model() -> NetworkSettings:
    """The settings of the default network."""
    return ARCHITECTURES[DEFAULT].settings()  # type: ignore[call-arg]


def architecture(model: NetworkSettings) -> Architecture:
    """The architecture that settings belong to."""
    return ARCHITECTURES[model.name]
