"""The device that networks run on: its free memory, whether its fp32 is TF32, and whether it computes in bf16."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import psutil
import torch

from pipeline.storage import one_line

# PyTorch 2.9 and 2.10 recommend an API for TF32 that they do not fully support themselves; see `tf32`.
warnings.filterwarnings("ignore", message="Please use the new API settings to control TF32")

_CGROUP = Path("/sys/fs/cgroup")
"""The folder in which Linux states the limits of a container."""


def best_device() -> torch.device:
    """Return a GPU if PyTorch can compute on one in this process, else the CPU."""
    return torch.device("cpu" if cuda_fault() else "cuda")


@lru_cache(maxsize=1)
def cuda_fault() -> str | None:
    """Return the reason why PyTorch cannot compute on a GPU in this process, in one line, or None if it can.

    A computation is tried, because a GPU may be there for which the installed PyTorch has no code.
    """
    try:
        torch.ones(1, device="cuda").add_(1).item()
    except (AssertionError, RuntimeError) as error:  # AssertionError if PyTorch was built without CUDA
        return one_line(error, 200)
    return None


def free_bytes(device: torch.device) -> int:
    """Return the memory of a device that this process may take in addition to what its objects use.

    Memory counts as free if its owner gives it back on demand: on a GPU, what PyTorch keeps in reserve; on a CPU, the
    cache of files.
    """
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + reserve)
    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):  # the limit of a container; the file is absent or says "max" if there is none
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        kinds = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        free = max(min(free, limit - used + int(kinds.get("inactive_file", 0))), 0)
    return free


@contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """Set whether convolutions and matrix products of fp32 are computed in TF32 on a GPU, until the block ends.

    TF32 keeps 10 bits of a factor's mantissa instead of 23. PyTorch uses it for convolutions unless it is told
    otherwise. Numbers on a CPU and in other precisions stay as they are. The flags are those of the whole process.
    """
    # These setters also write the flags of the newer API (`fp32_precision`), which torch.compile reads. The newer API
    # does not write theirs, and `torch.get_float32_matmul_precision`, which torch.compile reads too, raises an error if
    # the two disagree.
    cudnn, cublas = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    _set_tf32(enabled, "high" if enabled else "highest")
    try:
        yield
    finally:
        _set_tf32(cudnn, cublas)


def _set_tf32(cudnn: bool, cublas: str) -> None:
    torch.backends.cudnn.allow_tf32 = cudnn
    torch.set_float32_matmul_precision(cublas)


def has_bf16(device: torch.device) -> bool:
    """Tell whether the hardware of a device computes in bf16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if not hasattr(torch.cpu, "get_capabilities"):  # before PyTorch 2.11
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
