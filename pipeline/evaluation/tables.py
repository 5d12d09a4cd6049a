"""Scores as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.evaluation.scores import METHODS, METRICS, Scores


def table(scores: Scores) -> str:
    """The mean scores as aligned text, one line for each set and method."""
    metrics = measured([scores["sets"]])
    rows = [["set", "", *metrics.values()]]
    for name, entry in scores["sets"].items():
        for method, means in entry["mean"].items():
            values = [format_value(key, means[key]) for key in metrics]
            rows.append([f"{name} ({len(entry['images'])})", METHODS[method], *values])
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text, in columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def format_value(metric: str, value: float) -> str:
    """A score as it is printed: hundredths of a dB, four digits of what lies around 1."""
    return f"{value:.2f}" if metric.startswith("psnr") else f"{value:.4f}"


def measured(scored: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Those of `METRICS` that the "sets" of all `Scores` have."""
    means = [mean for sets in scored for entry in sets.values() for mean in entry["mean"].values()]
    return {key: label for key, label in METRICS.items() if all(key in mean for mean in means)}


def duration(seconds: float) -> str:
    """As it is printed."""
    return f"{seconds / 60:.1f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
