"""Compare the cells of a grid with each other and with published results.

`text` is for a terminal; `write` makes Markdown, CSV, a page and a figure, and sends them to MLflow.
"""

from __future__ import annotations

import csv
import functools
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline import storage
from pipeline.evaluation import tables
from pipeline.evaluation.scores import HELD_OUT, METHODS, METRICS, PROTOCOL, Metrics, SetScores
from pipeline.evaluation.tables import aligned, common_metrics, format_value
from pipeline.networks.weights import count_parameters
from pipeline.reporting import pages, report
from pipeline.settings import Config
from pipeline.tracking import JournalRecord, TrackedRun, Tracker, TrainingResult

BICUBIC = METHODS["bicubic"]

PUBLISHED: dict[str, dict[str, Metrics]] = {
    "Set5": {"published bn·mse": {"psnr_y": 30.608}, "published nobn·mse": {"psnr_y": 30.685}},
    "Set14": {"published bn·mse": {"psnr_y": 24.702}, "published nobn·mse": {"psnr_y": 25.981}},
    HELD_OUT: {"published bn·perceptual": {"psnr_y": -0.2512}, "published nobn·perceptual": {"psnr_y": 9.213}},
}
"""Scores that the first publishers of this grid reached at x4, by set and label."""

NOTE = (
    "The published rows were trained on DIV2K with a 15 GB GPU, for 50 epochs with MSE and 20 epochs with the "
    "perceptual loss. Their protocol is not stated, and they hold out other images."
)
"""Differences between the published rows and the cells."""


@dataclass(frozen=True)
class Row:
    """A cell of a grid with its outcome. Without a finished training, only the first three fields are set."""

    label: str
    state: str
    reason: str = ""
    """Why the cell failed or was skipped."""
    config: Config | None = None
    folder: str = ""
    """Path or URL of the training."""
    result: TrainingResult | None = None
    history: list[JournalRecord] = field(default_factory=list)
    """Journal of the training, in order of steps."""
    seconds: float = 0.0
    """Seconds of training, all sessions together."""
    sets: dict[str, SetScores] = field(default_factory=dict)
    """Scores by the name of the set; empty if the cell was not scored."""

    @functools.cached_property
    def effort(self) -> Metrics:
        """Number of parameters, median throughput and seconds of a trained cell."""
        assert self.config
        rates = [r.metrics["train/patches_per_s"] for r in self.history if r.kind == "train"]
        return {
            "parameters": float(count_parameters(self.config.scale, self.config.model)),
            "patches_per_s": statistics.median(rates),
            "train_seconds": self.seconds,
        }

    @property
    def flat_scores(self) -> Metrics:
        """Mean scores of the trained network by keys such as "Set5/psnr_y"."""
        return {
            f"{name}/{key}": value for name, entry in self.sets.items() for key, value in entry.mean["trained"].items()
        }


def text(rows: Sequence[Row], scale: int) -> str:
    """Return both tables and the best cells for a terminal."""
    return f"{aligned(score_table(rows, scale))}\n\n{aligned(cell_table(rows))}\n\n{best(rows)}"


def write(
    folder: str, config: Config, rows: Sequence[Row], facts: dict[str, str], parent: TrackedRun, tracker: Tracker
) -> None:
    """Write results.md, results.csv, comparison.png and report.html to the grid's folder and to MLflow.

    The best cells also get an alias of the registered model in MLflow.

    Args:
        folder: path or URL of the grid.
        config: settings of the grid.
        rows: the cells.
        facts: further values to state, by name.
        parent: MLflow run of the grid.
        tracker: gives access to the runs of the cells.
    """
    scores, cells = score_table(rows, config.scale), cell_table(rows)
    scored = [row for row in rows if row.sets]
    shown = _shown_images(scored)
    held_out = _means(scored, HELD_OUT)
    labels = [BICUBIC, *(row.label for row in scored), report.TRUTH]
    note = NOTE if config.scale == 4 else ""
    page = pages.render(
        "grid.html.j2",
        title=config.name,
        table=scores,
        cells=cells,
        best=best(rows),
        protocol=PROTOCOL,
        published=note,
        images=shown,
        before=BICUBIC,
        after=scored[-1].label if scored else "",
        curves=report.curves(
            {row.label: row.history for row in rows if row.result},
            held_out[BICUBIC]["psnr_y"] if BICUBIC in held_out else None,
        ),
        facts=facts,
        settings=config.to_yaml(),
    ).encode()
    files = {
        "results.md": f"{markdown(scores)}\n{note}\n\n{markdown(cells)}\n{best(rows)}\n".encode(),
        "results.csv": _csv(rows),
        "report.html": page,
    }
    if shown:
        files["comparison.png"] = report.crops_figure(shown[:3], labels)
    for name, content in files.items():
        storage.write(f"{folder}/{name}", content)
        parent.log_file(content, name)
    columns = {title: [row[i] for row in scores[1:]] for i, title in enumerate(scores[0])}
    parent.log_table(columns, "results.json")
    for row in scored:
        run = tracker.find_run(row.folder, parent.id)
        if run:
            run.log_metrics(row.flat_scores | row.effort)
    _register_best(config, scored, tracker, parent)


