"""The compilers that torch.compile needs on this machine."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Sequence

import torch

COMPILED_FROM = (7, 5)
"""Compute capability from which Triton, the compiler of torch.compile, makes code for a GPU."""


def has_triton() -> bool:
    """Tell whether the package Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def has_c_compiler() -> bool:
    """Tell whether Triton finds a C compiler: the one that CC names, or else gcc or clang on the path."""
    return _is_there("CC", ("gcc", "clang"))


def has_compiler(device: torch.device) -> bool:
    """Tell whether torch.compile finds the compilers that it needs.

    On a CPU it needs a C++ compiler: the one that CXX names, or else g++ or clang++ on the path. On a GPU it needs
    Triton, a C compiler and compute capability 7.5.
    """
    if device.type == "cuda":
        return has_triton() and has_c_compiler() and torch.cuda.get_device_capability(device) >= COMPILED_FROM
    return _is_there("CXX", ("g++", "clang++"))


def _is_there(variable: str, names: Sequence[str]) -> bool:
    """Tell whether the program that an environment variable names, or without it one of several, is on the path."""
    named = os.environ.get(variable)
    return any(shutil.which(name) for name in ([named] if named else names))
