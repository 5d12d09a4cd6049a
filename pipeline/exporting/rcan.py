"""An EDSR as an RCAN (Zhang et al. 2018, arXiv:1807.02758) of one group, in the layout that spandrel knows.

chaiNNer and ComfyUI load models with spandrel (https://github.com/chaiNNer-org/spandrel). It has no EDSR, but an RCAN
of one group computes the same with these weights:

- The channel attention of each block is sigmoid(100), which is 1 in float32.
- RCAN has one more convolution and one more skip around the group, so it would add the head's features twice. The
  convolution is the identity. The head and the biases of the blocks are halved, so that all features of the blocks are
  half of what they were, because ReLU(x / 2) is ReLU(x) / 2. The convolution behind the blocks doubles them again.
- Without `sub_mean` and `add_mean`, spandrel computes in [0, 1] and subtracts no mean colour.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.exporting.layouts import Layout, rename
from pipeline.exporting.request import Request
from pipeline.exporting.safetensors import write_weights
from sr_model.networks.settings import EDSRSettings
from sr_model.networks.super_resolver import SuperResolver

_LAYOUT = Layout(
    first="head.0",
    block=("body.0.body.{}.body.0", "body.0.body.{}.body.2"),
    body="body.0.body.{}",
    stage="tail.0.{}",
    stage_step=2,
    last="tail.1",
)
_REDUCTION = 16
"""Channels of a block for each channel of its attention; RCAN's default."""


def write(request: Request) -> str:
    """Write the weights as those of an RCAN."""
    write_rcan(request, request.out)
    return f"{request.out}: an RCAN of one group that equals {request.title}, for spandrel, chaiNNer and ComfyUI"


def write_rcan(request: Request, out: str) -> bytes:
    """Write the weights as those of an RCAN to a path or URL, and return the content of the file."""
    assert isinstance(request.settings, EDSRSettings)
    return write_weights(request, out, _as_rcan(request.net, request.settings), "rcan")


def _as_rcan(net: SuperResolver, settings: EDSRSettings) -> dict[str, Tensor]:
    channels, blocks = settings.channels, settings.blocks
    weights = rename(net, _LAYOUT)
    weights["head.0.weight"] /= 2
    weights["head.0.bias"] /= 2
    weights[f"body.0.body.{blocks}.weight"] *= 2
    weights["body.1.weight"] = torch.eye(channels)[:, :, None, None] * torch.eye(3)[1].outer(torch.eye(3)[1])
    weights["body.1.bias"] = torch.zeros(channels)
    inner = max(channels // _REDUCTION, 1)
    for block in range(blocks):
        for convolution in (0, 2):
            weights[f"body.0.body.{block}.body.{convolution}.bias"] /= 2
        attention = f"body.0.body.{block}.body.3.conv_du"
        weights[f"{attention}.0.weight"] = torch.zeros(inner, channels, 1, 1)
        weights[f"{attention}.0.bias"] = torch.zeros(inner)
        weights[f"{attention}.2.weight"] = torch.zeros(channels, inner, 1, 1)
        weights[f"{attention}.2.bias"] = torch.full((channels,), 100.0)
    return weights
