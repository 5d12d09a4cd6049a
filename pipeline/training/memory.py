"""The device of this process, a GPU or the machine: its name, the use of its memory, and what to do if that is full."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import psutil
import torch

from pipeline.networks.devices import free_bytes, has_bf16
from pipeline.settings import Config, UserError
from pipeline.storage import one_line


class OutOfMemoryError(UserError):
    """The device of this rank has too little memory. Other ranks may have enough, and wait for this one."""


def describe(device: torch.device) -> str:
    """Name a device by what decides how it trains: the card and its memory, or how a CPU computes in bf16."""
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return f"{found.name} with {found.total_memory / 1e9:.0f} GB"
    return "CPU with bf16" if has_bf16(device) else "CPU"


def is_lack(error: Exception) -> bool:
    """Tell whether an error of PyTorch means that the device has too little memory."""
    texts = ("ALLOC_FAILED", "out of memory", "can't allocate memory")  # cuDNN and cuBLAS, CUDA and NCCL, CPUs
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in texts)


def describe_lack(config: Config, device: str, micro_batch: int | Literal["auto"], reason: str = "") -> str:
    """Say in a sentence that a device has too little memory for a training, and what helps.

    Args:
        config: the pipeline's configuration.
        device: the device, from `describe`.
        micro_batch: the most samples in a micro-batch; "auto" if that was not decided yet.
        reason: what PyTorch says, in one line.
    """
    settings = config.train
    work = f"micro-batches of up to {micro_batch} patches" if isinstance(micro_batch, int) else "a training on patches"
    remedies = [] if settings.recompute else ["train.recompute=true"]
    remedies.append(f"a smaller train.micro_batch{'' if settings.micro_batch == 'auto' else ' or auto'}")
    return (
        f"the memory of {device} is too small for {work} of {config.data.crop} pixels"
        f"{f' ({reason})' if reason else ''}: expected {', '.join(remedies)}, or a smaller data.crop"
    )


@contextmanager
def explain_lack(
    config: Config, device: torch.device, micro_batch: Callable[[], int | Literal["auto"]]
) -> Iterator[None]:
    """Turn an error of PyTorch which means that the device has too little memory into a sentence.

    Args:
        config: the pipeline's configuration.
        device: the device of this rank.
        micro_batch: returns the most samples in a micro-batch; "auto" if that was not decided yet.

    Raises:
        OutOfMemoryError: on this rank alone, if the block ends with such an error.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lack(error):
            raise
        raise OutOfMemoryError(describe_lack(config, describe(device), micro_batch(), one_line(error, 200))) from error


def release(device: torch.device) -> None:
    """Give back the memory of objects that nothing refers to; compiled modules refer to themselves."""
    gc.collect()
    reset_peak(device)


def peak_mb(device: torch.device) -> float:
    """Peak use in MB since `reset_peak`, or since the start on systems that cannot reset it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def reset_peak(device: torch.device) -> None:
    """Start a new peak at the current use."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError, AttributeError):  # memory that glibc keeps after it was freed would hide the next peak
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def available_mb(device: torch.device, workers: int) -> float:
    """MB that this process may use, including its current use, if `workers` such processes share the memory."""
    free = free_bytes(device)
    if device.type == "cuda":
        return (free + torch.cuda.memory_allocated(device)) / 1e6
    mine: int = psutil.Process().memory_info().rss
    return free / 1e6 / workers + mine / 1e6
