"""Models that draw images in steps: the numbers of steps and the noise to score, and what the scores say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from pipeline.evaluation import tables
from pipeline.evaluation.scores import METRICS, Scores
from sr_model.networks.sampling import Sampling, Solver

_DISTANCES = ("distance", "st_lpips")

_RISE = 1.01
"""A distance that rises by less than this factor counts as equal."""


@dataclass(frozen=True)
class Drawing:
    """The choices of a person for models that draw images in steps; by default a model's own steps and the seed 0."""

    steps: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    solver: Solver | None = None

    @property
    def is_chosen(self) -> bool:
        """True if the person has made a choice."""
        return self != Drawing()

    def samplings(self) -> list[Sampling]:
        """Return all pairs of steps and seed, in ascending order."""
        solver = self.solver or "euler"
        steps: list[int | None] = [*sorted(set(self.steps))] or [None]
        return [Sampling(count, seed, solver) for count in steps for seed in sorted(set(self.seeds)) or [0]]

    def label(self, label: str, sampling: Sampling) -> str:
        """Return the label of a model with one of its samplings."""
        parts = [label]
        if sampling.steps is not None:
            parts.append(f"{sampling.steps} step{'s' if sampling.steps > 1 else ''}")
        if self.solver:
            parts.append(self.solver)
        if len(self.seeds) > 1:
            parts.append(f"seed {sampling.seed}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Series:
    """The scores of one model with several samplings."""

    label: str
    methods: tuple[tuple[Sampling, str], ...]
    """Each sampling with its name among the scores, by ascending steps."""

    def by_steps(self) -> dict[int | None, list[str]]:
        """Return the names of all seeds for each number of steps."""
        found: dict[int | None, list[str]] = {}
        for sampling, name in self.methods:
            found.setdefault(sampling.steps, []).append(name)
        return found


def describe(series: Sequence[Series], scores: Scores) -> list[str]:
    """Return what belongs below the table of scores: a table of deviations over seeds, and sentences of warning."""
    spread = _spread_rows(series, scores)
    return [*([tables.aligned(spread)] if len(spread) > 1 else []), *_rises(series, scores)]


def _spread_rows(series: Sequence[Series], scores: Scores) -> list[list[str]]:
    """Return a header and rows with the standard deviation of the mean scores over the seeds."""
    metrics = tables.common_metrics([scores.sets])
    rows = [["set", "deviation over seeds", *metrics.values()]]
    for name, entry in scores.sets.items():
        for one in series:
            for steps, methods in one.by_steps().items():
                if len(methods) > 1:
                    values = [stdev(entry.mean[method][key] for method in methods) for key in metrics]
                    title = one.label if steps is None else f"{one.label}, {steps} step{'s' if steps > 1 else ''}"
                    rows.append([name, f"{title}, {len(methods)} seeds", *(f"{value:.4f}" for value in values)])
    return rows


def _rises(series: Sequence[Series], scores: Scores) -> list[str]:
    """Return a sentence for each distance that is larger after the most steps than after the fewest."""
    sentences = []
    for one in series:
        by_steps = one.by_steps()
        (few, first), (many, last) = (list(by_steps.items())[end] for end in (0, -1))
        for name, entry in scores.sets.items() if few != many else ():
            for key in _DISTANCES:
                if not all(key in entry.mean.get(method, {}) for method in (*first, *last)):
                    continue
                before, after = (fmean(entry.mean[method][key] for method in methods) for methods in (first, last))
                if after > before * _RISE:
                    sentences.append(
                        f"WARNING: the {METRICS[key]} of {one.label} on {name} rises with the number of steps, from "
                        f"{before:.4f} at {few} to {after:.4f} at {many}: the network probably leaves noise in its "
                        "images, and has to train longer"
                    )
    return sentences
