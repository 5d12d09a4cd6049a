"""Settings of the network."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from pipeline.settings.fields import STRICT


class Model(BaseModel):
    """The network."""

    model_config = STRICT

    channels: int = Field(64, ge=4)
    """Feature channels."""
    blocks: int = Field(16, ge=1)
    """Residual blocks."""
    batch_norm: bool = True
    """BatchNorm after the convolutions of the body."""
    init: Literal["upsampler", "paper"] = "upsampler"
    """Initialisation: an interpolating upsampler from the start, or PyTorch's default (the paper names none)."""
