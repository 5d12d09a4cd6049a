"""Scores and other rows as tables of text, and numbers as they are printed."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.evaluation.scores import METHODS, METRICS, Scores, SetScores


def scores_table(scores: Scores) -> str:
    """Return the mean scores as a table of text with one row for each set and method."""
    return aligned(scores_rows(scores))


def scores_rows(scores: Scores) -> list[list[str]]:
    """Return the mean scores as a header and one row of texts for each set and method."""
    metrics = common_metrics([scores.sets])
    rows = [["set", "", *metrics.values()]]
    for name, entry in scores.sets.items():
        for method, means in entry.mean.items():
            values = [format_value(key, means[key]) for key in metrics]
            rows.append([f"{name} ({entry.count(method)})", METHODS.get(method, method), *values])
    return rows


def scores_csv(scores: Scores) -> bytes:
    """Return the mean scores as CSV with one line for each set and method, in full precision."""
    metrics = common_metrics([scores.sets])
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(["set", "model", "images", *metrics])
    for name, entry in scores.sets.items():
        for method, means in entry.mean.items():
            writer.writerow([name, method, entry.count(method), *(means[key] for key in metrics)])
    return sink.getvalue().encode()


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Format rows, the first of which is the header, as a table of text that fits the terminal or 80 columns.

    If there is not enough room, titles are broken into lines before other texts are.
    """
    width = shutil.get_terminal_size().columns
    natural = sum(max(map(len, column)) + 2 for column in zip(*rows, strict=True)) - 2
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for title in rows[0]:
        table.add_column(Text(title if natural <= width else title.replace(" ", "\n")), overflow="fold")
    for row in rows[1:]:
        table.add_row(*(Text(cell) for cell in row))
    sink = io.StringIO()
    Console(file=sink, width=width, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in sink.getvalue().splitlines())


def format_value(metric: str, value: float) -> str:
    """Format a score for people: two decimals for a PSNR in dB, four for anything else."""
    return f"{value:.2f}" if "psnr" in metric else f"{value:.4f}"


def common_metrics(scored: Sequence[Mapping[str, SetScores]]) -> dict[str, str]:
    """Return the metrics, with their labels, that all of the given sets have."""
    means = [mean for sets in scored for entry in sets.values() for mean in entry.mean.values()]
    return {key: label for key, label in METRICS.items() if all(key in mean for mean in means)}
