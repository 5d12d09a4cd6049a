"""What a finished training left beside its weights."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Best:
    """The validation at which the held-out score was best."""

    step: int
    """Number of finished steps."""
    value: float
    """Score of the metric that selects, such as PSNR on Y in dB."""
    metric: str = "val/psnr_y"
    """Name of the metric that selects."""


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended, and how it was run."""

    steps: int
    """Optimizer steps."""
    workers: int
    """World size of the last session."""
    device: str
    """Device type: "cpu" or "cuda"."""
    threads: int
    """CPU threads of each worker."""
    precision: str
    """Precision of the forward and backward pass, such as "bf16" or "fp32"."""
    compiled: bool
    """Whether torch.compile was used."""
    micro_batch: int
    """Largest number of patches that a worker held at once."""
    skipped: int
    """Steps that were skipped because a loss or gradient was not finite."""
    seconds_last_session: float
    """Seconds of training after the last interruption, or of the whole training without one."""
    best: Best | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    """Validation metrics at the end, such as {"val/psnr_y": 27.1}."""
