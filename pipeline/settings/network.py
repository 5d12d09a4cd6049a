"""Settings of the network: a union of the settings of all networks, told apart by `model.name`."""

from __future__ import annotations

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


def default_model() -> NetworkSettings:
    """The settings of the default network."""
    return ARCHITECTURES[DEFAULT].settings()  # type: ignore[call-arg]


def architecture(model: NetworkSettings) -> Architecture:
    """The architecture that settings belong to."""
    return ARCHITECTURES[model.name]
