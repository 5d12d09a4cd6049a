"""The ways of training: their names and settings. Each one's file is in `pipeline.training.methods`.

To add one, write that file, and add its settings, if it has any, and its `MethodKind` to `METHODS`. This module imports
no torch, so that a command can check its settings at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.settings.fields import MethodSettings
from pipeline.settings.gan import Gan
from sr_model.deferred import deferred

if TYPE_CHECKING:
    from pipeline.settings.schema import Config


def _accept(_: Config) -> None:
    """Accept all settings."""


def _as_it_is(config: Config) -> Config:
    return config


def _psnr(_: Config) -> str:
    return "psnr_y"


def perceptual_metric(config: Config) -> str:
    """The distance that selects weights: that of SqueezeNet where its weights are configured, else ST-LPIPS."""
    return "distance" if config.evaluate.squeezenet is not None else "st_lpips"


def _no_metrics(_: Config) -> tuple[str, ...]:
    return ()


def _no_remark(_: Sequence[Mapping[str, float]]) -> str:
    return ""


@dataclass(frozen=True)
class MethodKind:
    """A kind of method: its name and settings, how to make it, and what its validations measure."""

    name: str
    """Value of `train.method`; a method with settings has a section of the same name in `train`."""
    create: Callable[[Any], Any]
    """Make the `Method` of a `Setup` (`pipeline.training.methods.method`)."""
    check: Callable[[Config], None] = _accept
    """Refuse settings that the method cannot work with, by a UserError, before anything starts."""
    settings: type[MethodSettings] = MethodSettings
    heaviest: Callable[[Config], Config] = _as_it_is
    """Return a configuration of which every step takes as much memory as the heaviest step of this one."""
    selects: Callable[[Config], str] = _psnr
    """The metric of held-out images that chooses the best weights, a key of `pipeline.evaluation.scores.METRICS`."""
    measures: Callable[[Config], tuple[str, ...]] = _no_metrics
    """Metrics that each validation measures beside PSNR and SSIM, names of `pipeline.evaluation.scoring.FURTHER`."""
    remark: Callable[[Sequence[Mapping[str, float]]], str] = _no_remark
    """A sentence about the means that the training has recorded so far, oldest first; "" if there is nothing to say."""


_ALL = (
    MethodKind("supervised", deferred("pipeline.training.methods.supervised:Supervised")),
    MethodKind(
        "gan",
        deferred("pipeline.training.methods.gan:AdversarialTraining"),
        check=deferred("pipeline.training.methods.gan_checks:check"),
        settings=Gan,
        heaviest=deferred("pipeline.training.methods.gan_checks:penalise_every_step"),
        selects=perceptual_metric,
        measures=deferred("pipeline.training.methods.gan_checks:metrics"),
        remark=deferred("pipeline.training.methods.gan_checks:remark"),
    ),
    MethodKind(
        "flow",
        deferred("pipeline.training.methods.flow:Refinement"),
        check=deferred("pipeline.training.methods.flow_checks:check"),
        selects=perceptual_metric,
        measures=deferred("pipeline.training.methods.flow_checks:metrics"),
    ),
)

METHODS: dict[str, MethodKind] = {kind.name: kind for kind in _ALL}
"""All ways of training by name; the first one is the default."""

DEFAULT_METHOD = next(iter(METHODS))
"""Name of the method that a configuration without `train.method` describes."""


def measured_metrics(config: Config) -> list[str]:
    """The metrics that validations measure beside PSNR and SSIM: those of the method, and what a scheduler compares."""
    compared = (config.tune.metric or "").removeprefix("val/")
    return list(dict.fromkeys([*METHODS[config.train.method].measures(config), *filter(None, [compared])]))


def has_settings(kind: MethodKind) -> bool:
    """Tell whether a method has a section of settings."""
    return kind.settings is not MethodSettings
