"""Compare the cells of a grid with each other and with published results.

`text` is for a terminal; `write` makes Markdown, CSV, a page and a figure, and sends them to MLflow.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline import storage, terminal
from pipeline.evaluation.scores import HELD_OUT, METHODS, METRICS, PROTOCOL, Metrics, higher_is_better
from pipeline.evaluation.tables import aligned, common_metrics, format_value
from pipeline.reporting import cost, pages, plane, report
from pipeline.reporting.rows import Row
from pipeline.settings import Config
from pipeline.tracking import TrackedRun, Tracker, describe_model

BICUBIC = METHODS["bicubic"]

_PERCEPTUAL = {"distance": "SqueezeNet feature distance", "st_lpips": "ST-LPIPS"}
"""Perceptual distances with their names in sentences."""


@dataclass(frozen=True)
class Published:
    """Scores that the first publishers of this grid reached in one of its cells, at x4."""

    label: str
    batch_norm: bool
    perceptual: bool
    """True if the objective compares features, False if it is MSE alone."""
    psnr_y: Metrics
    """PSNR (Y) in dB by the name of the set."""

    def is_like(self, config: Config) -> bool:
        """Tell whether a configuration trains the same cell: network, BatchNorm, objective and scale."""
        network, loss = config.model.model_dump(), config.train.loss
        full_size = {"name": "srresnet", "channels": 64, "blocks": 16, "batch_norm": self.batch_norm}
        same_objective = "perceptual" in loss if self.perceptual else set(loss) == {"mse"}
        return config.scale == 4 and full_size.items() <= network.items() and same_objective


PUBLISHED = (
    Published("published bn·mse", True, False, {"Set5": 30.608, "Set14": 24.702}),
    Published("published nobn·mse", False, False, {"Set5": 30.685, "Set14": 25.981}),
    Published("published bn·perceptual", True, True, {HELD_OUT: -0.2512}),
    Published("published nobn·perceptual", False, True, {HELD_OUT: 9.213}),
)
"""Published scores, in the order of their rows."""

NOTE = (
    "Source of the published rows: the project of students who trained this grid first, on DIV2K with a 15 GB GPU, for "
    "50 epochs with MSE and 20 epochs with the perceptual loss. Their protocol is not stated, and they hold out other "
    "images."
)
"""Source of the published rows, and their differences from the cells."""


def text(rows: Sequence[Row]) -> str:
    """Return both tables, the best cells and the source of published rows for a terminal."""
    parts = [aligned(score_table(rows)), aligned(cell_table(rows)), best(rows), *([NOTE] if _published(rows) else [])]
    return "\n\n".join(parts)


def missing(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for each cell without a result: its label, its state and the reason."""
    return [f"cell {row.label} {row.state}: {row.reason}" for row in rows if row.reason]


