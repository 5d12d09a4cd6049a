"""Code that residual networks share: the recomputation of their blocks, and what a state dict says about their size.

The networks have a convolution `conv_first` and residual blocks `body.N` with a convolution `conv1`, and some have
upsampling stages `upsample.N`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sr_model.networks.settings import STAGES


def run(part: Callable[[Tensor], Tensor], x: Tensor, recompute: bool) -> Tensor:
    """Compute part of a network.

    Args:
        part: a module or a method.
        x: its input, (B, C, h, w).
        recompute: keep no activations, and compute them again in the backward pass (Chen et al. 2016,
            arXiv:1604.06174). BatchNorm's running statistics count the batch once.
    """
    if not (recompute and torch.is_grad_enabled()):
        return part(x)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _frozen_statistics(part)

    # torch.compile takes no contexts, and a compiled graph updates the statistics once in any case.
    plain = partial(checkpoint, part, x, use_reentrant=False, preserve_rng_state=False)
    y: Tensor = plain() if torch.compiler.is_compiling() else plain(context_fn=contexts)
    return y


@contextmanager
def _frozen_statistics(part: object) -> Iterator[None]:
    """Keep the second forward pass from counting a batch twice in BatchNorm's running statistics.

    In training mode, the output of BatchNorm does not depend on them. In eval mode, neither pass counts anything.
    """
    modules = part.modules() if isinstance(part, nn.Module) else ()
    norms = [m for m in modules if isinstance(m, nn.BatchNorm2d) and m.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked -= 1


def measure(weights: Mapping[str, Tensor], stage: str) -> tuple[int, int, int]:
    """Read the size of a network off its state dict.

    Args:
        weights: the state dict.
        stage: regular expression of the names of the stages' weights (C*r*r, C, k, k), behind `upsample.N.`.

    Returns:
        Scale, feature channels and number of residual blocks.

    Raises:
        KeyError, IndexError, ValueError, ZeroDivisionError: if the weights belong to another network.
    """
    factors = tuple(
        math.isqrt(weights[name].shape[0] // weights[name].shape[1])
        for name in sorted(weights)
        if re.fullmatch(rf"upsample\.\d+\.{stage}", name)
    )
    scale = next((scale for scale, stages in STAGES.items() if stages == factors), None)
    if scale is None:
        raise ValueError(f"the upsampling stages have the factors {factors}, expected one of {list(STAGES.values())}")
    return scale, *measure_body(weights)


def measure_body(weights: Mapping[str, Tensor]) -> tuple[int, int]:
    """Read feature channels and number of residual blocks off a state dict.

    Raises:
        KeyError, IndexError, ValueError: if the weights belong to another network.
    """
    channels = weights["conv_first.weight"].shape[0]
    # Only a block with weights counts, so that a small file cannot describe a network that takes long to build.
    blocks = sum(
        bool(re.fullmatch(r"body\.\d+\.conv1\.weight", name)) and value.shape == (channels, channels, 3, 3)
        for name, value in weights.items()
    )
    if not blocks:
        raise ValueError(f"no residual block has the {channels} channels of the first convolution")
    return channels, blocks
