"""Settings of the discriminators. This module imports no torch, so that a command can check its settings at once."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class DiscriminatorSettings(BaseModel):
    """Settings of a discriminator."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


class PatchSettings(DiscriminatorSettings):
    """The patch discriminator, which judges every part of an image."""

    channels: int = Field(64, ge=4)
    """Feature channels of the first convolution; each further one with a stride doubles them, up to eight times."""
    layers: int = Field(3, ge=1, le=6)
    """Convolutions with a stride of 2. With 3 of them, each logit judges 38x38 pixels."""


class PaperSettings(DiscriminatorSettings):
    """The discriminator of Ledig et al. 2017, which judges a patch as a whole."""

    channels: int = Field(64, ge=4)
    """Feature channels of the first convolution, and a sixteenth of the hidden units of the dense layer."""
    batch_norm: bool = True
    """Use BatchNorm after all convolutions but the first. Its statistics span a micro-batch, so the training depends on
    `train.micro_batch`, and only one worker can train."""
