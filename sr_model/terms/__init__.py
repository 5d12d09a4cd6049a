"""The terms of the training objective. To add one, write its file, and add its settings and an entry to `TERMS`.

This module imports no torch, so that a command can check its settings at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from sr_model.deferred import deferred
from sr_model.pretrained import Pretrained, Weights
from sr_model.terms.settings import Perceptual, Phase
from sr_model.terms.term import Distance, Term, TermKind, TermSettings

if TYPE_CHECKING:
    from torch import Tensor

_pixel = deferred("sr_model.terms.pixel:create")

_ALL = (
    TermKind("mse", partial(_pixel, "mse")),
    TermKind("l1", partial(_pixel, "l1")),
    TermKind("charbonnier", partial(_pixel, "charbonnier")),
    TermKind("tv", partial(_pixel, "tv"), compares_pixels=False),
    TermKind(
        "phase",
        deferred("sr_model.terms.phase:create"),
        Phase,
        compares_pixels=False,
        smallest=Phase.smallest_side,
    ),
    TermKind(
        "perceptual",
        deferred("sr_model.terms.perceptual:create"),
        Perceptual,
        compares_pixels=False,
        pretrained=Perceptual.pretrained,
        start=lambda settings: settings.start,
        shift=lambda settings: settings.shift,
        smallest=Perceptual.smallest_side,
    ),
)

TERMS: dict[str, TermKind] = {kind.name: kind for kind in _ALL}
"""All terms by name."""


def objective(terms: Sequence[Term], sr: Tensor, hr: Tensor, positions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the weighted sum of terms for each image.

    Args:
        terms: at least one.
        sr: prediction, (B, 3, H, W), nominally in [0, 1].
        hr: ground truth of the same shape.
        positions: (B,) int64, positions of the samples in the order of the whole training, which random shifts are
            functions of.

    Returns:
        The objective, (B,), and the unweighted terms by name, (B,) each, detached.
    """
    import torch  # here, because it takes seconds and commands check their settings before

    from sr_model.terms.shifts import shift_together

    values = {}
    for term in terms:
        images = shift_together(sr, hr, term.shift, term.seed, positions) if term.shift else (sr, hr)
        values[term.name] = term.distance(*images)
    total = torch.stack([term.weight * values[term.name] for term in terms]).sum(0)
    return total, {name: value.detach() for name, value in values.items()}


__all__ = ["TERMS", "Distance", "Pretrained", "Term", "TermKind", "TermSettings", "Weights", "objective"]
