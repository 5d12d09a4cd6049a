"""Keys' cubic kernel, from which MATLAB's bicubic resize is made (IEEE TASSP 1981)."""

from __future__ import annotations

import torch
from torch import Tensor


def keys_kernel(x: Tensor) -> Tensor:
    """Return Keys' kernel with a = -0.5 at distances of any shape, in pixels; it is zero beyond a distance of 2."""
    x = x.abs()
    inner = (1.5 * x - 2.5) * x * x + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, inner, torch.where(x <= 2, outer, torch.zeros_like(x)))
