"""The names that other projects give to the layers of an EDSR."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sr_model.networks.edsr import EDSR, ResidualBlock
from sr_model.networks.super_resolver import SuperResolver


@dataclass(frozen=True)
class Layout:
    """Names of the convolutions; {} stands for the number of a block or of an upsampling stage."""

    first: str
    block: tuple[str, str]
    """The two convolutions of a residual block."""
    body: str
    """The convolution behind the blocks; {} stands for their number."""
    stage: str
    last: str
    stage_step: int = 1
    """Difference between the numbers of neighbouring stages; 2 if the shuffles are counted too."""


@torch.no_grad()
def rename(net: SuperResolver, layout: Layout) -> dict[str, Tensor]:
    """Return the weights of an EDSR under other names. Residual scaling is part of the weights.

    Returns:
        Tensors by name, float32, which share no memory with the network.
    """
    assert isinstance(net, EDSR)
    found: list[tuple[str, nn.Module]] = [(layout.first, net.conv_first), (layout.last, net.conv_last)]
    for number, block in enumerate(net.body):
        assert isinstance(block, ResidualBlock)
        one, _, two = block.scaled()
        found += [(layout.block[0].format(number), one), (layout.block[1].format(number), two)]
    found.append((layout.body.format(len(net.body)), net.conv_body))
    found += [(layout.stage.format(layout.stage_step * number), conv) for number, conv in enumerate(net.upsample)]
    return {
        f"{name}.{part}": value.detach().clone() for name, conv in found for part, value in conv.state_dict().items()
    }
