"""The training objective: a weighted sum of named terms, each a mean over the values of a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor

# Each maps prediction and target, both (B, 3, H, W) in [0, 1], to one value a picture, (B,).
TERMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": lambda sr, hr: F.mse_loss(sr, hr, reduction="none").flatten(1).mean(1),
    "l1": lambda sr, hr: F.l1_loss(sr, hr, reduction="none").flatten(1).mean(1),
}


def objective(sr: Tensor, hr: Tensor, weights: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum the weighted terms, picture by picture.

    Args:
        sr: prediction, (B, 3, H, W), nominally in [0, 1].
        hr: ground truth, same shape.
        weights: weight of each named term; names are those of `TERMS`.

    Returns:
        The objective, (B,), and the unweighted terms by name, (B,) each, detached.
    """
    terms = {name: TERMS[name](sr, hr) for name in weights}
    total = sum((weight * terms[name] for name, weight in weights.items()), start=sr.new_zeros(sr.shape[0]))
    return total, {name: term.detach() for name, term in terms.items()}
