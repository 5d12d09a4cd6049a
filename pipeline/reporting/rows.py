"""A cell of a grid with its outcome, as reports and the results page show it."""

from __future__ import annotations

import functools
import statistics
from dataclasses import dataclass, field

from pipeline.evaluation.scores import Metrics, SetScores
from pipeline.networks.weights import count_parameters
from pipeline.reporting.records import Part, Variant
from pipeline.settings import Config
from pipeline.tracking import JournalRecord


@dataclass(frozen=True)
class Row:
    """A cell of a grid with its outcome. Without trained weights, only the first four fields are set."""

    label: str
    state: str
    config: Config
    reason: str = ""
    """Why the cell failed or was left out."""
    folder: str = ""
    """Path or URL of the training."""
    steps: int = 0
    """Number of steps that were trained; 0 without trained weights."""
    stopped: bool = False
    """True if the scheduler ended the training early; the best weights until then were scored."""
    history: list[JournalRecord] = field(default_factory=list)
    """Journal of the training, in order of steps."""
    seconds: float = 0.0
    """Seconds of training, all sessions together."""
    threads: int = 0
    """CPU threads of the training, all workers together; 0 if it ran on GPUs, or is not known."""
    gpus: int = 0
    """GPUs of the training; 0 if it ran on CPUs."""
    variants: list[Variant] = field(default_factory=list)
    """Scores of the same weights at other positions of a dial."""
    parts: list[Part] = field(default_factory=list)
    """The parts of a training that was made in parts."""
    earlier_hours: float = 0.0
    """Hours, as `hours` counts them, of the training of the weights that it started from, if they are known."""
    sets: dict[str, SetScores] = field(default_factory=dict)
    """Scores by the name of the set; empty if the cell was not scored."""

    @property
    def title(self) -> str:
        """The label; that of a stopped cell says after how many steps it was stopped."""
        return f"{self.label} (stopped at step {self.steps})" if self.stopped else self.label

    @property
    def core_hours(self) -> float | None:
        """Hours of training times CPU threads; None if it ran on GPUs, or is not known."""
        used = [(part.seconds, part.threads) for part in self.parts] or [(self.seconds, self.threads)]
        return sum(seconds * threads for seconds, threads in used) / 3600 if all(t for _, t in used) else None

    @property
    def hours(self) -> float | None:
        """GPU-hours of a training on GPUs, else core-hours; None if parts ran on both, or the cores are not known."""
        used = [(part.seconds, part.gpus) for part in self.parts] or [(self.seconds, self.gpus)]
        if all(gpus for _, gpus in used):
            return sum(seconds * gpus for seconds, gpus in used) / 3600
        return self.core_hours

    @functools.cached_property
    def effort(self) -> Metrics:
        """Number of parameters, median throughput and seconds of a trained cell."""
        rates = [rate for r in self.history if (rate := r.metrics.get("train/patches_per_s")) is not None]
        return {
            "parameters": float(count_parameters(self.config.scale, self.config.model)),
            "train_seconds": self.seconds,
            **({"patches_per_s": statistics.median(rates)} if rates else {}),
        }

    @property
    def flat_scores(self) -> Metrics:
        """Mean scores of the trained network by keys such as "Set5/psnr_y"."""
        return {
            f"{name}/{key}": value for name, entry in self.sets.items() for key, value in entry.mean["trained"].items()
        }
