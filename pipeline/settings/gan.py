"""Settings of adversarial training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, create_model, field_validator

from pipeline.settings.fields import STRICT, Decay, MethodSettings
from sr_model.discriminators import DISCRIMINATORS, DiscriminatorSettings

if TYPE_CHECKING:
    DiscriminatorSections = MethodSettings
else:
    DiscriminatorSections = create_model(
        "DiscriminatorSections",
        __base__=MethodSettings,
        **{
            name: (kind.settings, Field(kind.settings(), description=f'Settings of the discriminator "{name}".'))
            for name, kind in DISCRIMINATORS.items()
        },
    )


class Gan(DiscriminatorSections):
    """Adversarial training: the network learns to make images that a discriminator takes for true ones."""

    model_config = STRICT

    discriminator: str = next(iter(DISCRIMINATORS))
    """Network that judges images: "patch" judges every part of an image, and "paper" is the network of Ledig et al.
    2017, which judges a patch as a whole."""
    adversarial: Literal["relativistic", "pairing", "vanilla"] = "relativistic"
    """Adversarial loss. "vanilla" compares each logit with 0 (Goodfellow et al. 2014, the form that does not saturate).
    "relativistic" compares it with the mean over the parts of the enlarged or true version of the same patch
    (Jolicoeur-Martineau 2018, arXiv:1807.00734). "pairing" compares it with that of the same part (Huang et al. 2025,
    arXiv:2501.05441), whose authors use it with r1 and r2."""
    weight: float = Field(5e-3, gt=0)
    """Weight of the adversarial loss beside the terms of `train.loss`."""
    artefacts: float = Field(0.0, ge=0)
    """Weight of the artefact loss (Liang et al. 2022, arXiv:2203.09195), such as 1: an L1 loss where errors vary and
    are larger than those of the moving average of the weights. It costs one more forward pass."""
    lr: float = Field(1e-4, gt=0)
    """Peak learning rate of the discriminator, whose optimizer is Adam. Schedule and growth are those of `train.lr`."""
    betas: tuple[Decay, Decay] = Field((0.5, 0.999), examples=["0.5,0.999"])
    """Decay rates of Adam's first and second moments for the discriminator."""
    warmup_steps: int = Field(200, ge=0)
    """Number of steps at the start in which only the discriminator trains. They are a part of `train.length`."""
    r1: float = Field(0.0, ge=0)
    """Weight of the squared gradient of the logits at true images (Mescheder et al. 2018, arXiv:1801.04406), such as
    0.1. It keeps the discriminator from winning."""
    r2: float = Field(0.0, ge=0)
    """Weight of the squared gradient of the logits at enlarged images."""
    penalty_every: int = Field(16, ge=1)
    """Number of steps from one with the penalties r1 and r2 to the next; their weights are multiplied by this number
    (Karras et al. 2020, arXiv:1912.04958)."""
    from_scratch: bool = False
    """Start without trained weights. If this is false, adversarial training needs `train.init_from`, because it seldom
    learns to enlarge images by itself."""

    def discriminator_settings(self) -> DiscriminatorSettings:
        """The settings of the chosen discriminator."""
        settings: DiscriminatorSettings = getattr(self, self.discriminator)
        return settings

    @property
    def unused_sections(self) -> list[str]:
        """Sections of discriminators that are not chosen."""
        return [name for name in DISCRIMINATORS if name != self.discriminator]

    @field_validator("discriminator")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in DISCRIMINATORS:
            raise ValueError(f"one of {', '.join(DISCRIMINATORS)}")
        return value
