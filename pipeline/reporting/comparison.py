"""The cells of a grid beside each other and beside what was published: as text, Markdown, CSV, a page and in MLflow."""

from __future__ import annotations

import csv
import functools
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline import storage
from pipeline.evaluation import tables
from pipeline.evaluation.scores import METHODS, METRICS, PROTOCOL
from pipeline.evaluation.tables import aligned, format_value, measured
from pipeline.networks.weights import build_network
from pipeline.reporting import pages, report
from pipeline.settings import Config
from pipeline.tracking import JournalRecord, TrackedRun, Tracker

BICUBIC = METHODS["bicubic"]

PUBLISHED: dict[str, dict[str, dict[str, float]]] = {
    "Set5": {"published bn·mse": {"psnr_y": 30.608}, "published nobn·mse": {"psnr_y": 30.685}},
    "Set14": {"published bn·mse": {"psnr_y": 24.702}, "published nobn·mse": {"psnr_y": 25.981}},
    "held-out": {"published bn·perceptual": {"psnr_y": -0.2512}, "published nobn·perceptual": {"psnr_y": 9.213}},
}
"""What the grid's first publishers reached at x4 on DIV2K with 15 GB of GPU memory; their held-out images are
others."""

NOTE = (
    "Published: 50 epochs with MSE, 20 with perceptual loss, of DIV2K on a 15 GB GPU; protocol not stated, their "
    "held-out images are others."
)


@dataclass(frozen=True)
class Row:
    """A cell and what came of it; the rest is empty where it has no training."""

    label: str
    state: str
    reason: str = ""
    config: Config | None = None
    folder: str = ""
    """Path or URL of the training."""
    result: dict[str, Any] = field(default_factory=dict)
    """What the training left at its end, its "steps" among it."""
    history: list[JournalRecord] = field(default_factory=list)
    """Its records in order of steps."""
    seconds: float = 0.0
    """What it took."""
    sets: dict[str, Any] = field(default_factory=dict)
    """Its scores: "sets" of `scores_module.Scores`."""

    @functools.cached_property
    def effort(self) -> dict[str, float]:
        """Number of parameters, median throughput and seconds of a trained cell."""
        assert self.config
        rates = [r.metrics["train/patches_per_s"] for r in self.history if r.kind == "train"]
        network = build_network(self.config.scale, self.config.model, 0)
        return {
            "parameters": float(sum(p.numel() for p in network.parameters())),
            "patches_per_s": statistics.median(rates),
            "train_seconds": self.seconds,
        }


def text(rows: Sequence[Row], scale: int) -> str:
    """Both tables and the best cells, for a terminal."""
    return f"{aligned(score_table(rows, scale))}\n\n{aligned(cell_table(rows))}\n\n{best(rows)}"


