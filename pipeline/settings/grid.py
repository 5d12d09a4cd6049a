"""Settings of a grid of trainings."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from pipeline.settings.fields import STRICT, absolute_path

Moments = Literal["bf16", "fp32"]
"""Precision of the moments of an optimizer in a record."""


class Tune(BaseModel):
    """Settings of the grid that `python -m pipeline.tune` trains."""

    model_config = STRICT

    grid: dict[str, list[Any] | dict[str, Any]] = Field(
        {
            "model.batch_norm": [True, False],
            "train.loss": {"mse": {"mse": 1.0}, "perceptual": {"perceptual": 1.0, "tv": 5.5e-4}},
        },
        examples=['{"train.lr": [1e-4, 2e-4]}'],
    )
    """Axes of the grid: for each setting, by its dotted key, the list of its values, or a mapping from labels to
    values. Every combination is one cell."""
    sample: dict[str, dict[str, list[Any]]] = Field({}, examples=['{"train.lr": {"loguniform": [1e-4, 1e-3]}}'])
    """Settings that are drawn at random for each cell, such as {"train.lr": {"loguniform": [1e-4, 1e-3]}}. The
    distributions are uniform, loguniform, randint and lograndint with their bounds, and choice with a list of
    values."""
    samples: int = Field(1, ge=1)
    """Number of random draws for each combination of the grid. `train.seed` seeds them."""
    also: dict[str, dict[str, Any]] = Field({}, examples=['{"long": {"train.length": "20 epochs"}}'])
    """Additional cells: for each label, the settings by dotted key that differ from the configuration."""
    scheduler: Literal["none", "asha"] = "none"
    """Early stopping of cells: "none", or "asha" to stop those that fall behind (asynchronous successive halving)."""
    metric: str | None = None
    """Validation metric that the scheduler compares, by default the one that selects the best weights: `val/psnr_y`, or
    a perceptual distance in adversarial training and refinement. Benchmark metrics are not allowed to select."""
    grace: int = Field(500, ge=1)
    """Number of steps before the scheduler may stop a cell."""
    concurrent: int | None = Field(None, ge=1)
    """Number of cells that train at the same time. By default, it is as many as the cluster has room for."""
    trials_per_gpu: int = Field(1, ge=1, le=100)
    """Most cells that share a GPU if more cells train at the same time than there are GPUs. Only cells with one worker
    share a GPU."""
    records: str | None = None
    """Folder or URL of finished cells' records: weights in fp16, metrics and a model card. A cell whose training is
    recorded there counts as finished, and newly finished cells are recorded there unless `new_records` is set."""
    new_records: str | None = None
    """Folder or URL in which newly finished cells are recorded. By default, it is the folder `records`. In a submitted
    job, it is records/ in the home folder if `records` is a local folder, because Ray deletes a job's local files."""
    keep_state: Moments | None = None
    """Also record trainings that `cluster.stop_after` ends early, with the state that they need to resume on any
    machine that has the record: the weights, their moving average, the position, and the moments of the optimizer in
    "bf16" or "fp32". With "fp32", a training resumes exactly. By default, only finished trainings are recorded."""
    note: str = ""
    """Text for the model cards that says what the images are and under which terms they may be used."""

    @field_validator("grid", "sample", "also")
    @classmethod
    def _finite_numbers(cls, value: Any) -> Any:
        if not _is_finite(value):
            raise ValueError("finite numbers")
        return value

    @field_validator("metric")
    @classmethod
    def _validation_metric(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("val/"):
            raise ValueError("a metric of held-out images, such as val/psnr_y or val/ssim_y")
        return value

    @field_validator("records", "new_records")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        return value if value is None else absolute_path(value)

    @model_validator(mode="after")
    def _state_in_records(self) -> Tune:
        if self.keep_state and not self.records:
            raise ValueError("tune.keep_state keeps the state in records, expected tune.records to name their folder")
        return self


def _is_finite(value: Any) -> bool:
    """Tell whether all numbers in nested lists and mappings are finite."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
