"""Values that change with the step: the learning rate, and the decay of the moving average."""

from __future__ import annotations

import math

from pipeline.settings import Train


def learning_rate(step: int, steps: int, settings: Train) -> float:
    """Learning rate of step number `step` (from 0) of `steps`.

    It rises linearly during the warm-up, stays at its peak, then falls: linearly, or along half a cosine (Loshchilov
    and Hutter 2017, arXiv:1608.03983).
    """
    growth = settings.global_batch / settings.lr_batch
    peak = settings.lr * {"none": 1.0, "sqrt": math.sqrt(growth), "linear": growth}[settings.lr_scaling]
    warmup = max(round(settings.warmup * steps), 1)
    if step < warmup:
        return peak * (step + 1) / warmup
    start = max(warmup, round(settings.stable * steps))
    progress = max(step - start, 0) / max(steps - start, 1)
    height = 1 - progress if settings.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (settings.lr_final + (1 - settings.lr_final) * height)


def ema_decay(step: int, decay: float) -> float:
    """Decay of the moving average at a step: it warms up as (1 + step) / (10 + step), as TensorFlow's does."""
    return min(decay, (1 + step) / (10 + step))
