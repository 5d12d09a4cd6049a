"""The engine of a training: it makes one optimizer step after the other, for any method of `pipeline.training.methods`.

Accumulation, clipping, the skip of non-finite steps, the moving average, DDP and checkpoints are written once, here.
The module knows nothing of Ray; `pipeline.training.worker` runs one `Learner` in every process.

The device decides whether a step is finite, and selects between old and new values. The process learns of it later:
while a GPU computes a step, the process prepares the next ones. It is at most two steps ahead.
"""

from __future__ import annotations

import copy
import io
import math
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.data.reader import Batch
from pipeline.networks.devices import tf32
from pipeline.networks.weights import to_safetensors
from pipeline.settings import Config
from pipeline.training.checkpoints import OPTIMIZERS, LossScale, SkipCounts
from pipeline.training.methods import Method, Phase, Sample, Setup, find_method
from pipeline.training.methods.method import AVERAGE, shipped_network
from pipeline.training.precision import LossScaler, Precision
from pipeline.training.ranks import Ranks
from pipeline.training.schedule import ema_decay, learning_rate
from pipeline.training.trained import trained
from sr_model.pixels import to_unit

_STEPS_AHEAD = 2
"""Steps that the process may prepare on a GPU before it looks at the outcome of a step."""


_Numbered = tuple[Batch, Tensor]
"""A micro-batch, and the positions of its samples."""


@dataclass(frozen=True)
class StepResult:
    """The recorded values of a step on this rank, on the device."""

    sums: dict[str, Tensor]
    """"objective" and the terms: sums over this rank's samples, divided by the global batch, so the ranks add up."""
    norms: dict[str, Tensor]
    """"gradient_norm": norm of the global gradient before clipping, equal on all ranks."""
    finite: Tensor
    """0-dimensional bool, equal on all ranks: False if the step was skipped."""


@dataclass(frozen=True)
class SkippedStep:
    """A step that changed nothing, because its loss or gradient was not finite."""

    step: int
    """Number of finished steps, this one included."""
    culprit: str
    """Names of the terms that were not finite, joined by "-", or "gradient"."""
    skips: SkipCounts
    """Skipped steps so far."""


@dataclass(frozen=True)
class _Outcome:
    """The outcome of a step, which the process may not know yet."""

    step: int
    suspects: dict[str, Tensor]
    """Terms that may not be finite, on the device."""
    flags: Tensor
    """(2,) bool on the CPU: whether the step was finite, and whether it counts as a fault if it was not."""
    arrival: torch.cuda.Event | None
    """After it, `flags` is valid; None if it is valid at once."""


