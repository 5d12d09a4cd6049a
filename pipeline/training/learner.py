"""The engine of a training: it makes one optimizer step after the other, for any method of `pipeline.training.methods`.

Accumulation, clipping, the skip of non-finite steps, the moving average, DDP and checkpoints are written once, here.
The module knows nothing of Ray; `pipeline.training.worker` runs one `Learner` in every process.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.data.reader import Batch
from pipeline.networks.weights import to_safetensors
from pipeline.settings import Config
from pipeline.training.checkpoints import SkipCounts
from pipeline.training.methods import Phase, Sample, Setup, find_method
from pipeline.training.methods.method import shipped_network
from pipeline.training.precision import Precision
from pipeline.training.ranks import Ranks
from pipeline.training.schedule import ema_decay, learning_rate
from sr_model.pixels import to_unit

_EMA = "ema"
_OPTIMIZERS = "optimizer.pt"


@dataclass(frozen=True)
class StepResult:
    """The recorded values of a step on this rank."""

    sums: dict[str, Tensor]
    """"objective" and the terms: sums over this rank's samples, divided by the global batch, so the ranks add up."""
    norms: dict[str, Tensor]
    """"gradient_norm": norm of the global gradient before clipping, equal on all ranks."""
    skipped: str | None = None
    """Names of the terms that were not finite, joined by "-", or "gradient"; the phase then changed nothing."""


@dataclass(frozen=True)
class _Module:
    """A trained module as the engine drives it."""

    net: nn.Module
    wrapped: nn.Module
    """The module, wrapped by DDP if there are several ranks."""
    optimizers: Sequence[torch.optim.Optimizer]
    statistics: list[Tensor]
    """Buffers, such as BatchNorm's running statistics."""
    statistics_before: list[Tensor]

    def save_statistics(self) -> None:
        if self.statistics:
            torch._foreach_copy_(self.statistics_before, self.statistics)

    def restore_statistics(self) -> None:
        if self.statistics:
            torch._foreach_copy_(self.statistics, self.statistics_before)


