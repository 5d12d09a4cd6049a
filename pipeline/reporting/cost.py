"""Draw PSNR against the hours of cores or GPUs that trainings took, for all rows of a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from pipeline.evaluation.scores import HELD_OUT, METRICS
from pipeline.reporting.drawing import plain_text, rendered
from pipeline.reporting.rows import Row

_MOST_SETS = 3
"""Sets that are drawn, because more would be too small to read."""
_MARGIN = 0.5
"""Decibels below bicubic interpolation that are shown; what networks reach in their first steps lies far below."""

Course = list[tuple[float, float]]
"""Hours, as `Row.hours` counts them, and PSNR (Y) in dB, in order of time."""


def course(row: Row, name: str) -> Course:
    """Return the course of a training on a set: at its validations for the held-out images, else at the ends of parts.

    Args:
        row: the training.
        name: name of the set.

    Returns:
        The points, the last of which is the score of the row; empty without scores, or if the hours are not known.
    """
    if row.hours is None or name not in row.sets:
        return []
    points = list(_validations(row) if name == HELD_OUT else _parts(row, name))
    end = (row.earlier_hours + row.hours, row.sets[name].mean["trained"]["psnr_y"])
    return [*(point for point in points if 0 < point[0] < end[0]), end]


def draw_costs(rows: Sequence[Row]) -> str:
    """Draw PSNR against core-hours, and with hollow points against GPU-hours, with a column for each of the first sets.

    Returns:
        The SVG; "" if there is nothing to draw.
    """
    shown = list(dict.fromkeys(name for row in rows for name in row.sets if course(row, name)))[:_MOST_SETS]
    if not shown:
        return ""
    size = (3.6 * len(shown) + 2.2, 3.6)
    figure, axes = plt.subplots(1, len(shown), figsize=size, squeeze=False, sharex=True, layout="constrained")
    for axis, name in zip(axes[0], shown, strict=True):
        _draw_set(axis, rows, name)
    axes[0][0].set_ylabel(METRICS["psnr_y"])
    handles = {label: h for axis in axes[0] for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize=8)
    svg = rendered(figure, "svg").decode()
    return svg[svg.index("<svg") :]


def _draw_set(axis: Axes, rows: Sequence[Row], name: str) -> None:
    for number, row in enumerate(rows):
        if points := course(row, name):
            colour = f"C{number % 10}"
            axis.plot(*zip(*points, strict=True), "-", color=colour, lw=1)
            filling = "none" if row.gpus else colour
            axis.plot(*points[-1], "o", color=colour, mfc=filling, ms=5, label=plain_text(row.title))
    bicubic = next(row.sets[name].mean["bicubic"]["psnr_y"] for row in rows if name in row.sets)
    axis.axhline(bicubic, ls="--", lw=1, color="gray", label="bicubic")
    axis.set(title=plain_text(name), xlabel=_unit(rows), xscale="log")
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_ylim(bottom=bicubic - _MARGIN)
    axis.grid(alpha=0.3)


def _unit(rows: Sequence[Row]) -> str:
    names = {
        bool(row.gpus): "GPU-hours (hollow)" if row.gpus else "core-hours" for row in rows if row.hours is not None
    }
    return " or ".join(names[on_gpu] for on_gpu in sorted(names))


def _validations(row: Row) -> Iterator[tuple[float, float]]:
    """Yield hours and PSNR at each validation; steps that were repeated after an interruption count twice."""
    hours, before = row.earlier_hours, 0
    for record in sorted(row.history, key=lambda record: (record.time, record.kind == "session")):
        if record.kind != "session" and before:  # a session begins after a pause
            hours += (record.time - before) / 3.6e6 * _devices(row, record.step)
        before = record.time
        if record.kind == "validation" and f"{_VALIDATED}/psnr_y" in record.metrics:
            yield hours, record.metrics[f"{_VALIDATED}/psnr_y"]


_VALIDATED = "val"
"""Name of the held-out images in the metrics of a journal."""


def _devices(row: Row, step: int) -> int:
    """GPUs or, without any, cores that trained a step."""
    return next((part.gpus or part.threads for part in row.parts if step <= part.steps), row.gpus or row.threads)


def _parts(row: Row, name: str) -> Iterator[tuple[float, float]]:
    used = accumulate(part.seconds * (part.gpus or part.threads) / 3600 for part in row.parts)
    for part, hours in zip(row.parts, used, strict=True):
        if name in part.scores:
            yield row.earlier_hours + hours, part.scores[name]["psnr_y"]