class Learner:
    """Trains the modules of a method; every rank has one and makes the same steps.

    Args:
        config: the pipeline's configuration.
        steps: optimizer steps of the training, which shape the learning rate.
        ranks: this process among the ranks.
        precision: precision of the forward and backward pass.
        compiled: whether to use torch.compile.
        graphs: whether a compiled module is recorded as CUDA graphs; by default on a GPU with one rank.
    """

    def __init__(
        self,
        config: Config,
        steps: int,
        ranks: Ranks,
        precision: Precision,
        compiled: bool = False,
        graphs: bool | None = None,
    ) -> None:
        self.settings, self.steps, self.ranks = config.train, steps, ranks
        self._precision = precision
        setup = Setup(config, steps, ranks.device, precision, ranks.world_size)
        self._method: Method = find_method(config).create(setup)
        self.ema = copy.deepcopy(shipped_network(self._method)).eval().requires_grad_(False)
        self._modules = {
            name: trained(trainee, self._learning_rate, ranks, compiled, graphs)
            for name, trainee in self._method.trainees.items()
        }
        own, averaged = self.net.state_dict(), self.ema.state_dict()
        self._averaged = [(own[n], averaged[n]) for n in own if own[n].is_floating_point()]
        self._copied = [(own[n], averaged[n]) for n in own if not own[n].is_floating_point()]  # BatchNorm's counters
        self._scaler = LossScaler(ranks.device, config.train.global_batch) if precision == "fp16" else None
        self._outcomes: deque[_Outcome] = deque()
        self.skips = SkipCounts()
        """Skipped steps, as far as `take_skipped` has looked."""

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
        """Learning rate of the shipped network in the last step."""
        rate: float = self._modules[self._method.shipped].optimizers[0].param_groups[0]["lr"]
        return rate

    @property
    def loss_scale(self) -> LossScale | None:
        """State of the loss scale, which waits for the device; None unless the precision is fp16."""
        return self._scaler.state() if self._scaler else None

    def step(self, step: int, batches: Iterable[Batch], count: int = 1, positions: Tensor | None = None) -> StepResult:
        """Make optimizer step number `step` (from 0) with this rank's samples.

        A phase whose loss or gradient is not finite on any rank is skipped on all, and so are the later phases of the
        step: weights, moments, moving average and BatchNorm's statistics stay as they were.

        Args:
            step: number of the step, which sets the learning rate and the decay of the moving average.
            batches: the micro-batches, read one by one. All ranks need the same number, without samples if need be.
            count: number of micro-batches.
            positions: (n,) int64, positions of this rank's samples in the order of the whole training; by default this
                rank has all samples of the step.
        """
        phases = self._method.phases(step)
        numbered: Iterable[_Numbered] = _number(islice(batches, count), step * self.settings.global_batch, positions)
        if len(phases) > 1:
            numbered = list(numbered)
        for module in self._modules.values():
            module.set_learning_rate(step)
        sums: dict[str, Tensor] = {}
        norms: dict[str, Tensor] = {}
        suspects: dict[str, Tensor] = {}
        finite = torch.ones((), dtype=torch.bool, device=self.ranks.device)
        with tf32(self._precision == "tf32"):
            for phase in phases:
                module = self._modules[phase.trainee]
                phase_sums, norm = self._accumulate(phase, numbered, count)
                finite = finite & norm.isfinite()
                module.update(finite)
                for other in self._modules.values():
                    other.statistics.restore_unless(finite)
                if phase.trainee == self._method.shipped:
                    self._average(ema_decay(step, self.settings.ema_decay), finite)
                prefix = f"{phase.name}/" if phase.name else ""
                sums |= {f"{prefix}{name}": value for name, value in phase_sums.items()}
                terms = {name: value for name, value in phase_sums.items() if name != "objective"} or phase_sums
                suspects |= {f"{prefix}{name}": value for name, value in terms.items()}
                norms[f"{prefix}gradient_norm"] = norm
        counts = self._scaler.update(finite) if self._scaler else ~finite
        flags, arrival = _copy_to_host(torch.stack([finite, counts]))
        self._outcomes.append(_Outcome(step + 1, suspects, flags, arrival))
        return StepResult(sums, norms, finite)

    def take_skipped(self, wait: bool = False) -> list[SkippedStep]:
        """Return the skipped steps that became known since the last call; all ranks call it alike.

        On a GPU, this waits for the step before the last two, so the process is at most two steps ahead of it.

        Args:
            wait: whether to wait for the device and return those of all steps.
        """
        unknown = 0 if wait or self.ranks.device.type == "cpu" else _STEPS_AHEAD
        skipped = []
        while len(self._outcomes) > unknown:
            outcome = self._outcomes.popleft()
            if outcome.arrival:
                outcome.arrival.synchronize()
            finite, counts = outcome.flags.tolist()
            if finite:
                self.skips = SkipCounts(self.skips.total)
            else:
                self.skips = SkipCounts(self.skips.total + 1, self.skips.in_a_row + counts)
                skipped.append(SkippedStep(outcome.step, self._culprits(outcome.suspects), self.skips))
        return skipped

    def _learning_rate(self, step: int) -> float:
        return learning_rate(step, self.steps, self.settings)

    def _accumulate(self, phase: Phase, batches: Iterable[_Numbered], count: int) -> tuple[dict[str, Tensor], Tensor]:
        """Accumulate the gradient of a phase over the micro-batches, and clip it."""
        module = self._modules[phase.trainee]
        for name, other in self._modules.items() if len(self._modules) > 1 else ():
            other.net.requires_grad_(name == phase.trainee)
        for other in self._modules.values():
            other.statistics.save()
        module.clear_gradients(accumulates=count > 1)
        sums: dict[str, Tensor] = {}
        for i, (batch, positions) in enumerate(batches):
            if any(other.graphs for other in self._modules.values()):
                torch.compiler.cudagraph_mark_step_begin()
            synchronised = i == count - 1 or self.ranks.world_size == 1
            with nullcontext() if synchronised else module.wrapped.no_sync():  # type: ignore[operator]
                loss, values = self._micro_step(phase, batch, positions)
                # DDP divides the sum over ranks by their number. A loss that is not finite makes the gradient of all
                # ranks NaN, even if its own gradient is finite, so that all ranks skip the step.
                factor = torch.where(loss.detach().isfinite(), float(self.ranks.world_size), math.nan)
                if self._scaler:
                    factor = factor * self._scaler.value
                loss.backward(factor.to(loss.dtype))
            for name, value in values.items():
                sums[name] = sums[name] + value if name in sums else value
        return sums, self._clip(module.net)

    def _clip(self, net: nn.Module) -> Tensor:
        """Take the loss scale out of the gradients, scale them down to `clip_norm`, and return their norm before."""
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        scale = self._scaler.value if self._scaler else 1.0
        norm = norm / scale
        torch._foreach_mul_(gradients, (self.settings.clip_norm / (norm + 1e-6)).clamp(max=1.0) / scale)
        return norm

    def _micro_step(self, phase: Phase, batch: Batch, positions: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        # A rank without samples takes part in the synchronisation with a sample of weight 0. It stays out of
        # BatchNorm's statistics in eval mode.
        lr, hr, orientation = batch
        modules = {
            name: module.wrapped if name == phase.trainee else module.net for name, module in self._modules.items()
        }
        device = self.ranks.device
        for module in modules.values():
            module.train(len(lr) > 0)
        weight = 1.0 / self.settings.global_batch
        if len(lr) == 0:
            lr, hr, orientation = (part.new_zeros((1, *part.shape[1:])) for part in batch)
            weight, positions = 0.0, positions.new_zeros(1)
        modules[AVERAGE] = self.ema
        images = to_unit(lr, device, orientation), to_unit(hr, device, orientation)
        loss = phase.loss(modules, Sample(*images, positions.to(device, non_blocking=True)))
        total = loss.total.sum() * weight
        return total, {"objective": total.detach(), **{name: t.sum() * weight for name, t in loss.terms.items()}}

    def _culprits(self, suspects: dict[str, Tensor]) -> str:
        """Names of the terms that are not finite on any rank, or "gradient"."""
        bad = torch.stack([~term.isfinite() for term in suspects.values()]).int()
        if self.ranks.world_size > 1:
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        return "-".join(name for name, flag in zip(suspects, bad.tolist(), strict=True) if flag) or "gradient"

    @torch.no_grad()
    def _average(self, decay: float, finite: Tensor) -> None:
        own, averaged = map(list, zip(*self._averaged, strict=True))
        change = torch._foreach_sub(own, averaged)
        torch._foreach_mul_(change, torch.where(finite, 1 - decay, 0.0).to(own[0].dtype))
        torch._foreach_add_(averaged, change)
        if self._copied:
            counters, copies = map(list, zip(*self._copied, strict=True))
            torch._foreach_copy_(copies, counters)

    def save(self) -> dict[str, bytes]:
        """Serialise modules, moving average and optimizers as files of a checkpoint; `skips` belongs beside them."""
        moments = io.BytesIO()
        states = {name: [o.state_dict() for o in module.optimizers] for name, module in self._modules.items()}
        torch.save(states, moments)
        files = {f"{name}.safetensors": to_safetensors(net) for name, net in self._networks().items()}
        return {**files, OPTIMIZERS: moments.getvalue()}

    def load(self, files: dict[str, bytes], skips: SkipCounts, loss_scale: LossScale | None = None) -> None:
        """Restore what `save` returned, and the state that a checkpoint holds beside it.

        A loss scale is ignored if this learner has another precision; without one, it is calibrated anew.
        """
        for name, net in self._networks().items():
            net.load_state_dict(safetensors.torch.load(files[f"{name}.safetensors"]))
        moments = io.BytesIO(files[OPTIMIZERS])
        states = torch.load(moments, map_location="cpu", weights_only=True)  # the optimizers move it
        for name, module in self._modules.items():
            for optimizer, state in zip(module.optimizers, states[name], strict=True):
                optimizer.load_state_dict(state)
        self.skips = skips
        if self._scaler and loss_scale:
            self._scaler.load(loss_scale)

    def _networks(self) -> dict[str, nn.Module]:
        return {**{name: module.net for name, module in self._modules.items()}, AVERAGE: self.ema}


def _number(batches: Iterable[Batch], first: int, positions: Tensor | None) -> Iterator[_Numbered]:
    """Give the samples of micro-batches their positions, which begin at `first` and have no gaps if none are given."""
    done = 0
    for batch in batches:
        end = done + len(batch.lr)
        yield batch, first + torch.arange(done, end) if positions is None else positions[done:end]
        done = end


def _copy_to_host(flags: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Start copying a small tensor to the CPU, and return the copy and the event of its arrival."""
    if flags.device.type != "cuda":
        return flags.cpu(), None
    copied = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
    copied.copy_(flags, non_blocking=True)
    arrival = torch.cuda.Event(blocking=True)  # waiting for it leaves the core to other threads
    arrival.record()
    return copied, arrival
