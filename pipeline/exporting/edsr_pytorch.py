"""The layout of EDSR-PyTorch (https://github.com/sanghyun-son/EDSR-PyTorch), the authors' code, and of super-image."""

from __future__ import annotations

import torch

from pipeline.exporting.layouts import Layout, rename
from pipeline.exporting.request import Request
from pipeline.exporting.safetensors import write_weights
from sr_model.networks.settings import EDSRSettings

_LAYOUT = Layout(
    first="head.0",
    block=("body.{}.body.0", "body.{}.body.2"),
    body="body.{}",
    stage="tail.0.{}",
    stage_step=2,
    last="tail.1",
)
_LARGEST = 255


def write(request: Request) -> str:
    """Write the weights for `EDSR` with the default `--rgb_range 255`, and for super-image's `EdsrModel`.

    EDSR-PyTorch subtracts a mean colour with a 1x1 convolution, whose weights are in the file, and adds it at the end.
    Here they divide by 255 and multiply by it instead. super-image leaves them out and computes in [0, 1].
    """
    assert isinstance(request.settings, EDSRSettings)
    weights = rename(request.net, _LAYOUT)
    for name, factor in (("sub_mean", 1 / _LARGEST), ("add_mean", float(_LARGEST))):
        weights[f"{name}.weight"] = factor * torch.eye(3).view(3, 3, 1, 1)
        weights[f"{name}.bias"] = torch.zeros(3)
    write_weights(request, request.out, weights, "edsr")
    return (
        f"{request.out}: for EDSR-PyTorch with --n_feats {request.settings.channels} --n_resblocks "
        f"{request.settings.blocks} --scale {request.net.scale}, and for super-image's EdsrModel"
    )
