"""Tell MLflow about the best cells of a grid: scores on the grid's run, and versions of a registered model."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline import storage, tracking
from pipeline.evaluation.scores import HELD_OUT, PROTOCOL_VERSION, SetScores
from pipeline.reporting.comparison import Row, best_row
from pipeline.settings import Config
from pipeline.tracking import ModelVersion, TrackedRun, Tracker


def send_best(config: Config, rows: Sequence[Row], parent: TrackedRun, tracker: Tracker) -> None:
    """Log the scores of the cell with the highest PSNR to the grid's run, and register the best cells.

    The cell with the highest PSNR on the held-out images gets the alias `best-psnr`, and the cell with the lowest
    perceptual distance `best-perceptual`, if they are better than the versions that have them.
    `tracking.register_models` turns the registration off.

    Args:
        config: settings of the grid.
        rows: the cells.
        parent: MLflow run of the grid.
        tracker: gives access to the runs of the cells.
    """
    leading = best_row(rows, "psnr_y")
    if leading:
        parent.log_metrics(leading.flat_scores)
        parent.set_tags({"best_cell": leading.label})
    if not config.tracking.register_models:
        return
    for alias, metric in (("best-psnr", "psnr_y"), ("best-perceptual", "distance")):
        row = best_row(rows, metric)
        run = tracker.find_run(row.folder, parent.id) if row else None
        if row and run:
            version = ModelVersion(
                model=f"{row.config.model.name}-x{row.config.scale}",
                run=run,
                path="model",
                description=f"{row.label} of the grid {config.name}, chosen on held-out images; safetensors",
                scale=row.config.scale,
                held_out=identify_images(row.sets[HELD_OUT]),
                scores=row.flat_scores,
            )
            tracking.register_version(tracker, version, alias, f"{HELD_OUT}/{metric}", metric == "psnr_y")


def identify_images(scores: SetScores) -> str:
    """Return a fingerprint of the images of a set and of how they are scored.

    The scores of bicubic interpolation stand for the content of the images, because they depend on nothing else.
    """
    images = [[image.name, f"{image.scores['bicubic']['psnr_y']:.2f}"] for image in scores.images]
    return storage.fingerprint([PROTOCOL_VERSION, images])
