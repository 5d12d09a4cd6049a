"""The layout of BasicSR's class EDSR (https://github.com/XPixelGroup/BasicSR)."""

from __future__ import annotations

from pipeline.exporting.layouts import Layout, rename
from pipeline.exporting.request import Request
from pipeline.exporting.safetensors import write_weights
from sr_model.networks.settings import EDSRSettings

_LAYOUT = Layout(
    first="conv_first",
    block=("body.{}.conv1", "body.{}.conv2"),
    body="conv_after_body",
    stage="upsample.{}",
    stage_step=2,
    last="conv_last",
)


def write(request: Request) -> str:
    """Write the weights for `EDSR` with `img_range=1` and `rgb_mean=(0, 0, 0)`."""
    assert isinstance(request.settings, EDSRSettings)
    write_weights(request, request.out, rename(request.net, _LAYOUT), "edsr")
    return (
        f"{request.out}: for BasicSR's EDSR(3, 3, num_feat={request.settings.channels}, "
        f"num_block={request.settings.blocks}, upscale={request.net.scale}, img_range=1, rgb_mean=(0, 0, 0))"
    )
