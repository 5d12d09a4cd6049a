"""Shared parts of the benchmarks: command lines, timing, random samples, and the results that they print last."""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np
import torch

from pipeline.data.reader import Batch

CROP = 96
"""Side of an HR training patch in pixels."""
SCALE = 4


@functools.cache
def machine() -> str:
    """Describe what a result depends on: processor, cores, threads, bf16 instructions, GPU, driver and PyTorch."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    bf16 = [name for name in ("avx512_bf16", "amx_bf16") if capabilities.get(name)]
    parts = [
        str(capabilities.get("cpu_name") or platform.processor()),
        f"{os.cpu_count()} cores",
        f"{torch.get_num_threads()} threads",
        " and ".join(bf16) or "no bf16 instructions",
        f"PyTorch {torch.__version__}",
    ]
    if torch.cuda.is_available():
        driver = f"driver {_driver_version()}, CUDA {torch.version.cuda}"
        parts.insert(0, f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, {driver}")
    return ", ".join(parts)


def _driver_version() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.split("\n")[0]
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"


@dataclass(frozen=True)
class Result:
    """One figure of a benchmark."""

    name: str
    value: float | None
    """None if the benchmark could not measure it."""
    unit: str
    target: float | None
    """The value to reach; None if there is no target."""
    better: Literal["higher", "lower"]
    machine: str = field(default_factory=machine)


def print_results(results: Result | Sequence[Result]) -> None:
    """Print one result as a JSON object, or several as a list of objects, on one line."""
    several = [asdict(result) for result in results] if isinstance(results, Sequence) else asdict(results)
    print(json.dumps(several))


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """Make the command line of a benchmark from the docstring of its module."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )


def time_in_turns(
    actions: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1, device: torch.device | None = None
) -> dict[str, list[float]]:
    """Time actions that alternate, because a busy machine then disturbs all of them alike.

    Args:
        actions: what to time, by name.
        rounds: number of timed calls of each action.
        warm_up: number of earlier calls that are not timed.
        device: a GPU whose work counts: each call ends when the GPU is done.

    Returns:
        Seconds of each timed call, by the action's name.
    """
    times: dict[str, list[float]] = {name: [] for name in actions}
    for round_number in range(warm_up + rounds):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            synchronise(device)
            if round_number >= warm_up:
                times[name].append(time.perf_counter() - start)
    return times


def synchronise(device: torch.device | None) -> None:
    """Wait until a GPU has done its work; on a CPU, it always has."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the median of each list."""
    return {name: statistics.median(values) for name, values in times.items()}


def print_times(times: Mapping[str, Sequence[float]], each: str = "step") -> None:
    """Print a row with the median and the extremes of each list of seconds."""
    width = max(map(len, times))
    for name, values in times.items():
        spread = f"{min(values):.4f} to {max(values):.4f}"
        print(f"{name:{width}}  median {statistics.median(values):.4f} s per {each}, {spread}")


def random_batch(size: int, seed: int = 0, crop: int = CROP) -> Batch:
    """Make a batch of random samples: HR of `crop` and LR of `crop / SCALE` pixels, flipped and turned at random."""
    rng = np.random.default_rng(seed)
    lr, hr = (rng.integers(0, 256, (size, side, side, 3), np.uint8) for side in (crop // SCALE, crop))
    return Batch(*map(torch.from_numpy, (lr, hr, rng.integers(0, 8, size))))


def time_command(stage: str, *arguments: str) -> float:
    """Run `python -m pipeline.STAGE` and return its seconds.

    Raises:
        SystemExit: with the command's output, if it fails.
    """
    start = time.monotonic()
    command = [sys.executable, "-m", f"pipeline.{stage}", *arguments]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(process.stdout + process.stderr)
    return time.monotonic() - start
