"""The result of a finished training, stored beside its weights."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Machine:
    """A machine that trained."""

    processor: str
    cores: int
    """Logical CPU cores."""
    memory_gb: float
    """Memory in GiB."""
    accelerator: str = ""
    """Name of the GPU; "" if the CPU trained."""


def this_machine(accelerator: str = "") -> Machine:
    """Describe the machine of this process.

    Args:
        accelerator: name of the GPU that trains; "" for the CPU.
    """
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    kinds = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return Machine(
        processor=kinds[0] if kinds else platform.processor() or platform.machine(),
        cores=psutil.cpu_count() or 1,
        memory_gb=round(psutil.virtual_memory().total / 2**30, 1),
        accelerator=accelerator,
    )


@dataclass(frozen=True)
class Best:
    """The validation with the best score."""

    step: int
    """Number of optimizer steps before it."""
    value: float
    """Value of `metric`, such as PSNR on Y in dB."""
    metric: str = "val/psnr_y"
    """Name of the metric that selects the best weights."""


@dataclass(frozen=True)
class TrainingResult:
    """How a training ran and ended (result.json)."""

    steps: int
    """Number of optimizer steps."""
    workers: int
    """World size of the last session."""
    device: str
    """Device type: "cpu" or "cuda"."""
    threads: int
    """CPU threads of each worker."""
    precision: str
    """Precision of the forward and backward pass, such as "bf16" or "fp32"."""
    compiled: bool
    """True if torch.compile was used."""
    micro_batch: int
    """Largest number of patches that a worker held at once."""
    skipped: int
    """Number of steps that were skipped because a loss or gradient was not finite."""
    seconds_last_session: float
    """Duration of the last session in seconds; of the whole training if it was never interrupted."""
    best: Best | None = None
    """The best validation, or None if there was none after the first step."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Validation metrics after the last step, such as {"val/psnr_y": 27.1}."""
    machine: Machine | None = None
    """The machine of the first worker in the last session; None if an earlier version trained."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions that it trained with: those of "python" and "torch"."""
