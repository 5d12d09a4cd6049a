"""Settings of the networks. This module imports no torch, so that a command can check its settings at once."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sr_model.networks.architecture import NetworkSettings

Init = Literal["upsampler", "paper"]

STAGES = {2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}
"""Factor of each upsampling stage, by scale."""
SCALES = tuple(STAGES)
"""Upscaling factors of the networks."""


class SRResNetSettings(NetworkSettings):
    """SRResNet."""

    name: Literal["srresnet"] = "srresnet"
    """Kind of network."""
    channels: int = Field(64, ge=4)
    """Feature channels."""
    blocks: int = Field(16, ge=1)
    """Residual blocks."""
    batch_norm: bool = True
    """Use BatchNorm after the convolutions of the body."""
    init: Init = "upsampler"
    """Initial weights: "upsampler" interpolates from the first step on; "paper" is PyTorch's default, because the paper
    names none."""

    @property
    def label(self) -> str:
        """Either "bn" or "nobn"."""
        return "bn" if self.batch_norm else "nobn"


class EDSRSettings(NetworkSettings):
    """EDSR."""

    name: Literal["edsr"] = "edsr"
    """Kind of network."""
    channels: int = Field(64, ge=4)
    """Feature channels."""
    blocks: int = Field(16, ge=1)
    """Residual blocks."""
    residual_scale: float = Field(1.0, gt=0)
    """Factor of the residual branches. The paper has 0.1 for its large network, of 256 channels and 32 blocks."""
    init: Init = "upsampler"
    """Initial weights: "upsampler" interpolates from the first step on; "paper" is PyTorch's default."""
