"""The records of a training's journal as metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.cluster import metrics
from pipeline.tracking import JournalRecord


def show_figures(training: str, records: Sequence[JournalRecord], backlog: int) -> None:
    """Show what new records of a journal tell.

    The driver calls it, because it outlives the workers: with them, their series would end at each restart.

    Args:
        training: name of the training.
        records: the new records, in order of steps.
        backlog: number of records that MLflow has not received yet.
    """
    metrics.show_backlog(training, backlog)
    for record in records:
        values = record.metrics
        if "val/psnr_y" in values:
            metrics.show_score(training, values["val/psnr_y"])
        if record.kind == "train":
            metrics.show_progress(
                training,
                metrics.Progress(
                    step=record.step,
                    planned=values["train/steps_total"],
                    loss=values.get("train/objective"),
                    patches_per_s=values["train/patches_per_s"],
                    data_wait_share=values["train/data_wait_share"],
                    skipped=values["train/skipped"],
                ),
            )