class Learner:
    """Trains the modules of a method; every rank has one and makes the same steps.

    Args:
        config: the pipeline's configuration.
        steps: optimizer steps of the training, which shape the learning rate.
        ranks: this process among the ranks.
        precision: precision of the forward and backward pass.
        compiled: whether to use torch.compile.
    """

    def __init__(self, config: Config, steps: int, ranks: Ranks, precision: Precision, compiled: bool = False) -> None:
        self.settings, self.steps, self.ranks = config.train, steps, ranks
        self._method = find_method(config).create(Setup(config, steps, ranks.device, precision))
        self.ema = copy.deepcopy(shipped_network(self._method)).eval().requires_grad_(False)
        self._modules = {
            name: _wrap(trainee.module, trainee.optimizers, ranks, compiled)
            for name, trainee in self._method.trainees.items()
        }
        self.skips = SkipCounts()

    @property
    def net(self) -> nn.Module:
        """The trained network, whose moving average is shipped."""
        return self._modules[self._method.shipped].net

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """All optimizers, in order of modules."""
        return [optimizer for module in self._modules.values() for optimizer in module.optimizers]

    @property
    def learning_rate(self) -> float:
        """Learning rate of the last step."""
        rate: float = self._modules[self._method.shipped].optimizers[0].param_groups[0]["lr"]
        return rate

    def step(self, step: int, batches: Iterable[Batch], count: int = 1) -> StepResult:
        """Make optimizer step number `step` (from 0) with this rank's samples.

        A phase whose loss or gradient is not finite on any rank is skipped on all, and ends the step: weights, moments,
        moving average and BatchNorm's statistics stay as they were.

        Args:
            step: number of the step, which sets the learning rate and the decay of the moving average.
            batches: the micro-batches, read one by one. All ranks need the same number, without samples if need be.
            count: number of micro-batches.
        """
        phases = self._method.phases(step)
        batches = islice(batches, count)
        if len(phases) > 1:
            batches = list(batches)
        sums: dict[str, Tensor] = {}
        norms: dict[str, Tensor] = {}
        for phase in phases:
            phase_sums, norm = self._accumulate(phase, batches, count)
            prefix = f"{phase.name}/" if phase.name else ""
            sums |= {f"{prefix}{name}": value for name, value in phase_sums.items()}
            norms[f"{prefix}gradient_norm"] = norm
            module = self._modules[phase.trainee]
            if not torch.isfinite(norm):
                for other in self._modules.values():
                    other.restore_statistics()
                self.skips = SkipCounts(self.skips.total + 1, self.skips.in_a_row + 1)
                return StepResult(sums, norms, self._culprits(phase_sums))
            for optimizer in module.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, self.steps, self.settings)
                optimizer.step()
            if phase.trainee == self._method.shipped:
                self._average(ema_decay(step, self.settings.ema_decay))
        self.skips = SkipCounts(self.skips.total)
        return StepResult(sums, norms)

    def _accumulate(self, phase: Phase, batches: Iterable[Batch], count: int) -> tuple[dict[str, Tensor], Tensor]:
        """Accumulate the gradient of a phase over the micro-batches, and clip it."""
        module = self._modules[phase.trainee]
        for name, other in self._modules.items() if len(self._modules) > 1 else ():
            other.net.requires_grad_(name == phase.trainee)
        for other in self._modules.values():
            other.save_statistics()
        module.net.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for i, batch in enumerate(batches):
            synchronised = i == count - 1 or self.ranks.world_size == 1
            with nullcontext() if synchronised else module.wrapped.no_sync():  # type: ignore[operator]
                loss, values = self._micro_step(phase, batch)
                # DDP divides the sum over ranks by their number. A loss that is not finite makes the gradient of all
                # ranks NaN, even if its own gradient is finite, so that all ranks skip the step.
                scale = torch.where(loss.detach().isfinite(), float(self.ranks.world_size), math.nan)
                loss.backward(scale.to(loss.dtype))
            for name, value in values.items():
                sums[name] = sums[name] + value if name in sums else value
        norm = nn.utils.clip_grad_norm_(module.net.parameters(), self.settings.clip_norm, foreach=True)
        return sums, norm

    def _micro_step(self, phase: Phase, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        # A rank without samples takes part in the synchronisation with a sample of weight 0. It stays out of
        # BatchNorm's statistics in eval mode, except on GPUs: there, SyncBatchNorm has to run on all ranks alike.
        lr, hr, orientation = batch
        modules = {
            name: module.wrapped if name == phase.trainee else module.net for name, module in self._modules.items()
        }
        device = self.ranks.device
        for module in modules.values():
            module.train(len(lr) > 0 or device.type == "cuda")
        weight = 1.0 / self.settings.global_batch
        if len(lr) == 0:
            lr, hr, orientation = (np.zeros((1, *part.shape[1:]), np.uint8) for part in batch)
            weight = 0.0
        loss = phase.loss(modules, Sample(to_unit(lr, device, orientation), to_unit(hr, device, orientation)))
        total = loss.total.sum() * weight
        return total, {"objective": total.detach(), **{name: t.sum() * weight for name, t in loss.terms.items()}}

    def _culprits(self, sums: dict[str, Tensor]) -> str:
        """Names of the terms that are not finite on any rank, or "gradient"."""
        terms = {name: value for name, value in sums.items() if name != "objective"} or sums
        bad = torch.stack([~term.isfinite() for term in terms.values()]).int()
        if self.ranks.world_size > 1:
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        return "-".join(name for name, flag in zip(terms, bad.tolist(), strict=True) if flag) or "gradient"

    @torch.no_grad()
    def _average(self, decay: float) -> None:
        own, averaged = self.net.state_dict(), self.ema.state_dict()
        floating = [name for name, value in own.items() if value.is_floating_point()]
        torch._foreach_lerp_([averaged[n] for n in floating], [own[n] for n in floating], 1 - decay)
        for name in own.keys() - set(floating):  # BatchNorm's counters
            averaged[name].copy_(own[name])

    def save(self) -> dict[str, bytes]:
        """Serialise modules, moving average and optimizers as files of a checkpoint; `skips` belongs beside them."""
        moments = io.BytesIO()
        states = {name: [o.state_dict() for o in module.optimizers] for name, module in self._modules.items()}
        torch.save(states, moments)
        files = {f"{name}.safetensors": to_safetensors(net) for name, net in self._networks().items()}
        return {**files, _OPTIMIZERS: moments.getvalue()}

    def load(self, files: dict[str, bytes], skips: SkipCounts) -> None:
        """Restore what `save` returned."""
        for name, net in self._networks().items():
            net.load_state_dict(safetensors.torch.load(files[f"{name}.safetensors"]))
        moments = io.BytesIO(files[_OPTIMIZERS])
        states = torch.load(moments, map_location=self.ranks.device, weights_only=True)
        for name, module in self._modules.items():
            for optimizer, state in zip(module.optimizers, states[name], strict=True):
                optimizer.load_state_dict(state)
        self.skips = skips

    def _networks(self) -> dict[str, nn.Module]:
        return {**{name: module.net for name, module in self._modules.items()}, _EMA: self.ema}


def _wrap(net: nn.Module, optimizers: Sequence[torch.optim.Optimizer], ranks: Ranks, compiled: bool) -> _Module:
    has_norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules())
    if ranks.world_size > 1 and has_norms and ranks.device.type == "cuda":
        net = nn.SyncBatchNorm.convert_sync_batchnorm(net)  # it refuses CPU tensors: there, statistics are per rank
    if compiled:
        net.compile()
    wrapped: nn.Module = net
    if ranks.world_size > 1:
        wrapped = DistributedDataParallel(net, gradient_as_bucket_view=True, forward_sync_buffers=has_norms)
    statistics = list(net.buffers())
    return _Module(net, wrapped, optimizers, statistics, [buffer.clone() for buffer in statistics])
