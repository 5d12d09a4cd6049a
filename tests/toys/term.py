"""A term of the objective in one file: the mean brightness of an image has to be right."""

from torch import Tensor

from sr_model.pretrained import Weights
from sr_model.terms.term import Distance, TermKind, TermSettings


class BrightnessSettings(TermSettings):
    """The term "brightness"."""

    power: float = 2.0
    """Exponent of the difference."""
    start: float = 0.0
    """Share of the steps after which the term joins."""


def create(settings: BrightnessSettings, _: Weights) -> Distance:
    def brightness(sr: Tensor, hr: Tensor) -> Tensor:
        difference: Tensor = (sr.mean((1, 2, 3)) - hr.mean((1, 2, 3))).abs()
        return difference.pow(settings.power)

    return brightness


KIND = TermKind("brightness", create, BrightnessSettings, compares_pixels=False, start=lambda settings: settings.start)
