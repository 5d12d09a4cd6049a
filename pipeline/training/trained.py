"""A module in training: its optimizers, its DDP wrapper, and the values that a skipped step leaves as they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.training.methods.method import RATE_FACTOR, Trainee
from pipeline.training.ranks import Ranks


@dataclass
class Statistics:
    """Buffers of a module, such as running statistics or singular vectors, and their values before a step."""

    buffers: list[Tensor]
    _before: list[Tensor] = field(default_factory=list)

    def save(self) -> None:
        """Keep the present values."""
        self._before = [torch.cat([b.flatten() for b in alike]) for alike in self._by_dtype()]

    def restore_unless(self, finite: Tensor) -> None:
        """Go back to the kept values if a 0-dimensional bool is False, without waiting for the device."""
        for alike, before in zip(self._by_dtype(), self._before, strict=True):
            kept = torch.where(finite, torch.cat([b.flatten() for b in alike]), before)
            parts = kept.split([b.numel() for b in alike])
            torch._foreach_copy_(alike, [part.view_as(b) for part, b in zip(parts, alike, strict=True)])

    def _by_dtype(self) -> list[list[Tensor]]:
        dtypes = dict.fromkeys(buffer.dtype for buffer in self.buffers)
        return [[buffer for buffer in self.buffers if buffer.dtype == dtype] for dtype in dtypes]


@dataclass(frozen=True)
class Trained:
    """A trained module as the engine drives it."""

    net: nn.Module
    wrapped: nn.Module
    """The module, wrapped by DDP if there are several ranks."""
    optimizers: Sequence[torch.optim.Optimizer]
    statistics: Statistics
    """Its buffers, which a skipped step leaves as they were."""
    graphs: bool
    """True if forward and backward pass are CUDA graphs, which write their results to the same memory each time."""
    learning_rate: Callable[[int], float]
    """Learning rate of a step (from 0)."""

    def set_learning_rate(self, step: int) -> None:
        """Give the optimizers the learning rate of a step."""
        rate = self.learning_rate(step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get(RATE_FACTOR, 1.0)

    def clear_gradients(self, accumulates: bool) -> None:
        """Begin a phase, whose gradient is perhaps accumulated over micro-batches."""
        self.net.zero_grad(set_to_none=True)
        if self.graphs and accumulates:
            for p in self.net.parameters():
                p.grad = torch.zeros_like(p)  # otherwise the gradient would be the graph's own memory

    def update(self, finite: Tensor) -> None:
        """Make a step of the optimizers if `finite`.

        An optimizer that reads `found_inf`, as PyTorch's fused ones do, decides on the device; the process waits for
        the device before the step of any other.
        """
        for optimizer in self.optimizers:
            if getattr(optimizer, "_step_supports_amp_scaling", False):
                optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
                optimizer.step()
            elif finite:
                optimizer.step()


def trained(
    trainee: Trainee,
    learning_rate: Callable[[int], float],
    ranks: Ranks,
    compiled: bool,
    graphs: bool | None,
) -> Trained:
    """Prepare a module of a method for the engine: compile it, and wrap it by DDP if there are several ranks.

    Args:
        trainee: the module and its optimizers.
        learning_rate: learning rate of a step, unless the trainee has one of its own.
        ranks: this process among the ranks.
        compiled: whether to use torch.compile.
        graphs: whether a compiled module is recorded as CUDA graphs; by default on a GPU with one rank.
    """
    # Launching the kernels of a small network takes a GPU's host longer than the kernels themselves take, so they are
    # recorded once as CUDA graphs, except with DDP, which adds its own operations between them.
    net = trainee.module
    compiled = compiled and trainee.compilable
    graphs = compiled and ranks.device.type == "cuda" and (ranks.world_size == 1 if graphs is None else graphs)
    if compiled:
        # Micro-batches have few sizes, most often n and n + 1, and code for each of them is faster than code for all.
        net.compile(mode="reduce-overhead" if graphs else None, dynamic=False)
    if compiled and ranks.world_size > 1:
        from torch._dynamo import config  # here, because a training that is not compiled does not need it

        config.optimize_ddp = False  # otherwise DDP's buckets would split the graph, which was tried out as a whole
    wrapped: nn.Module = net
    if ranks.world_size > 1:
        wrapped = DistributedDataParallel(net, gradient_as_bucket_view=True)
    rate = trainee.learning_rate or learning_rate
    return Trained(net, wrapped, trainee.optimizers, Statistics(list(net.buffers())), graphs, rate)
