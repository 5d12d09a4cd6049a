"""A term of the training objective, so that a new one is a single file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import BaseModel, ConfigDict

from sr_model.pretrained import Pretrained, Weights

if TYPE_CHECKING:
    from torch import Tensor

Distance: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"
"""Maps prediction and target, both (B, 3, H, W) and nominally in [0, 1], to one value for each image, (B,)."""


class TermSettings(BaseModel):
    """Settings of a term; empty for a term that has none."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


def _no_pretrained(_: Any) -> Pretrained | None:
    return None


def _from_the_start(_: Any) -> float:
    return 0.0


def _no_shift(_: Any) -> int:
    return 0


def _any_size(_: Any) -> int:
    return 1


@dataclass(frozen=True)
class TermKind:
    """A kind of term: how to configure it and how to compute it."""

    name: str
    """Key of `train.loss`; a term with settings has a section of the same name in `train`."""
    create: Callable[[Any, Weights], Distance]
    """Make the distance from an instance of `settings` and the pretrained weights (empty for a term without any)."""
    settings: type[TermSettings] = TermSettings
    compares_pixels: bool = True
    """True if the term alone determines the pixels of the output."""
    pretrained: Callable[[Any], Pretrained | None] = _no_pretrained
    """The pretrained weights that the term needs under its settings."""
    start: Callable[[Any], float] = _from_the_start
    """Share of the steps after which the term joins the others, in [0, 1)."""
    shift: Callable[[Any], int] = _no_shift
    """Most pixels by which the images of a sample are shifted together before the term compares them."""
    smallest: Callable[[Any], int] = _any_size
    """Side in pixels of the smallest images that the term can compare, shifts included."""


@dataclass(frozen=True)
class Term:
    """A term that is ready to be computed."""

    name: str
    weight: float
    start: float
    """Share of the steps after which it joins the others, in [0, 1)."""
    distance: Distance
    shift: int = 0
    """Most pixels by which the images of a sample are shifted together before they are compared."""
    seed: int = 0
    """Seed of the shifts."""

    def active(self, step: int, steps: int) -> bool:
        """Tell whether the term takes part in step number `step` (from 0) of `steps`."""
        return step >= round(self.start * steps)
