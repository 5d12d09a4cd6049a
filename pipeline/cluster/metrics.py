"""Metrics of the pipeline for Prometheus, beside those that Ray itself reports.

Each node of a Ray cluster serves the metrics of its processes. Ray adds "ray_" before each name and "_total" after the
name of a counter. A process that is not connected to Ray records nothing, so nothing here needs a setting.

A gauge keeps its last value as long as the process of its training lives.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import ray
import ray.util.metrics

_CHECKPOINT_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds of the classes of seconds: a local disk takes less than the first, a busy object store the last."""


@dataclass(frozen=True)
class Metric:
    """A metric of the pipeline."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    label: str
    """The label that tells series apart."""
    description: str
    """A sentence without a full stop that the documentation shows."""

    @property
    def served(self) -> tuple[str, ...]:
        """The names that Prometheus reads."""
        endings = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
        return tuple(f"ray_{self.name}{ending}" for ending in endings[self.kind])


IMAGES = Metric("sr_images", "counter", "stage", "images that a stage has finished, rejected ones included")
REJECTED = Metric("sr_rejected_images", "counter", "stage", "images that a stage has rejected or could not enlarge")
STEP = Metric("sr_training_step", "gauge", "training", "number of finished optimizer steps")
PLANNED = Metric("sr_training_planned_steps", "gauge", "training", "optimizer steps of the whole training")
LOSS = Metric("sr_training_loss", "gauge", "training", "mean objective over the last recorded steps")
PSNR = Metric("sr_training_psnr_db", "gauge", "training", "PSNR of the held-out images (Y channel), in dB")
PATCHES = Metric("sr_training_patches_per_second", "gauge", "training", "patches of all workers per second")
DATA_WAIT = Metric(
    "sr_training_data_wait_share", "gauge", "training", "share of its time that the slowest worker waits for patches"
)
SKIPPED = Metric("sr_training_skipped_steps", "gauge", "training", "optimizer steps that were not finite")
CHECKPOINT = Metric("sr_checkpoint_seconds", "histogram", "training", "seconds in which a checkpoint was written")
BACKLOG = Metric("sr_mlflow_backlog_records", "gauge", "training", "records that MLflow has not received yet")

METRICS = (IMAGES, REJECTED, STEP, PLANNED, LOSS, PSNR, PATCHES, DATA_WAIT, SKIPPED, CHECKPOINT, BACKLOG)
"""All metrics of the pipeline."""


@dataclass(frozen=True)
class Progress:
    """The figures that a training reports of its last steps."""

    step: int
    planned: float
    loss: float | None
    """None while only a discriminator learns."""
    patches_per_s: float
    data_wait_share: float
    """From 0 to 1."""
    skipped: float


def count_images(stage: str, images: int, rejected: int) -> None:
    """Count images that a stage has just finished, and how many of them it has rejected."""
    _record(stage, {IMAGES: images, REJECTED: rejected})


def show_progress(training: str, progress: Progress) -> None:
    """Show how far a training has come; `training` is its name."""
    _record(
        training,
        {
            STEP: progress.step,
            PLANNED: progress.planned,
            PATCHES: progress.patches_per_s,
            DATA_WAIT: progress.data_wait_share,
            SKIPPED: progress.skipped,
            **({} if progress.loss is None else {LOSS: progress.loss}),
        },
    )


def show_score(training: str, psnr: float) -> None:
    """Show the PSNR of a training's last validation, in dB."""
    _record(training, {PSNR: psnr})


def show_backlog(training: str, records: int) -> None:
    """Show how many records of a training MLflow has not received yet."""
    _record(training, {BACKLOG: records})


def show_pause(training: str) -> None:
    """Show that a training makes no steps, after it has ended or was interrupted."""
    _record(training, {PATCHES: 0, DATA_WAIT: 0})


def observe_checkpoint(training: str, seconds: float) -> None:
    """Add the time in which a checkpoint was written."""
    _record(training, {CHECKPOINT: seconds})


def _record(value_of_label: str, values: Mapping[Metric, float]) -> None:
    """Record a value of each metric, unless this process is not connected to Ray."""
    if not ray.is_initialized():
        return
    for metric, value in values.items():
        instrument = _instrument(metric)
        labels = {metric.label: value_of_label}
        if isinstance(instrument, ray.util.metrics.Gauge):
            instrument.set(value, labels)
        elif isinstance(instrument, ray.util.metrics.Histogram):
            instrument.observe(value, labels)
        elif value > 0:  # Ray refuses to add 0
            instrument.inc(value, labels)


@functools.cache
def _instrument(
    metric: Metric,
) -> ray.util.metrics.Counter | ray.util.metrics.Gauge | ray.util.metrics.Histogram:
    """Return Ray's object for a metric, of which each process needs one."""
    if metric.kind == "histogram":
        return ray.util.metrics.Histogram(metric.name, metric.description, list(_CHECKPOINT_S), (metric.label,))
    kind = ray.util.metrics.Gauge if metric.kind == "gauge" else ray.util.metrics.Counter
    return kind(metric.name, metric.description, (metric.label,))
