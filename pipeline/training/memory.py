"""The device of this process, a GPU or the machine: its name, the peak use of its memory, and how much may be used."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from pipeline.networks.devices import free_bytes, has_bf16


def describe(device: torch.device) -> str:
    """Name a device by what decides how it trains: the card and its memory, or how a CPU computes in bf16."""
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return f"{found.name} with {found.total_memory / 1e9:.0f} GB"
    return "CPU with bf16" if has_bf16(device) else "CPU"


def is_lack(error: Exception) -> bool:
    """Tell whether an error of PyTorch means that the device has too little memory."""
    texts = ("ALLOC_FAILED", "can't allocate memory")  # of cuDNN and cuBLAS, and of CPUs
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in texts)


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
