"""The discriminator of SRGAN (Ledig et al. 2017, arXiv:1609.04802, figure 4), which judges a patch as a whole.

It has no spectral norm. It returns a logit: the paper's last layer, a sigmoid, is a part of the loss.
"""

from __future__ import annotations

from torch import Tensor, nn

from sr_model.discriminators.settings import PaperSettings


class PaperDiscriminator(nn.Module):
    """Maps patches (B, 3, side, side) to a logit, (B, 1).

    Eight 3x3 convolutions, every second one with a stride of 2, lead to a dense layer, so the side is fixed.

    Args:
        settings: the settings.
        side: side of a patch in pixels, a multiple of 16.
    """

    def __init__(self, settings: PaperSettings, side: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for i in range(8):
            width = settings.channels * 2 ** (i // 2)
            normalised = settings.batch_norm and i > 0
            layers.append(nn.Conv2d(before, width, 3, stride=1 + i % 2, padding=1, bias=not normalised))
            layers += [nn.BatchNorm2d(width)] if normalised else []
            layers.append(nn.LeakyReLU(0.2))
            before = width
        self.features = nn.Sequential(*layers)
        hidden = 16 * settings.channels
        self.judge = nn.Sequential(
            nn.Linear(before * (side // 16) ** 2, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, 1)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of (B, 3, side, side) images, nominally in [0, 1]."""
        logits: Tensor = self.judge(self.features(images * 2 - 1).flatten(1))
        return logits


def build(settings: PaperSettings, side: int) -> PaperDiscriminator:
    """Make the discriminator for crops of a side."""
    return PaperDiscriminator(settings, side)