def write(
    folder: str, config: Config, rows: Sequence[Row], facts: dict[str, str], parent: TrackedRun, tracker: Tracker
) -> None:
    """Write results.md, results.csv, comparison.png and report.html to the grid's folder and to MLflow.

    Args:
        folder: path or URL of the grid.
        config: settings of the grid.
        rows: the cells.
        facts: further values to state, by name.
        parent: MLflow run of the grid.
        tracker: gives access to the runs of the cells.
    """
    scores, cells = score_table(rows), cell_table(rows)
    scored = [row for row in rows if row.sets]
    shown = _shown_images(scored)
    held_out = _means(scored, HELD_OUT)
    labels = [BICUBIC, *(row.title for row in scored), report.TRUTH]
    note = NOTE if _published(rows) else ""
    points = plane.list_points(rows)
    positions, drawing = plane.plane_table(points), plane.draw_plane(points)
    costs = cost.draw_costs(rows)
    page = pages.render(
        "grid.html.j2",
        title=config.name,
        table=scores,
        cells=cells,
        positions=positions,
        plane=drawing,
        costs=costs,
        missing=missing(rows),
        best=best(rows),
        protocol=PROTOCOL,
        published=note,
        images=shown,
        before=BICUBIC,
        after=scored[-1].title if scored else "",
        curves=report.curves(
            {row.title: row.history for row in rows if row.steps},
            held_out[BICUBIC]["psnr_y"] if BICUBIC in held_out else None,
        ),
        facts={name: storage.redact(value) for name, value in facts.items()},
        settings=storage.redact(config.to_yaml()),
    ).encode()
    files = {
        "results.md": "\n".join([markdown(scores), note, "", markdown(cells), *missing(rows), best(rows), ""]).encode(),
        **({"plane.md": markdown(positions).encode(), "plane.svg": drawing.encode()} if drawing else {}),
        **({"cost.svg": costs.encode()} if costs else {}),
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
            log_scores(row, run)
            run.log_metrics(row.effort)


def log_scores(row: Row, run: TrackedRun) -> bool:
    """Log the scores of a training, as metrics of its run and of its model; return True if MLflow received them.

    The model is logged before, if the training is finished and an earlier release of this pipeline tracked it without.
    """
    return (row.stopped or _log_missing_model(row, run)) and run.log_scores(row.flat_scores)


def _log_missing_model(row: Row, run: TrackedRun) -> bool:
    """Log the model of a finished training unless its run has one; return True if MLflow has it."""
    if run.find_model():
        return True
    weights = storage.read(f"{row.folder}/model.safetensors")
    name = row.folder.rpartition("/")[2]
    return weights is not None and run.log_model(describe_model(row.config, name, weights, row.flat_scores))


def score_table(rows: Sequence[Row]) -> list[list[str]]:
    """Return a header and a row for each set and method: bicubic, the cells, and published results of such cells."""
    scored = [row for row in rows if row.sets]
    metrics = common_metrics([row.sets for row in scored]) if scored else dict(list(METRICS.items())[:3])
    table = [["set", "cell", *metrics.values()]]
    sizes = {name: len(entry.images) for row in scored for name, entry in row.sets.items()}
    for name, size in sizes.items():
        for label, values in _means(scored, name).items():
            table.append([f"{name} ({size})", label, *(format_value(key, values[key]) for key in metrics)])
        for known in _published(rows):
            if name in known.psnr_y:
                psnr = format_value("psnr_y", known.psnr_y[name])
                table.append([name, known.label, *(psnr if key == "psnr_y" else "" for key in metrics)])
    return table


def _published(rows: Sequence[Row]) -> list[Published]:
    """Return the published results of cells that these rows have, too, on sets that were scored here."""
    sets = {name for row in rows for name in row.sets}
    return [known for known in PUBLISHED if sets & known.psnr_y.keys() and any(known.is_like(r.config) for r in rows)]


def cell_table(rows: Sequence[Row]) -> list[list[str]]:
    """Return a header and a row for each cell with its state, size, throughput and time."""
    table = [["cell", "state", "parameters", "steps", "patches/s", "time"]]
    for row in rows:
        if not row.steps:
            table.append([row.label, row.state, "", "", "", ""])
            continue
        table.append(
            [
                row.label,
                row.state,
                f"{row.effort['parameters']:,.0f}",
                f"{row.steps:,}",
                f"{row.effort['patches_per_s']:.1f}" if "patches_per_s" in row.effort else "",
                terminal.duration(row.seconds),
            ]
        )
    return table


def best(rows: Sequence[Row]) -> str:
    """Return a sentence that names the best cells on the held-out images, by PSNR and by a perceptual distance."""
    perceptual = perceptual_metric(rows)
    titles = {"psnr_y": "highest PSNR", perceptual: f"lowest {_PERCEPTUAL[perceptual]}"}
    cells = {metric: best_row(rows, metric) for metric in titles}
    named = [f"{titles[metric]}: {row.label}" for metric, row in cells.items() if row]
    which = " of the finished cells" if any(row.stopped for row in rows) else ""
    return f"On held-out images{which}, {'; '.join(named)}." if named else "No cell was scored on held-out images."


def perceptual_metric(rows: Sequence[Row]) -> str:
    """Return the metric that decides which cell looks best: the SqueezeNet distance if there is one, else ST-LPIPS."""
    means = [row.sets[HELD_OUT].mean["trained"] for row in rows if HELD_OUT in row.sets]
    return "distance" if any("distance" in mean for mean in means) else "st_lpips"


def best_row(rows: Sequence[Row], metric: str) -> Row | None:
    """Return the best finished cell on the held-out images, or None if the metric was not measured.

    Args:
        rows: the cells.
        metric: a key of `METRICS`.
    """
    scored = {row.label: row for row in rows if HELD_OUT in row.sets and not row.stopped}
    means = {label: row.sets[HELD_OUT].mean["trained"] for label, row in scored.items()}
    values = {label: mean[metric] for label, mean in means.items() if metric in mean}
    if not values:
        return None
    choose = max if higher_is_better(metric) else min
    return scored[choose(values, key=lambda label: values[label])]


def markdown(table: Sequence[Sequence[str]]) -> str:
    """Format a table, the first row of which is the header, as Markdown."""
    lines = [f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in table]
    return "\n".join([lines[0], f"|{'---|' * len(table[0])}", *lines[1:]]) + "\n"


def _means(scored: Sequence[Row], name: str) -> dict[str, Metrics]:
    """Return the mean scores on a set by the title of the row, bicubic among them."""
    means: dict[str, Metrics] = {}
    for row in scored:
        entry = row.sets.get(name)
        if entry:
            means.setdefault(BICUBIC, entry.mean["bicubic"])
            means[row.title] = entry.mean["trained"]
    return means


def _shown_images(scored: Sequence[Row]) -> list[report.ShownImage]:
    """Load the images that every cell shows."""
    if not scored:
        return []
    shown = []
    for name in [name for name in scored[0].sets if all(name in row.sets for row in scored)]:
        for i, image in enumerate(scored[0].sets[name].images):
            versions = {row.title: row.sets[name].images[i] for row in scored}
            if not all(version.shown for version in versions.values()):
                continue
            urls = {BICUBIC: image.shown["bicubic"]}
            urls |= {label: version.shown["trained"] for label, version in versions.items()}
            scores = {BICUBIC: image.scores["bicubic"]}
            scores |= {label: version.scores["trained"] for label, version in versions.items()}
            shown.append(report.load_shown(name, image.name, {**urls, report.TRUTH: image.shown["hr"]}, scores))
    return shown


def _csv(rows: Sequence[Row]) -> bytes:
    """Return a line for each cell with all numbers in full precision."""
    lines: list[Mapping[str, object]] = []
    for row in rows:
        line: dict[str, object] = {"cell": row.label, "state": row.state, "reason": row.reason}
        if row.steps:
            line |= {"training": row.folder.rpartition("/")[2], "steps": row.steps, **row.effort}
            line |= row.flat_scores
        lines.append(line)
    sink = io.StringIO()
    writer = csv.DictWriter(sink, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return sink.getvalue().encode()
