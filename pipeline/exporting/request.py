"""The interface between a format and the command: a model, and what people say about it. It imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from sr_model.networks import Architecture, NetworkSettings
    from sr_model.networks.super_resolver import SuperResolver

Precision = Literal["fp32", "fp16"]


@dataclass(frozen=True)
class About:
    """The description of a model that a person gives; a field that is not given is empty."""

    title: str = ""
    author: str = ""
    license: str = ""
    """Identifier of the SPDX list, such as "Apache-2.0"."""
    description: str = ""
    tags: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    """Where the exported weights can be downloaded."""


@dataclass(frozen=True)
class Request:
    """A model that is exported."""

    net: SuperResolver
    """In eval mode, float32, on the CPU."""
    architecture: Architecture
    settings: NetworkSettings
    """The settings that the weights show."""
    weights: str
    """Path or URL of the file that the model was loaded from."""
    out: str
    """Path or URL of the file or folder to write."""
    precision: Precision
    about: About
    date: str
    """Today, ISO 8601."""

    @property
    def title(self) -> str:
        """The title that was given, or one such as "EDSR x4"."""
        return self.about.title or f"{self.architecture.title} x{self.net.scale}"


@dataclass(frozen=True)
class Format:
    """A format that models are exported to."""

    name: str
    purpose: str
    """The purpose of the format, for --help."""
    ending: str
    """How the name of its file ends; "" if it is a folder."""
    write: Callable[[Request], str]
    """Writes a model, and returns a sentence for the user."""
    networks: tuple[str, ...] = ()
    """Names of the networks that it can hold; empty if it can hold all."""
