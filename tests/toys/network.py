"""A network in one file: enlarge by repeating pixels, then learn a correction."""

from collections.abc import Mapping
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from sr_model.networks.architecture import Architecture, NetworkSettings
from sr_model.networks.super_resolver import SuperResolver


class ToySettings(NetworkSettings):
    """A toy."""

    name: Literal["toy"] = "toy"
    width: int = 4
    """Feature channels."""


class Toy(SuperResolver):
    receptive_radius = 2

    def __init__(self, scale: int, settings: ToySettings) -> None:
        super().__init__()
        self.scale = scale
        self.first = nn.Conv2d(3, settings.width, 3, padding=1)
        self.last = nn.Conv2d(settings.width, 3 * scale**2, 3, padding=1)

    def forward(self, lr: Tensor) -> Tensor:
        enlarged = F.interpolate(lr, scale_factor=self.scale)
        return enlarged + F.pixel_shuffle(self.last(self.first(lr).relu()), self.scale)

    def muon_weights(self) -> list[nn.Parameter]:
        return []


def infer(weights: Mapping[str, Tensor]) -> tuple[int, ToySettings]:
    scale = int((weights["last.weight"].shape[0] / 3) ** 0.5)
    return scale, ToySettings(width=weights["first.weight"].shape[0])


ARCHITECTURE = Architecture("toy", "Toy", ToySettings, (2, 3, 4), Toy, infer)
