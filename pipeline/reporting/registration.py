"""Tell MLflow about the best networks: their scores, and versions of a registered model."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline import storage, tracking
from pipeline.evaluation.scores import HELD_OUT, PROTOCOL_VERSION, SetScores, higher_is_better
from pipeline.reporting.comparison import best_row, perceptual_metric
from pipeline.reporting.rows import Row
from pipeline.settings import Config
from pipeline.settings.methods import METHODS
from pipeline.tracking import ModelVersion, TrackedRun, Tracker


def send_best(config: Config, rows: Sequence[Row], parent: TrackedRun, tracker: Tracker) -> None:
    """Log the scores of the best cell to the grid's run, and register the best cells.

    The metric that selects weights during the training, by default PSNR, also decides which cell is the best.

    Args:
        config: settings of the grid.
        rows: the cells.
        parent: MLflow run of the grid.
        tracker: gives access to the runs of the cells.
    """
    leading = best_row(rows, METHODS[config.train.method].selects(config))
    if leading:
        parent.log_metrics(leading.flat_scores)
        parent.set_tags({"best_cell": leading.label})
    register_best(config, rows, f"of the grid {config.name}", parent, tracker)


def register_best(config: Config, rows: Sequence[Row], origin: str, parent: TrackedRun, tracker: Tracker) -> bool:
    """Register the best trainings as versions of a model, and give them its aliases.

    The training with the highest PSNR on the held-out images gets the alias `best-psnr`, and the one with the lowest
    perceptual distance `best-perceptual`, if they are better than the versions that have them. The distance is that of
    SqueezeNet where it is configured, else ST-LPIPS.
    `tracking.register_models` turns the registration off.

    Args:
        config: settings of the workflow or grid.
        rows: its trainings.
        origin: says in the description where they come from, such as "of the grid demo".
        parent: MLflow run of the workflow or grid.
        tracker: gives access to the runs of the trainings.

    Returns:
        True if MLflow received all of it, or nothing is registered.
    """
    if not config.registered_model:
        return True
    complete = True
    for alias, metric in (("best-psnr", "psnr_y"), ("best-perceptual", perceptual_metric(rows))):
        row = best_row(rows, metric)
        run = tracker.find_run(row.folder, parent.id) if row else None
        if row and run and (model := row.config.registered_model):
            complete &= tracking.register_version(
                tracker,
                ModelVersion(
                    model=model,
                    run=run,
                    description=f"{row.label} {origin}, scored on held-out images",
                    scale=row.config.scale,
                    held_out=identify_images(row.sets[HELD_OUT]),
                    scores=row.flat_scores,
                ),
                alias,
                f"{HELD_OUT}/{metric}",
                higher_is_better(metric),
            )
    return complete


def identify_images(scores: SetScores) -> str:
    """Return a fingerprint of the images of a set and of how they are scored.

    The scores of bicubic interpolation stand for the content of the images, because they depend on nothing else.
    """
    images = [[image.name, f"{image.scores['bicubic']['psnr_y']:.2f}"] for image in scores.images]
    return storage.fingerprint([PROTOCOL_VERSION, images])
