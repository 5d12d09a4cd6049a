"""Settings of the networks. This module imports no torch, so that a command can check its settings at once."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from sr_model.networks.architecture import NetworkSettings
from sr_model.networks.sampling import MOST_STEPS

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


class SRResNetDirectSettings(NetworkSettings):
    """SRResNet with one upsampling convolution."""

    name: Literal["srresnet-direct"] = "srresnet-direct"
    """Kind of network."""
    channels: int = Field(64, ge=4)
    """Feature channels."""
    blocks: int = Field(16, ge=1)
    """Residual blocks."""


class SRCNNSettings(NetworkSettings):
    """SRCNN."""

    not_in_weights: ClassVar[frozenset[str]] = frozenset({"last_rate"})

    name: Literal["srcnn"] = "srcnn"
    """Kind of network."""
    kernels: Literal["9-5-5", "9-1-5"] = "9-5-5"
    """Sides of the kernels of its three convolutions."""
    colour: Literal["rgb", "y"] = "rgb"
    """Channels that the network computes: "rgb" is all three colours; "y" is the luma alone, as in the paper, and the
    colours are those of the interpolation."""
    channels: int = Field(64, ge=8)
    """Feature channels of the first convolution; the second one has half as many."""
    last_rate: float = Field(0.1, gt=0, le=1)
    """Learning rate of the last convolution as a share of that of the others; the paper has 0.1."""

    @property
    def label(self) -> str:
        """Such as "srcnn-9-5-5-rgb"."""
        return f"{self.name}-{self.kernels}-{self.colour}"


def _base_name(value: Any) -> Any:
    """Read the name of the base off unvalidated settings, where the default need not be named."""
    return value.get("name", "srresnet") if isinstance(value, dict) else getattr(value, "name", None)


class SRResNetBaseSettings(SRResNetSettings):
    """SRResNet as the base of a refiner."""

    batch_norm: bool = False
    """Use BatchNorm after the convolutions of the body; the bundled model does without."""


TrunkSettings = SRResNetBaseSettings | EDSRSettings
"""Settings of the networks that a refiner can start from."""


class RefinerSettings(NetworkSettings):
    """A network that draws an image in steps."""

    name: Literal["refiner"] = "refiner"
    """Kind of network."""
    process: Literal["flow", "sr3"] = "flow"
    """Process that turns noise into an image: "flow" starts from the output of the frozen network `base` plus a little
    noise (rectified flow in the form of PMRF, Ohayon et al. 2025); "sr3" starts from pure noise without a base (a
    miniature of SR3, Saharia et al. 2021)."""
    base: Annotated[
        Annotated[SRResNetBaseSettings, Tag("srresnet")] | Annotated[EDSRSettings, Tag("edsr")],
        Discriminator(_base_name),
    ] = SRResNetBaseSettings()
    """The frozen network of the process "flow", whose weights `train.init_from` names."""
    noise: float = Field(0.04, gt=0, le=1)
    """Standard deviation of the noise that the process "flow" adds to the base's output, as a share of the value range.
    It should be about the base's root mean squared error."""
    channels: int = Field(64, ge=4)
    """Feature channels of the refining network."""
    blocks: int = Field(10, ge=1)
    """Residual blocks of the refining network."""
    steps: int = Field(4, ge=1, le=MOST_STEPS)
    """Default number of steps in which an image is drawn; validation uses it."""

    @property
    def label(self) -> str:
        """Either "flow" or "sr3"."""
        return self.process

    @property
    def facts(self) -> dict[str, Any]:
        """See `NetworkSettings.facts`."""
        unused = {"base", "noise"} if self.process == "sr3" else set()
        return {key: value for key, value in super().facts.items() if key not in unused}
