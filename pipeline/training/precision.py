"""In which precision a device computes."""

from __future__ import annotations

import torch


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether to compute in bf16: asked for, or supported in hardware (emulated on a CPU it is 12x slower)."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))
