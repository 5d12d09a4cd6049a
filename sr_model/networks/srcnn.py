"""SRCNN, three convolutions on the interpolated image, of Dong et al. 2014 (arXiv:1501.00092, the extended version).

Shape legend: B images, C feature channels, N image channels (3 for RGB, 1 for luma), (h, w) LR pixels, s scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sr_model.networks.settings import SCALES, SRCNNSettings
from sr_model.networks.super_resolver import SuperResolver
from sr_model.networks.upsampling import Bicubic

_MIDDLE: dict[str, int] = {"9-5-5": 5, "9-1-5": 1}
"""Side of the second kernel by the name of the form."""
_LUMA = (65.481 / 219, 128.553 / 219, 24.966 / 219)
"""Weights of R, G and B in the luma of BT.601, without its offset of 16: they add up to 1."""


class SRCNN(SuperResolver):
    """MATLAB's bicubic interpolation, then convolutions 9x9, 5x5 or 1x1, and 5x5 with ReLU between them.

    It has 69,251 parameters by default, and 57,281 for the luma. It differs from the published network in two points:
    borders are padded with zeros, so that the image keeps its size, and it starts as an identity, because from small
    random weights it has to learn the identity first.

    Args:
        scale: upscaling factor, one of 2, 3, 4, 8. The state dict has it as "scale_factor".
        kernels: sides of the three kernels.
        colour: "rgb" for all colours; "y" for the luma alone, with the colours of the interpolation.
        channels: feature channels C; the second convolution has half as many.
        last_rate: learning rate of the last convolution as a share of that of the others.

    Raises:
        ValueError: for another scale.
    """

    def __init__(
        self,
        scale: int = 4,
        kernels: Literal["9-5-5", "9-1-5"] = "9-5-5",
        colour: Literal["rgb", "y"] = "rgb",
        channels: int = 64,
        last_rate: float = 0.1,
    ) -> None:
        super().__init__()
        if scale not in SCALES:
            raise ValueError(f"scale is {scale}, expected one of {SCALES}")
        self.scale = scale
        self.last_rate = last_rate
        images, middle = (1 if colour == "y" else 3), _MIDDLE[kernels]
        self.bicubic = Bicubic(scale)
        self.conv1 = nn.Conv2d(images, channels, 9, padding=4)
        self.conv2 = nn.Conv2d(channels, channels // 2, middle, padding=middle // 2)
        self.conv3 = nn.Conv2d(channels // 2, images, 5, padding=2)
        self.register_buffer("scale_factor", torch.tensor(scale, device="cpu"))  # "meta" would lose it
        init_as_identity(self)

    def forward(self, lr: Tensor) -> Tensor:
        """Enlarge `lr` (B, 3, h, w) to (B, 3, s*h, s*w); RGB, nominally in [0, 1], the output is not clamped."""
        x: Tensor = self.bicubic(lr)
        if self.conv1.in_channels == 3:
            return self._map(x)
        red, green, blue = _LUMA
        luma = red * x[:, :1] + green * x[:, 1:2] + blue * x[:, 2:]
        return x + (self._map(luma) - luma)  # equals the way to YCbCr, whose other channels stay, and back

    def muon_weights(self) -> list[nn.Parameter]:
        """Weights of the convolution in the middle."""
        return [cast("nn.Parameter", self.conv2.weight)]

    def rate_factors(self) -> dict[nn.Parameter, float]:
        """Shares of the learning rate that the parameters of the last convolution have."""
        return dict.fromkeys(self.conv3.parameters(), self.last_rate)

    @property
    def receptive_radius(self) -> int:
        """LR pixels to each side that an output pixel depends on."""
        convolutions = (self.conv1, self.conv2, self.conv3)
        reach = sum(cast("int", conv.padding[0]) for conv in convolutions)  # in HR pixels
        return -(-reach // self.scale) + self.bicubic.reach

    def _map(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return y


@torch.no_grad()
def init_as_identity(net: SRCNN) -> None:
    """Initialise the network so that it returns about the interpolated image.

    The first channels carry the image from the first to the last convolution, with kernels that are 1 in the centre.
    All other weights follow He et al. 2015 (arXiv:1502.01852), normal, fan-in; those of the last convolution are
    scaled by 0.001. Carried values below 0, which only an interpolation that overshoots has, become 0.
    """
    convolutions = (net.conv1, net.conv2, net.conv3)
    for conv in convolutions:
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)
    net.conv3.weight.mul_(0.001)
    image = torch.arange(net.conv1.in_channels)
    net.conv1.weight[image] = 0
    net.conv2.weight[image] = 0
    net.conv3.weight[:, image] = 0
    for conv in convolutions:
        centre = conv.kernel_size[0] // 2
        conv.weight[image, image, centre, centre] = 1


def build(scale: int, settings: SRCNNSettings) -> SRCNN:
    """Build the network that settings describe; random numbers come from torch's generator."""
    return SRCNN(scale, settings.kernels, settings.colour, settings.channels, settings.last_rate)


def infer(weights: Mapping[str, Tensor]) -> tuple[int, SRCNNSettings]:
    """Read scale and settings off a state dict.

    Raises:
        KeyError, IndexError, ValueError: if the weights belong to another network.
    """
    first, middle = weights["conv1.weight"], weights["conv2.weight"]
    kernels = next((name for name, side in _MIDDLE.items() if side == middle.shape[-1]), "")
    colour = {1: "y", 3: "rgb"}.get(first.shape[1], "")
    settings = SRCNNSettings.model_validate({"kernels": kernels, "colour": colour, "channels": first.shape[0]})
    scale = weights["scale_factor"].item()
    if scale not in SCALES:
        raise ValueError(f"scale_factor is {scale}, expected one of {SCALES}")
    return int(scale), settings
