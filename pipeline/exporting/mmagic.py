"""The layout of mmagic's class EDSRNet (https://github.com/open-mmlab/mmagic)."""

from __future__ import annotations

from pipeline.exporting.layouts import Layout, rename
from pipeline.exporting.request import Request
from pipeline.exporting.safetensors import write_weights
from sr_model.networks.settings import EDSRSettings

_LAYOUT = Layout(
    first="conv_first",
    block=("body.{}.conv1", "body.{}.conv2"),
    body="conv_after_body",
    stage="upsample.{}.upsample_conv",
    last="conv_last",
)


def write(request: Request) -> str:
    """Write the weights for `EDSRNet` with `rgb_mean=[0, 0, 0]`."""
    assert isinstance(request.settings, EDSRSettings)
    write_weights(request, request.out, rename(request.net, _LAYOUT), "edsr")
    return (
        f"{request.out}: for mmagic's EDSRNet(3, 3, mid_channels={request.settings.channels}, "
        f"num_blocks={request.settings.blocks}, upscale_factor={request.net.scale}, rgb_mean=[0, 0, 0])"
    )
