"""The terms of the training objective. To add one, write its file and add its `TermKind` to `TERMS`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sr_model.pretrained import Pretrained, Weights
from sr_model.terms import perceptual, pixel
from sr_model.terms.term import Distance, Term, TermKind, TermSettings

TERMS: dict[str, TermKind] = {kind.name: kind for kind in (*pixel.KINDS, perceptual.KIND)}
"""All terms by name."""


def objective(terms: Sequence[Term], sr: Tensor, hr: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the weighted sum of terms for each image.

    Args:
        terms: at least one.
        sr: prediction, (B, 3, H, W), nominally in [0, 1].
        hr: ground truth of the same shape.

    Returns:
        The objective, (B,), and the unweighted terms by name, (B,) each, detached.
    """
    values = {term.name: term.distance(sr, hr) for term in terms}
    total = torch.stack([term.weight * values[term.name] for term in terms]).sum(0)
    return total, {name: value.detach() for name, value in values.items()}


__all__ = ["TERMS", "Distance", "Pretrained", "Term", "TermKind", "TermSettings", "Weights", "objective"]
