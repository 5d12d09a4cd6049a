"""The perception-distortion plane (Blau and Michaeli 2018, arXiv:1711.06077): PSNR against perceptual distances.

No model can be best on both axes: beyond some PSNR, what looks more natural is less faithful. A model with a dial, such
as the share of another model or a number of steps, is a line in the plane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch.utils.flop_counter import FlopCounterMode

from pipeline.evaluation.scores import METRICS, Metrics
from pipeline.evaluation.tables import format_value
from pipeline.reporting.drawing import plain_text, rendered
from pipeline.reporting.records import Variant
from pipeline.reporting.rows import Row
from pipeline.settings import Config, architecture
from sr_model.networks.sampling import Sampling

DISTANCES = ("st_lpips", "distance")
"""Metrics on the vertical axis; less is better."""

_SIDE = 16
"""Side of the LR image with which operations are counted."""
_MOST_SETS = 3
"""Sets that are drawn, because more would be too small to read."""
_MARKERS = "osD^vP*Xhp<>"


@dataclass(frozen=True)
class Point:
    """A way of enlarging images in the plane."""

    family: str
    """Points of one family are joined by a line."""
    label: str
    scores: dict[str, Metrics]
    """Mean scores by set."""
    gflop: float | None = None
    """10^9 operations for each million pixels of the enlarged image; None if unknown."""
    core_hours: float | None = None
    """Core-hours of the training; None if unknown, or if it ran on a GPU."""
    gpu_hours: float | None = None
    """GPU-hours of the training; None if it ran on CPUs."""
    variant: Variant | None = field(default=None, compare=False)

    def place(self, name: str, distance: str) -> tuple[float, float] | None:
        """Return PSNR and distance on a set; None if one of both was not measured."""
        metrics = self.scores.get(name, {})
        return (metrics["psnr_y"], metrics[distance]) if {"psnr_y", distance} <= metrics.keys() else None


def list_points(rows: Sequence[Row]) -> list[Point]:
    """Return bicubic interpolation, and each scored row with its variants in the order of their dial."""
    scored = [row for row in rows if row.sets]
    if not scored:
        return []
    bicubic = {name: entry.mean["bicubic"] for row in reversed(scored) for name, entry in row.sets.items()}
    points = [Point("bicubic", "bicubic", bicubic)]
    for row in scored:
        known = Point(
            row.title,
            row.title,
            {name: entry.mean["trained"] for name, entry in row.sets.items()},
            operations(row.config),
            row.core_hours,
            row.hours if row.gpus else None,
        )
        curve = [
            replace(
                known,
                label=f"{row.title}, {variant.name}",
                scores=variant.scores,
                gflop=operations(row.config, int(variant.value)) if variant.dial == "steps" else known.gflop,
                variant=variant,
            )
            for variant in sorted(row.variants, key=lambda variant: (variant.dial, variant.value))
        ]
        points += [known, *curve]
    return points


def operations(config: Config, steps: int | None = None) -> float:
    """Count the operations of a forward pass, a multiplication and an addition as two.

    Args:
        config: describes the network.
        steps: steps of a network that draws images; by default its own number.

    Returns:
        10^9 operations for each million pixels of the enlarged image.
    """
    net = architecture(config.model).build(config.scale, config.model).eval()
    if steps and net.sampling:
        net.sampling = Sampling(steps)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3 + net.noise_channels, _SIDE, _SIDE))
    return float(counter.get_total_flops()) / (_SIDE * config.scale) ** 2 / 1e3


def plane_table(points: Sequence[Point]) -> list[list[str]]:
    """Return a header and a row for each set and point; empty if no perceptual distance was measured."""
    sets = dict.fromkeys(name for point in points for name in point.scores)
    metrics = ("psnr_y", *(key for key in DISTANCES if any(key in m for p in points for m in p.scores.values())))
    if len(metrics) == 1:
        return []
    on_gpus = ["GPU-hours"] if any(point.gpu_hours is not None for point in points) else []
    table = [["set", "", *(METRICS[key] for key in metrics), "GFLOP per megapixel", "core-hours of training", *on_gpus]]
    for name in sets:
        for point in points:
            if values := point.scores.get(name):
                shown = [format_value(key, values[key]) if key in values else "" for key in metrics]
                hours = [point.core_hours, *([point.gpu_hours] if on_gpus else [])]
                cost = [_number(point.gflop, ",.0f"), *(_number(value, ".2f") for value in hours)]
                table.append([name, point.label, *shown, *cost])
    return table


def draw_plane(points: Sequence[Point]) -> str:
    """Draw the plane as SVG: a column for each of the first three sets, and a row for each distance that was measured.

    PSNR falls to the right, so the best corner is at the bottom left. It returns "" if there is nothing to draw.
    """
    sets = list(dict.fromkeys(name for point in points for name in point.scores))
    known = {
        (name, key)
        for name in sets
        for key in DISTANCES
        if sum(point.place(name, key) is not None for point in points) > 1
    }
    shown = [name for name in sets if any((name, key) in known for key in DISTANCES)][:_MOST_SETS]
    rows = [key for key in DISTANCES if any((name, key) in known for name in shown)]
    if not rows:
        return ""
    size = (3.6 * len(shown) + 2.2, 3.2 * len(rows) + 0.4)
    figure, axes = plt.subplots(len(rows), len(shown), figsize=size, squeeze=False, layout="constrained")
    for line, key in zip(axes, rows, strict=True):
        for axis, name in zip(line, shown, strict=True):
            _draw_set(axis, points, name, key)
            axis.set(title=plain_text(name) if key == rows[0] else "", xlabel=METRICS["psnr_y"])
        line[0].set_ylabel(METRICS[key])
    handles = {
        label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize=8)
    svg = rendered(figure, "svg").decode()
    return svg[svg.index("<svg") :]


def _draw_set(axis: Axes, points: Sequence[Point], name: str, key: str) -> None:
    for number, (family, members) in enumerate(groupby(points, key=lambda point: point.family)):
        placed = [(point, place) for point in members if (place := point.place(name, key))]
        if not placed:
            continue
        colour, marker = f"C{number % 10}", _MARKERS[number % len(_MARKERS)]
        own = [place for point, place in placed if point.variant is None]
        axis.plot(*zip(*own, strict=True), marker, color=colour, label=plain_text(family)) if own else None
        for _, curve in groupby(
            (pair for pair in placed if pair[0].variant), key=lambda pair: pair[0].variant and pair[0].variant.dial
        ):
            drawn = list(curve)
            axis.plot(*zip(*(place for _, place in drawn), strict=True), f"{marker}-", color=colour, ms=3, lw=1)
            for point, place in drawn:
                text = f"{point.variant.value:g}" if point.variant else ""
                axis.annotate(text, place, xytext=(2, 2), textcoords="offset points", fontsize=6)
    if not axis.xaxis_inverted():
        axis.invert_xaxis()
    axis.grid(alpha=0.3)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
