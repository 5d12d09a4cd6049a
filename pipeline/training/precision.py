"""The precision in which a device computes the forward and backward pass."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["bf16", "fp32"]


def choose_precision(wanted: str, device: torch.device) -> Precision:
    """Resolve the setting `train.precision` for a device.

    Args:
        wanted: "bf16", "fp32", or "auto" for bf16 where the hardware has it; a CPU that emulates it takes 12x as long.
        device: the device of the training.
    """
    if wanted != "auto":
        return "bf16" if wanted == "bf16" else "fp32"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Context of the forward pass."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
