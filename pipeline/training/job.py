"""The work that the driver hands to the workers of a training, and the result that they return."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.data.benchmark_sets import BenchmarkImage
from pipeline.settings import Config
from pipeline.terminal import LogContext
from pipeline.training.planning import Plan


@dataclass(frozen=True)
class TrainJob:
    """The work of all workers of a training."""

    config: Config
    patch_set: str
    """URL of the patch set."""
    folder: str
    """Path or URL of the training."""
    threads: int
    """CPU threads of a worker without a GPU."""
    benchmarks: dict[str, list[BenchmarkImage]] = field(default_factory=dict)
    """Images that validations score for display only, by the name of their set."""
    plan_only: bool = False
    """True to plan and measure without training."""
    stop_at: float | None = None
    """Unix time after which the training writes a checkpoint and ends early; None for no limit."""
    log: LogContext | None = None
    """Fields of the lines that workers print as JSON; None for plain text."""


@dataclass(frozen=True)
class LoopResult:
    """The end of a worker's loop: the plan, or a mistake that no restart would mend."""

    plan: Plan | None = None
    stopped_at: int | None = None
    """Number of finished steps, if the training ended early because its time was up."""
    mistake: str | None = None
    """One sentence."""
