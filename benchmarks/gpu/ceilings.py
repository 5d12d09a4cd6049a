"""Rates that no step can exceed: copying in device memory, and multiplying matrices in each precision."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu.job import Job
from benchmarks.measuring import medians, time_in_turns
from pipeline.networks.devices import tf32

COPY = "copy in device memory"


def product(precision: str) -> str:
    """Name of a product's measurement."""
    return f"matrix product, {precision}"


def measure(job: Job) -> None:
    """Measure all rates in turns."""
    size, device = job.size, job.device
    source = torch.rand(size.copied_mb * 2**18, device=device)
    target = torch.empty_like(source)
    repeats = size.steps
    actions: dict[str, Callable[[], object]] = {COPY: lambda: [target.copy_(source) for _ in range(repeats)]}
    for precision in job.precisions:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
        a, b = (torch.randn(size.matrix, size.matrix, device=device, dtype=dtype) for _ in range(2))
        actions[product(precision)] = _product(a, b, precision == "tf32", repeats)
    seconds = medians(time_in_turns(actions, size.rounds, device=device))
    moved = 2 * source.numel() * source.element_size() * repeats
    job.recorder.add(COPY, moved / seconds.pop(COPY) / 1e12, "TB/s, read and written", better="higher")
    for name, taken in seconds.items():
        job.recorder.add(name, 2 * size.matrix**3 * repeats / taken / 1e12, "TFLOP/s", better="higher")


def _product(a: Tensor, b: Tensor, in_tf32: bool, repeats: int) -> Callable[[], None]:
    out = torch.empty_like(a)

    def multiply() -> None:
        with tf32(in_tf32):
            for _ in range(repeats):
                torch.mm(a, b, out=out)

    return multiply
