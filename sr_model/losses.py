"""The training objective: a weighted sum of named terms, each a mean over the values of an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Term = Callable[[Tensor, Tensor], Tensor]
"""Maps prediction and target, both (B, 3, H, W), nominally in [0, 1], to one value an image, (B,)."""


def mse(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(sr, hr, reduction="none").flatten(1).mean(1)


def l1(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean absolute error."""
    return F.l1_loss(sr, hr, reduction="none").flatten(1).mean(1)


def charbonnier(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean of sqrt(d^2 + 1e-6), an absolute error that is smooth at 0; Lai et al. 2017 (arXiv:1704.03915)."""
    return ((sr - hr).square() + 1e-6).sqrt().flatten(1).mean(1)


def total_variation(sr: Tensor, _: Tensor) -> Tensor:
    """Absolute differences of neighbouring pixels, horizontal and vertical, summed and divided by the number of values.

    Rudin, Osher and Fatemi 1992, in its anisotropic form. A weight that is meant for the sum (2e-8 in Ledig et al.
    2017) is to be multiplied by the number of values of a patch: 5.5e-4 for 96x96.
    """
    across, down = (sr.diff(dim=dim).abs().flatten(1).sum(1) for dim in (3, 2))
    return (across + down) / sr[0].numel()


TERMS: dict[str, Term] = {"mse": mse, "l1": l1, "charbonnier": charbonnier, "tv": total_variation}
"""Terms that need nothing else."""

NAMES = (*TERMS, "perceptual")
"""All terms: "perceptual" is `perceptual.PerceptualLoss`, which needs weights."""


def objective(
    sr: Tensor, hr: Tensor, weights: Mapping[str, float], perceptual: Term | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum the weighted terms, image by image.

    Args:
        sr: prediction, (B, 3, H, W), nominally in [0, 1].
        hr: ground truth, same shape.
        weights: weight of each named term; names are those of `NAMES`.
        perceptual: the term of that name, if it is among them.

    Returns:
        The objective, (B,), and the unweighted terms by name, (B,) each, detached.
    """
    terms = {}
    for name in weights:
        term = perceptual if name == "perceptual" else TERMS[name]
        assert term is not None
        terms[name] = term(sr, hr)
    total = torch.stack([weight * terms[name] for name, weight in weights.items()]).sum(0)
    return total, {name: term.detach() for name, term in terms.items()}
