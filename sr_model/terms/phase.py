"""The term "phase": errors that repeat with the period of the enlargement, such as a checkerboard.

Features and discriminators reward a network for such patterns, because its last layers can make them more easily than
texture (Odena et al. 2016, doi:10.23915/distill.00003). `sr_model.metrics.phase_energy` measures them in an image.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor

from sr_model.pretrained import Weights
from sr_model.terms.settings import Phase
from sr_model.terms.term import Distance

_PERIODS = 8
"""Side of the window in which errors of one phase are averaged, in periods."""


def phase_error(sr: Tensor, hr: Tensor, period: int) -> Tensor:
    """Energy of the errors of each image that repeat every `period` pixels, (B,).

    The local mean over `period` x `period` pixels is taken from the error. In each window, the errors at each of the
    period^2 positions are averaged, so errors that do not repeat cancel out. The energy is the variance of these
    averages, as a mean over the windows. For an error that is a pattern alone it is the variance of that pattern.

    Args:
        sr: prediction, (B, C, H, W), nominally in [0, 1].
        hr: ground truth of the same shape, at least two periods along each axis.
        period: period in pixels.
    """
    error = sr - hr
    residual = error[..., : 1 - period, : 1 - period] - F.avg_pool2d(error, period, stride=1)
    rows, columns = (size // period for size in residual.shape[-2:])
    phases = F.pixel_unshuffle(residual[..., : rows * period, : columns * period], period)
    means = F.avg_pool2d(phases, (min(_PERIODS, rows), min(_PERIODS, columns)), stride=1)
    energies: Tensor = means.unflatten(1, (-1, period**2)).var(2, correction=0)
    return energies.flatten(1).mean(1)


def create(settings: Phase, _: Weights) -> Distance:
    """The term with its settings; it needs no weights."""
    return partial(phase_error, period=settings.period)
