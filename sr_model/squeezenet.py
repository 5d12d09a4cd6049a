"""A perceptual distance for judging images. No training uses it, so no network is optimised for it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sr_model.normalise import Normalise
from sr_model.pretrained import Pretrained, Weights, load_weights


class SqueezeNetDistance(nn.Module):
    """Distance between features of SqueezeNet 1.1 (Iandola et al. 2016, arXiv:1602.07360); 0 for equal images.

    It has the form of LPIPS (Zhang et al. 2018, arXiv:1801.03924, equation 1) with all fitted weights set to 1. At
    every position, the vector of channels is scaled to length 1. Squared differences are summed over channels, averaged
    over positions, and added over seven layers.

    Args:
        weights: state dict of the trunk, `features.0.weight` to `features.12.expand3x3.bias`.

    Raises:
        ValueError: if weights are missing.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        fires = [(64, 16, 64), (128, 16, 64), (128, 32, 128), (256, 32, 128)]
        fires += [(256, 48, 192), (384, 48, 192), (384, 64, 256), (512, 64, 256)]
        fire = iter([_Fire(*widths) for widths in fires])

        def pool() -> nn.Module:
            return nn.MaxPool2d(3, stride=2, ceil_mode=True)

        first: list[nn.Module] = [nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), pool()]
        self.features = nn.ModuleList([*first, next(fire), next(fire), pool(), next(fire), next(fire), pool(), *fire])
        self.compared = (1, 4, 7, 9, 10, 11, 12)
        load_weights(
            self, {name: value for name, value in weights.items() if name.startswith("features.")}, "SqueezeNet 1.1"
        )
        self.normalise = Normalise()
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Compute the distance of each image, (B,).

        Args:
            sr: (B, 3, H, W) RGB in [0, 1], at least 17 pixels a side.
            hr: ground truth of the same shape.
        """
        x: Tensor = self.normalise(sr)
        y: Tensor = self.normalise(hr)
        total = x.new_zeros(len(x))
        for i, layer in enumerate(self.features):
            x, y = layer(x), layer(y)
            if i in self.compared:
                difference = F.normalize(x, dim=1, eps=1e-10) - F.normalize(y, dim=1, eps=1e-10)
                total = total + difference.square().sum(1).mean((1, 2))
        return total


class _Fire(nn.Module):
    def __init__(self, before: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(before, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], dim=1)


def pretrained(source: str) -> Pretrained:
    """The weights that `SqueezeNetDistance` needs, from a file or from "torchvision"."""
    return Pretrained("squeezenet1_1", source, "evaluate.squeezenet", (), _select)


def _select(whole: Weights) -> dict[str, Tensor]:
    SqueezeNetDistance(whole)  # raises if tensors are missing or have other shapes
    return {name: value for name, value in whole.items() if name.startswith("features.")}
