"""The parts of the method "flow" that need no torch: what it refuses, and what validations measure."""

from __future__ import annotations

from pipeline.settings import Config, UserError
from pipeline.settings.methods import perceptual_metric
from sr_model.networks.settings import RefinerSettings
from sr_model.terms import TERMS


def check(config: Config) -> None:
    """Refuse settings that repeated refinement cannot work with.

    Raises:
        UserError: if the network does not draw images in steps, it has no weights to start from, or the objective has
            terms that need images.
    """
    model = config.model
    if not isinstance(model, RefinerSettings):
        raise UserError(f"train.method is flow, but model.name is {model.name}, expected refiner")
    if model.process == "flow" and config.train.init_from is None:
        raise UserError(
            "train.method is flow without train.init_from, expected the weights of the trained network that "
            "model.base describes, or model.process=sr3, which starts from noise"
        )
    if model.process == "sr3" and config.train.init_from is not None:
        raise UserError(
            "train.init_from names weights, but model.process is sr3, which starts from noise: expected none, or "
            "model.process=flow"
        )
    unfit = [name for name in config.train.loss if not TERMS[name].compares_pixels]
    if unfit:
        able = ", ".join(name for name, kind in TERMS.items() if kind.compares_pixels)
        raise UserError(
            f"train.loss has {unfit[0]}, which needs an image, but train.method=flow compares velocities or noise: "
            f"expected terms among {able}"
        )


def metrics(config: Config) -> tuple[str, ...]:
    """Return the metrics of each validation beside PSNR and SSIM: the configured distances, and consistency."""
    chosen = perceptual_metric(config)
    further = ["st_lpips"] if config.evaluate.st_lpips and chosen != "st_lpips" else []
    return (chosen, *further, "lr_psnr")
