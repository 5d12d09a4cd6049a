"""The interface between a network and the rest of the project; a new network is a single file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from torch import Tensor

    from sr_model.networks.super_resolver import SuperResolver


class NetworkSettings(BaseModel):
    """Settings of a network; every network has a subclass whose `name` is a literal that selects it."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    name: str

    not_in_weights: ClassVar[frozenset[str]] = frozenset({"init"})
    """Settings that concern training alone, which weights do not show."""

    @property
    def label(self) -> str:
        """Short text that tells variants of the network apart in the names of trainings."""
        return self.name

    @property
    def facts(self) -> dict[str, Any]:
        """The settings that take part, by name, for people; a network inside is a mapping, too."""
        return self.model_dump(mode="json", exclude={"name"})


@dataclass(frozen=True)
class Architecture:
    """A kind of network: how to configure it, build it, and recognise it by its weights."""

    name: str
    """Value of `model.name` in a configuration."""
    title: str
    """Name in tables and reports, such as "SRResNet"."""
    settings: type[NetworkSettings]
    scales: tuple[int, ...]
    """Upscaling factors that it supports."""
    build: Callable[[int, Any], SuperResolver]
    """Make a network from a scale and an instance of `settings`; random numbers come from torch's generator."""
    infer: Callable[[Mapping[str, Tensor]], tuple[int, NetworkSettings]]
    """Read scale and settings off a state dict. Any KeyError, IndexError, ValueError or ZeroDivisionError means that
    the weights belong to another architecture."""
    method: str | None = None
    """The only value of `train.method` that can train it; None if any method can."""

    def load(self, weights: Mapping[str, Tensor]) -> SuperResolver:
        """Build the network of a state dict, in eval mode, float32.

        Shapes are compared before any memory is allocated, so a small file cannot ask for a large network.

        Raises:
            ValueError: if the weights belong to another architecture.
        """
        import torch  # here, because it takes seconds and commands check their settings before

        try:
            scale, settings = self.infer(weights)
            with torch.device("meta"):
                net = self.build(scale, settings)
            whole = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
            net.load_state_dict(whole, assign=True)
        except (KeyError, IndexError, ValueError, ZeroDivisionError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"the weights are not those of {self.title}: {reason}") from None
        return net.eval()