def write(
    folder: str, config: Config, rows: Sequence[Row], facts: dict[str, str], parent: TrackedRun, tracker: Tracker
) -> None:
    """Write results.md, results.csv, comparison.png and report.html to the grid's folder and to MLflow.

    Args:
        folder: path or URL.
        config: the grid's.
        rows: its cells.
        facts: what else to state, by name.
        parent: the grid's run.
        tracker: where the cells' runs are.
    """
    scores, cells = score_table(rows, config.scale), cell_table(rows)
    done = [row for row in rows if row.sets]
    shown = _shown(done)
    held_out = _means(done, "held-out")
    labels = [BICUBIC, *(row.label for row in done), report.TRUTH]
    page = pages.render(
        "grid.html.j2",
        title=config.name,
        table=scores,
        cells=cells,
        best=best(rows),
        protocol=PROTOCOL,
        published=NOTE if config.scale == 4 else "",
        images=shown,
        before=BICUBIC,
        after=done[-1].label if done else "",
        curves=report.curves(
            {row.label: row.history for row in rows if row.result},
            held_out[BICUBIC]["psnr_y"] if BICUBIC in held_out else None,
        ),
        facts=facts,
        settings=config.to_yaml(),
    ).encode()
    tables = f"{markdown(scores)}\n{NOTE if config.scale == 4 else ''}\n\n{markdown(cells)}\n{best(rows)}\n"
    files = {
        "results.md": tables.encode(),
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
    for row in done:
        run = tracker.known(row.folder, parent.id)
        if run:
            run.log_metrics({f"{name}/{key}": value for name, key, value in _scores_of(row)} | row.effort)
    _register(config, done, tracker, parent)


def score_table(rows: Sequence[Row], scale: int) -> list[list[str]]:
    """Header and a line for each set and method: bicubic, the cells, and what was published."""
    done = [row for row in rows if row.sets]
    metrics = measured([row.sets for row in done]) if done else dict(list(METRICS.items())[:3])
    table = [["set", "cell", *metrics.values()]]
    published = PUBLISHED if scale == 4 else {}
    evaluated = {name: len(entry["images"]) for row in done for name, entry in row.sets.items()}
    for name in [*evaluated, *(name for name in published if name not in evaluated)]:
        for label, values in (_means(done, name) | published.get(name, {})).items():
            cells = [format_value(key, values[key]) if key in values else "" for key in metrics]
            table.append([name if label.startswith("published") else f"{name} ({evaluated[name]})", label, *cells])
    return table


def cell_table(rows: Sequence[Row]) -> list[list[str]]:
    """Header and a line for each cell: what became of it and what it took."""
    table = [["cell", "state", "parameters", "steps", "patches/s", "time"]]
    for row in rows:
        if not row.result:
            table.append([row.label, row.state, "", "", "", ""])
            continue
        table.append(
            [
                row.label,
                row.state,
                f"{row.effort['parameters']:,.0f}",
                f"{row.result['steps']:,}",
                f"{row.effort['patches_per_s']:.1f}",
                tables.duration(row.seconds),
            ]
        )
    return table


def best(rows: Sequence[Row]) -> str:
    """Which cells are best on the held-out images: by PSNR, and by perceptual distance where it was measured."""
    names = {key: best_row(rows, key) for key in ("psnr_y", "distance")}
    said = {"psnr_y": "highest PSNR", "distance": "lowest SqueezeNet feature distance"}
    found = [f"{said[key]}: {row.label}" for key, row in names.items() if row]
    return f"On held-out images, {'; '.join(found)}." if found else "No cell was measured on held-out images."


def best_row(rows: Sequence[Row], metric: str) -> Row | None:
    """The cell that is best on the held-out images by "psnr_y" or "distance", if that was measured."""
    scored = {row.label: row for row in rows if row.sets}
    means = {label: values for label, values in _means(list(scored.values()), "held-out").items() if label in scored}
    values = {label: mean[metric] for label, mean in means.items() if metric in mean}
    if not values:
        return None
    return scored[max(values, key=lambda label: values[label] if metric == "psnr_y" else -values[label])]


def _means(done: Sequence[Row], name: str) -> dict[str, dict[str, float]]:
    """Mean scores on a set, by label."""
    means: dict[str, dict[str, float]] = {}
    for row in done:
        entry = row.sets.get(name)
        if entry:
            means.setdefault(BICUBIC, entry["mean"]["bicubic"])
            means[row.label] = entry["mean"]["trained"]
    return means


def _scores_of(row: Row) -> list[tuple[str, str, float]]:
    return [(name, key, value) for name, entry in row.sets.items() for key, value in entry["mean"]["trained"].items()]


def _shown(done: Sequence[Row]) -> list[report.Shown]:
    """Images that every cell shows."""
    if not done:
        return []
    shown = []
    for name in [name for name in done[0].sets if all(name in row.sets for row in done)]:
        for i, image in enumerate(done[0].sets[name]["images"]):
            versions = [(row, row.sets[name]["images"][i]) for row in done]
            if not all(version["shown"] for _, version in versions):
                continue
            urls = {BICUBIC: image["shown"]["bicubic"]}
            urls |= {row.label: version["shown"]["trained"] for row, version in versions}
            scores = {BICUBIC: image["scores"]["bicubic"]}
            scores |= {row.label: version["scores"]["trained"] for row, version in versions}
            shown.append(report.Shown(name, image["name"], urls | {report.TRUTH: image["shown"]["hr"]}, scores))
    return shown


def _register(config: Config, done: Sequence[Row], tracker: Tracker, parent: TrackedRun) -> None:
    """Give the best cells an alias of the registered model."""
    for alias, metric in (("best-psnr", "psnr_y"), ("best-perceptual", "distance")):
        row = best_row(done, metric)
        run = tracker.known(row.folder, parent.id) if row else None
        if row and run:
            description = f"{row.label} of the grid {config.name}, chosen by held-out images; safetensors"
            tracker.register(f"srresnet-x{config.scale}", alias, run, "model", description)


def markdown(table: list[list[str]]) -> str:
    """A table, of which the first line is the header, as Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in table]
    return "\n".join([lines[0], f"|{'---|' * len(table[0])}", *lines[1:]]) + "\n"


def _csv(rows: Sequence[Row]) -> bytes:
    """A line for each cell, all numbers in full."""
    lines: list[dict[str, Any]] = []
    for row in rows:
        line: dict[str, Any] = {"cell": row.label, "state": row.state, "reason": row.reason}
        if row.result:
            line |= {"training": row.folder.rpartition("/")[2], "steps": row.result["steps"], **row.effort}
            line |= {f"{name}/{key}": value for name, key, value in _scores_of(row)}
        lines.append(line)
    sink = io.StringIO()
    writer = csv.DictWriter(sink, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return sink.getvalue().encode()
