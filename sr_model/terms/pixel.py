"""Terms that compare pixels: mean squared, absolute and Charbonnier error; and total variation, which smooths."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sr_model.pretrained import Weights
from sr_model.terms.term import Distance


def mse(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean squared error of each image, (B,)."""
    return F.mse_loss(sr, hr, reduction="none").flatten(1).mean(1)


def l1(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean absolute error of each image, (B,)."""
    return F.l1_loss(sr, hr, reduction="none").flatten(1).mean(1)


def charbonnier(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean of sqrt(d^2 + 1e-6) of each image, (B,): an absolute error that is smooth at 0.

    Source: Lai et al. 2017 (arXiv:1704.03915).
    """
    return ((sr - hr).square() + 1e-6).sqrt().flatten(1).mean(1)


def total_variation(sr: Tensor, _: Tensor) -> Tensor:
    """Sum of absolute differences between neighbouring pixels, divided by the number of values of an image, (B,).

    This is the anisotropic form of Rudin, Osher and Fatemi 1992. A weight that was chosen for the sum (2e-8 in Ledig et
    al. 2017) has to be multiplied by the number of values of a patch, which gives 5.5e-4 for 96x96.
    """
    across, down = (sr.diff(dim=dim).abs().flatten(1).sum(1) for dim in (3, 2))
    return (across + down) / sr[0].numel()


_DISTANCES: dict[str, Distance] = {"mse": mse, "l1": l1, "charbonnier": charbonnier, "tv": total_variation}


def create(name: str, _: Any, __: Weights) -> Distance:
    """The term of a name; it needs no settings and no weights."""
    return _DISTANCES[name]
