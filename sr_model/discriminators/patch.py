"""The patch discriminator: a fully convolutional network that judges every part of an image by itself.

It follows Isola et al. 2017 (arXiv:1611.07004, appendix 6.1.2) in its 4x4 convolutions with a stride of 2 and LeakyReLU
0.2. It has no BatchNorm. Spectral norm (Miyato et al. 2018, arXiv:1802.05957) bounds the convolutions between the first
and the last one, as in the discriminator of Wang et al. 2021 (arXiv:2107.10833).
"""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from sr_model.discriminators.settings import PatchSettings
from sr_model.discriminators.spectral import SpectralConv2d


class PatchDiscriminator(nn.Module):
    """Maps images (B, 3, H, W) to a logit for each part of about 2^layers pixels a side, (B, parts).

    Args:
        settings: the settings.
    """

    def __init__(self, settings: PatchSettings) -> None:
        super().__init__()
        widths = [settings.channels * min(2**i, 8) for i in range(settings.layers)]
        convolutions: list[nn.Conv2d] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1)]
        convolutions += [
            SpectralConv2d(before, width, 4, stride=2, padding=1) for before, width in itertools.pairwise(widths)
        ]
        convolutions.append(nn.Conv2d(widths[-1], 1, 3, padding=1))
        self.convolutions = nn.ModuleList(convolutions)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of (B, 3, H, W) images, nominally in [0, 1], whose sides are multiples of 2^layers."""
        x = images * 2 - 1
        *hidden, last = self.convolutions
        for convolution in hidden:
            x = F.leaky_relu(convolution(x), 0.2)
        logits: Tensor = last(x).flatten(1)
        return logits


def build(settings: PatchSettings, _: int) -> PatchDiscriminator:
    """Make the discriminator for crops of any side."""
    return PatchDiscriminator(settings)
