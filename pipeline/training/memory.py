"""Memory of this process on its device, a GPU or the machine: its peak use, and how much it may use."""

from __future__ import annotations

import ctypes
import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import torch


def peak_mb(device: torch.device) -> float:
    """Peak use in MB since `reset_peak`, or since the start on systems that cannot reset it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 1e6
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def reset_peak(device: torch.device) -> None:
    """Start a new peak at the current use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError, AttributeError):  # memory that glibc keeps after it was freed would hide the next peak
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def available_mb(device: torch.device, workers: int) -> float:
    """MB that this process may use, including its current use, if `workers` such processes share the memory."""
    if device.type == "cuda":
        unused, _ = torch.cuda.mem_get_info(device)
        return (unused + torch.cuda.memory_reserved(device)) / 1e6
    free: float = psutil.virtual_memory().available
    with suppress(OSError, ValueError):  # the limit of a container; the file is absent or says "max" if there is none
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
        free = min(free, limit)
    mine: int = psutil.Process().memory_info().rss
    return free / 1e6 / workers + mine / 1e6
