"""The outcome of an evaluation of models: a table, CSV, one comparison of crops for each set, and a run in MLflow."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import pyplot as plt
from PIL import Image

from pipeline import storage, terminal, tracking
from pipeline.evaluation import tables
from pipeline.evaluation.models import evaluate_models
from pipeline.evaluation.sampled import Drawing
from pipeline.evaluation.scores import METRICS, ImageScores, Metrics, Scores, SetScores, comparison_file
from pipeline.evaluation.scoring import busiest_crop
from pipeline.reporting.drawing import plain_text
from pipeline.settings import Config
from sr_model.pixels import Pixels

_CROP = 128
"""Side of a shown crop in HR pixels."""
_MOST_ROWS = 12
_CELL_INCHES = 1.9
_CAPTION = ("psnr_y", "ssim_y", "st_lpips")
"""Metrics under a crop, as far as they were measured."""


@dataclass(frozen=True)
class Scoreboard:
    """The outcome of an evaluation of models."""

    scores: Scores
    files: list[str]
    """Paths or URLs of what was written."""
    remarks: list[str]
    """Sentences that belong below the table, such as warnings."""

    @property
    def table(self) -> str:
        """The mean scores as a table of text."""
        return tables.scores_table(self.scores)


def score_models(
    config: Config,
    models: Sequence[str],
    self_ensemble: bool = False,
    folder: str | None = None,
    csv: str | None = None,
    track: bool = False,
    drawing: Drawing = Drawing(),  # noqa: B008 (it cannot be changed)
    consistent: bool = False,
) -> Scoreboard:
    """Score models, and write the scores.

    Args:
        config: names the sets.
        models: see `evaluate_models`.
        self_ensemble: see `evaluate_models`.
        folder: see `evaluate_models`.
        csv: path or URL of a further CSV file.
        track: log the scores and files to MLflow.
        drawing: see `evaluate_models`.
        consistent: see `evaluate_models`.

    Raises:
        UserError: if a model, a set or an image cannot be used, or MLflow cannot be reached.
        OSError: if a file cannot be written.
    """
    found = evaluate_models(config, models, self_ensemble, folder, drawing, consistent)
    table = tables.scores_csv(found.scores)
    files = {"scores.csv": table}
    with terminal.stage("", "drawing comparisons"):
        for name, entry in found.scores.sets.items():
            if any(image.shown for image in entry.images):
                files[comparison_file(name)] = draw_comparison(name, entry)
    for name, content in files.items():
        storage.write(f"{found.folder}/{name}", content)
    if csv:
        storage.write(csv, table)
    if track:
        _send(config, models, found.folder, found.scores, files)
    written = [f"{found.folder}/{name}" for name in ("scores.json", *files)]
    return Scoreboard(found.scores, [*written, *([csv] if csv else [])], found.remarks)


def draw_comparison(name: str, entry: SetScores) -> bytes:
    """Draw the first shown images of a set as PNG: a row for each image, and a column for LR, each method and HR.

    Each crop is the most detailed square of 128 pixels of its image. Its scores, which are those of the whole image,
    stand below it.
    """
    images = [image for image in entry.images if image.shown][:_MOST_ROWS]
    columns = ["lr", *entry.mean, "hr"]
    figure, axes = plt.subplots(
        len(images),
        len(columns),
        figsize=(_CELL_INCHES * len(columns), (_CELL_INCHES + 0.35) * len(images) + 0.4),
        squeeze=False,
        layout="constrained",
    )
    for row, image in zip(axes, images, strict=True):
        crops = _crops(image)
        for axis, column in zip(row, columns, strict=True):
            axis.set(xticks=[], yticks=[])
            for side in axis.spines.values():
                side.set_visible(False)
            if column in crops:
                axis.imshow(crops[column], interpolation="nearest")
            else:
                axis.imshow(np.full((_CROP, _CROP, 3), 255, np.uint8))
            axis.set_xlabel(plain_text(_caption(image, column)), fontsize=7)
    for axis, column in zip(axes[0], columns, strict=True):
        title = {"lr": "LR", "hr": "HR"}.get(column, column)
        axis.set_title(plain_text(title if len(title) <= 24 else f"{title[:23]}…"), fontsize=8)
    figure.suptitle(plain_text(name), fontsize=9)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=160)
    plt.close(figure)
    return sink.getvalue()


def _crops(image: ImageScores) -> dict[str, Pixels]:
    """Return the same part of each version of an image; LR pixels become squares of the same size."""
    whole = {kind: _read(url) for kind, url in image.shown.items()}
    truth = whole["hr"]
    side = min(_CROP, *truth.shape[:2])
    scale = truth.shape[1] // whole["lr"].shape[1]
    y, x = (corner // scale * scale for corner in busiest_crop(truth, side))
    whole["lr"] = whole["lr"].repeat(scale, axis=0).repeat(scale, axis=1)
    return {kind: pixels[y : y + side, x : x + side] for kind, pixels in whole.items()}


def _read(url: str) -> Pixels:
    try:
        return np.asarray(Image.open(io.BytesIO(storage.read(url) or b"")).convert("RGB"))
    except Exception:  # Pillow raises exceptions of many classes for a damaged file
        raise storage.DamagedFileError(f"{url} is damaged: {storage.DELETE_AND_RERUN}") from None


def _caption(image: ImageScores, column: str) -> str:
    """Return the scores of a version; under the LR and HR image their names, under a missing version the reason."""
    if column in ("lr", "hr"):
        return image.name if column == "lr" else "ground truth"
    metrics = image.scores.get(column)
    if metrics is None:
        return "no result"
    values = [tables.format_value(key, metrics[key]) for key in _CAPTION if key in metrics]
    values[0] += " dB"
    last = f"\n{METRICS['st_lpips']} {values.pop()}" if "st_lpips" in metrics else ""
    return f"{' / '.join(values)}{last}"


def _send(config: Config, models: Sequence[str], folder: str, scores: Scores, files: Mapping[str, bytes]) -> None:
    """Log parameters, mean scores, the table and the files as a run in MLflow."""
    title = storage.redact(f"evaluate {', '.join(models)}")[:250]
    with tracking.Tracker(config).run(folder, title, {"stage": "evaluate"}) as run:
        run.describe({"models": ", ".join(models), "sets": ", ".join(scores.sets)}, config)
        metrics: Metrics = {
            f"{name}/{storage.plain_name(method)}/{key}": value
            for name, entry in scores.sets.items()
            for method, means in entry.mean.items()
            for key, value in means.items()
        }
        run.log_metrics(metrics)
        rows = tables.scores_rows(scores)
        titles = ["set", "model", *rows[0][2:]]
        run.log_table({title: [row[i] for row in rows[1:]] for i, title in enumerate(titles)}, "results.json")
        for name, content in files.items():
            run.log_file(content, name)
