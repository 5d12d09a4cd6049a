"""The parts of the method "gan" that need no torch: what it refuses and measures, and says of its course."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.settings import Config, UserError
from pipeline.settings.gan import Gan
from pipeline.settings.methods import perceptual_metric
from sr_model.discriminators import DISCRIMINATORS

DISCRIMINATOR = "discriminator"
"""Name of the trained discriminator, of its phase, and of its file in a checkpoint."""

WINDOW = 500
"""Last steps whose mean accuracy tells how the discriminator does."""
LEARNT_NOTHING = 0.55
"""Accuracy below which the discriminator has learnt nothing; guessing gives 0.5."""
WINS = 0.99
"""Accuracy above which the discriminator wins completely."""


def gan_settings(config: Config) -> Gan:
    """The settings of the method."""
    settings = config.train.method_settings()
    assert isinstance(settings, Gan)
    return settings


def check(config: Config) -> None:
    """Refuse settings that adversarial training cannot work with.

    Raises:
        UserError: if there are no weights to start from, or the crop does not suit the discriminator.
    """
    settings = gan_settings(config)
    if config.train.init_from is None and not settings.from_scratch:
        raise UserError(
            'train.method is "gan" without train.init_from, expected the weights of a trained network to start from '
            "or train.gan.from_scratch=true"
        )
    stride = DISCRIMINATORS[settings.discriminator].stride(settings.discriminator_settings())
    if config.data.crop % stride:
        raise UserError(
            f"data.crop is {config.data.crop}, expected a multiple of {stride} for train.gan.discriminator="
            f"{settings.discriminator}"
        )


def penalise_every_step(config: Config) -> Config:
    """Return a configuration of which every step trains both networks and has the penalties that are configured."""
    settings = gan_settings(config).model_copy(update={"warmup_steps": 0, "penalty_every": 1})
    return config.model_copy(update={"train": config.train.model_copy(update={"gan": settings})})


def metrics(config: Config) -> tuple[str, ...]:
    """Return the metrics that each validation measures beside PSNR and SSIM."""
    judged = config.evaluate.st_lpips or perceptual_metric(config) == "st_lpips"
    distance = ["distance"] if config.evaluate.squeezenet is not None else []
    return (*distance, *(["st_lpips"] if judged else []), "lr_psnr", "phase_energy")


def remark(means: Sequence[Mapping[str, float]]) -> str:
    """Say in a sentence if the discriminator has learnt nothing, or wins completely, over the last `WINDOW` steps.

    Args:
        means: the recorded means, oldest first, each with its "step". Those of the first steps, in which the
            discriminator trains alone, do not count.

    Returns:
        The sentence; "" if there is nothing to say, or there are not enough steps yet.
    """
    key = f"train/{DISCRIMINATOR}/accuracy"
    both = [entry for entry in means if key in entry and "train/objective" in entry]
    recent = [entry[key] for entry in both if entry["step"] > both[-1]["step"] - WINDOW]
    if not recent or both[-1]["step"] - both[0]["step"] < WINDOW:
        return ""
    accuracy = sum(recent) / len(recent)
    share = f"{100 * accuracy:.0f} % of true and enlarged parts apart"
    told = f"over the last {WINDOW} steps, the discriminator tells {share}"
    if accuracy < LEARNT_NOTHING:
        return f"{told}: it has learnt nothing, and a higher train.gan.lr or more train.gan.warmup_steps may help"
    if accuracy > WINS:
        return f"{told}: it wins completely, and a lower train.gan.lr or a penalty, train.gan.r1, may help"
    return ""