def score_table(rows: Sequence[Row], scale: int) -> list[list[str]]:
    """Return a header and a row for each set and method: bicubic, the cells, and published results at x4."""
    scored = [row for row in rows if row.sets]
    metrics = common_metrics([row.sets for row in scored]) if scored else dict(list(METRICS.items())[:3])
    table = [["set", "cell", *metrics.values()]]
    published = PUBLISHED if scale == 4 else {}
    sizes = {name: len(entry.images) for row in scored for name, entry in row.sets.items()}
    for name in [*sizes, *(name for name in published if name not in sizes)]:
        for label, values in (_means(scored, name) | published.get(name, {})).items():
            cells = [format_value(key, values[key]) if key in values else "" for key in metrics]
            table.append([name if label.startswith("published") else f"{name} ({sizes[name]})", label, *cells])
    return table


def cell_table(rows: Sequence[Row]) -> list[list[str]]:
    """Return a header and a row for each cell with its state, size, throughput and time."""
    table = [["cell", "state", "parameters", "steps", "patches/s", "time"]]
    for row in rows:
        if row.result is None:
            table.append([row.label, row.state, "", "", "", ""])
            continue
        table.append(
            [
                row.label,
                row.state,
                f"{row.effort['parameters']:,.0f}",
                f"{row.result.steps:,}",
                f"{row.effort['patches_per_s']:.1f}",
                tables.duration(row.seconds),
            ]
        )
    return table


def best(rows: Sequence[Row]) -> str:
    """Return a sentence that names the best cells on the held-out images, by PSNR and by feature distance."""
    titles = {"psnr_y": "highest PSNR", "distance": "lowest SqueezeNet feature distance"}
    cells = {metric: best_row(rows, metric) for metric in titles}
    named = [f"{titles[metric]}: {row.label}" for metric, row in cells.items() if row]
    return f"On held-out images, {'; '.join(named)}." if named else "No cell was scored on held-out images."


def best_row(rows: Sequence[Row], metric: str) -> Row | None:
    """Return the best cell on the held-out images, or None if the metric was not measured.

    Args:
        rows: the cells.
        metric: "psnr_y" (higher is better) or "distance" (lower is better).
    """
    scored = {row.label: row for row in rows if HELD_OUT in row.sets}
    means = {label: row.sets[HELD_OUT].mean["trained"] for label, row in scored.items()}
    values = {label: mean[metric] for label, mean in means.items() if metric in mean}
    if not values:
        return None
    return scored[max(values, key=lambda label: values[label] if metric == "psnr_y" else -values[label])]


def markdown(table: Sequence[Sequence[str]]) -> str:
    """Format a table, the first row of which is the header, as Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in table]
    return "\n".join([lines[0], f"|{'---|' * len(table[0])}", *lines[1:]]) + "\n"


def _means(scored: Sequence[Row], name: str) -> dict[str, Metrics]:
    """Return the mean scores on a set by label, bicubic among them."""
    means: dict[str, Metrics] = {}
    for row in scored:
        entry = row.sets.get(name)
        if entry:
            means.setdefault(BICUBIC, entry.mean["bicubic"])
            means[row.label] = entry.mean["trained"]
    return means


def _shown_images(scored: Sequence[Row]) -> list[report.ShownImage]:
    """Load the images that every cell shows."""
    if not scored:
        return []
    shown = []
    for name in [name for name in scored[0].sets if all(name in row.sets for row in scored)]:
        for i, image in enumerate(scored[0].sets[name].images):
            versions = {row.label: row.sets[name].images[i] for row in scored}
            if not all(version.shown for version in versions.values()):
                continue
            urls = {BICUBIC: image.shown["bicubic"]}
            urls |= {label: version.shown["trained"] for label, version in versions.items()}
            scores = {BICUBIC: image.scores["bicubic"]}
            scores |= {label: version.scores["trained"] for label, version in versions.items()}
            shown.append(report.load_shown(name, image.name, {**urls, report.TRUTH: image.shown["hr"]}, scores))
    return shown


def _register_best(config: Config, scored: Sequence[Row], tracker: Tracker, parent: TrackedRun) -> None:
    model = f"{config.model.name}-x{config.scale}"
    for alias, metric in (("best-psnr", "psnr_y"), ("best-perceptual", "distance")):
        row = best_row(scored, metric)
        run = tracker.find_run(row.folder, parent.id) if row else None
        if row and run:
            description = f"{row.label} of the grid {config.name}, chosen on held-out images; safetensors"
            tracker.register_model(model, alias, run, "model", description)


def _csv(rows: Sequence[Row]) -> bytes:
    """Return a line for each cell with all numbers in full precision."""
    lines: list[Mapping[str, object]] = []
    for row in rows:
        line: dict[str, object] = {"cell": row.label, "state": row.state, "reason": row.reason}
        if row.result:
            line |= {"training": row.folder.rpartition("/")[2], "steps": row.result.steps, **row.effort}
            line |= row.flat_scores
        lines.append(line)
    sink = io.StringIO()
    writer = csv.DictWriter(sink, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return sink.getvalue().encode()
