"""Settings of a grid."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator

from pipeline.settings.fields import STRICT, absolute_path


class Tune(BaseModel):
    """The grid of `python -m pipeline.tune`."""

    model_config = STRICT

    grid: dict[str, list[Any] | dict[str, Any]] = {
        "model.batch_norm": [True, False],
        "train.loss": {"mse": {"mse": 1.0}, "perceptual": {"perceptual": 1.0, "tv": 5.5e-4}},
    }
    """Axes: values of any setting, of which every combination is a trial; a mapping gives them names."""
    sample: dict[str, dict[str, list[Any]]] = {}
    """Settings that are drawn at random for each trial: {"train.lr": {"loguniform": [1e-4, 1e-3]}}, also uniform,
    randint, lograndint, and choice with the list of values."""
    samples: int = Field(1, ge=1)
    """Random draws for every combination of the grid, seeded by `train.seed`."""
    also: dict[str, dict[str, Any]] = {}
    """Further cells, by name: the settings, by dotted key, in which each differs from the configuration."""
    scheduler: Literal["none", "asha"] = "none"
    """Whether trials that are behind are stopped early (asynchronous successive halving)."""
    metric: str = "val/psnr_y"
    """What the scheduler goes by: of held-out images; benchmark sets choose nothing."""
    grace: int = Field(500, ge=1)
    """Steps before which the scheduler stops no trial."""
    concurrent: int | None = Field(None, ge=1)
    """Trials at once; where not given, as many as fit."""
    records: str | None = None
    """Folder that finished cells are put into, each with its weights in fp16, metrics and a model card; a cell whose
    training is found there counts as finished. A submitted job puts them into records/ of the home of outputs."""
    note: str = ""
    """What the images are and on what terms they may be used, for the model cards."""

    @field_validator("metric")
    @classmethod
    def _held_out(cls, value: str) -> str:
        if not value.startswith("val/"):
            raise ValueError("a metric of held-out images, such as val/psnr_y or val/ssim_y")
        return value

    @field_validator("records")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        return value if value is None else absolute_path(value)
