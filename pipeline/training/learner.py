"""What training changes: network, moving average and optimizer, one step at a time, and as files of a checkpoint.

Knows nothing of Ray; `pipeline.worker` runs one `Learner` in every process.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.data.reader import Batch
from pipeline.networks import features
from pipeline.networks.weights import build_network, contiguous, load_weights
from pipeline.settings import Config
from pipeline.training.precision import use_bf16
from pipeline.training.schedule import active_terms, ema_decay, learning_rate
from sr_model import losses
from sr_model.muon import Muon
from sr_model.pixels import to_unit
from sr_model.srresnet import SRResNet


class StepResult(NamedTuple):
    """What a step tells; sums over this rank's samples, divided by the global batch, so that ranks add up."""

    objective: Tensor
    terms: dict[str, Tensor]
    gradient_norm: Tensor
    """Of the global gradient before clipping; the same on all ranks."""
    skipped: str | None = None
    """What was not finite (terms of the objective, else "gradient"), so that nothing was changed."""


class Learner:
    """Trains one network; every rank holds one and makes the same steps.

    Args:
        config: the pipeline's configuration.
        steps: length of the training, which shapes the learning rate.
        device: where to compute.
        world: number of ranks; a process group must exist if more than one.
        bf16: whether to compute in bf16; by `use_bf16` where not given.
        compiled: whether to compile the network.
    """

    def __init__(
        self,
        config: Config,
        steps: int,
        device: torch.device,
        world: int = 1,
        bf16: bool | None = None,
        compiled: bool = False,
    ) -> None:
        self.settings = config.train
        self.steps, self.device, self.world = steps, device, world
        net = build_network(config.scale, config.model, config.train.seed)
        if config.train.init_from:
            load_weights(net, config.train.init_from)
        layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
        net = net.to(device, memory_format=layout)  # type: ignore[call-overload]
        net.recompute = config.train.recompute
        self.ema = copy.deepcopy(net).eval().requires_grad_(False)
        if world > 1 and config.model.batch_norm and device.type == "cuda":
            net = nn.SyncBatchNorm.convert_sync_batchnorm(net)  # refuses CPU tensors: there, statistics are per rank
        self.net: SRResNet = net
        if compiled:
            net.compile()
        self._forward: nn.Module = (
            DistributedDataParallel(net, gradient_as_bucket_view=True, forward_sync_buffers=config.model.batch_norm)
            if world > 1
            else net
        )
        self.bf16 = use_bf16(config.train.precision, device) if bf16 is None else bf16
        hidden = net.hidden_weights() if config.train.optimizer == "muon" else []
        chosen = set(hidden)
        rest = [p for p in net.parameters() if p not in chosen]
        self.optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(rest, betas=config.train.betas, fused=True)]
        if hidden:
            self.optimizers.append(Muon(hidden))
        self._perceptual = features.load(config.train.perceptual, device) if "perceptual" in config.train.loss else None
        self.skipped = self.skipped_in_a_row = 0
        """Steps without a finite gradient, in all and since the last good one."""
        self._statistics = list(net.buffers())
        self._statistics_before = [buffer.clone() for buffer in self._statistics]

    def step(self, step: int, batches: Iterable[Batch], count: int = 1) -> StepResult:
        """Make optimizer step number `step` (from 0) with this rank's samples.

        A step whose loss or gradient is not finite on any rank is skipped on all: weights, moments, moving average and
        BatchNorm's statistics stay as they were.

        Args:
            step: sets the learning rate and the decay of the moving average.
            batches: the micro-batches, taken one by one; as many on all ranks, without samples where there are none.
            count: how many.
        """
        weights = active_terms(step, self.steps, self.settings)
        self.net.zero_grad(set_to_none=True)
        _copy(self._statistics, self._statistics_before)
        sums: dict[str, Tensor] = {}
        for i, batch in enumerate(islice(batches, count)):
            last = i == count - 1
            with nullcontext() if last or self.world == 1 else self._forward.no_sync():  # type: ignore[operator]
                loss, terms = self._micro_step(batch, weights)
                # DDP divides the sum over ranks by their number. A loss that isn't finite spoils the gradient of all
                # ranks, whatever its own gradient is, so that all skip the step.
                loss.backward(torch.where(loss.detach().isfinite(), float(self.world), math.nan).to(loss.dtype))
            for name, value in {"objective": loss.detach(), **terms}.items():
                sums[name] = sums[name] + value if name in sums else value
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), self.settings.clip_norm, foreach=True)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate(step, self.steps, self.settings)
        objective = sums.pop("objective")
        if not torch.isfinite(norm):
            _copy(self._statistics_before, self._statistics)
            self.skipped += 1
            self.skipped_in_a_row += 1
            return StepResult(objective, sums, norm, self._culprits(sums))
        self.skipped_in_a_row = 0
        for optimizer in self.optimizers:
            optimizer.step()
        self._average(ema_decay(step, self.settings.ema_decay))
        return StepResult(objective, sums, norm)

    def _micro_step(self, batch: Batch, weights: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        # Without samples, while others still have some: take part in the synchronisation, without weight, and without
        # a trace in BatchNorm's statistics (SyncBatchNorm must stay in step with the others, and counts it).
        lr, hr, orientation = batch
        self._forward.train(len(lr) > 0 or self.device.type == "cuda")
        weight = 1.0 / self.settings.global_batch
        if len(lr) == 0:
            lr, hr, orientation = (np.zeros((1, *part.shape[1:]), np.uint8) for part in batch)
            weight = 0.0
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            sr = self._forward(to_unit(lr, self.device, orientation))
        target = to_unit(hr, self.device, orientation)
        total, terms = losses.objective(sr.to(target.dtype), target, weights, self._perceptual)
        return total.sum() * weight, {name: term.sum() * weight for name, term in terms.items()}

    def _culprits(self, terms: dict[str, Tensor]) -> str:
        bad = torch.stack([~term.isfinite() for term in terms.values()]).int()
        if self.world > 1:
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        return "-".join(name for name, flag in zip(terms, bad.tolist(), strict=True) if flag) or "gradient"

    @torch.no_grad()
    def _average(self, decay: float) -> None:
        mine, averaged = self.net.state_dict(), self.ema.state_dict()
        floating = [name for name, value in mine.items() if value.is_floating_point()]
        torch._foreach_lerp_([averaged[n] for n in floating], [mine[n] for n in floating], 1 - decay)
        for name in mine.keys() - set(floating):  # BatchNorm's counters
            averaged[name].copy_(mine[name])

    def save(self) -> tuple[dict[str, bytes], dict[str, int]]:
        """Weights, moving average and optimizer as files, and the rest of the state."""
        moments = io.BytesIO()
        torch.save([optimizer.state_dict() for optimizer in self.optimizers], moments)
        files = {f"{n}.safetensors": safetensors.torch.save(contiguous(net)) for n, net in self._networks.items()}
        files["optimizer.pt"] = moments.getvalue()
        return files, {"skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row}

    def load(self, files: dict[str, bytes], state: dict[str, int]) -> None:
        """Restore what `save` gave."""
        for name, net in self._networks.items():
            net.load_state_dict(safetensors.torch.load(files[f"{name}.safetensors"]))
        moments = io.BytesIO(files["optimizer.pt"])
        states = torch.load(moments, map_location=self.device, weights_only=True)
        for optimizer, known in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(known)
        self.skipped, self.skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]

    @property
    def _networks(self) -> dict[str, nn.Module]:
        return {"model": self.net, "ema": self.ema}

    def gather(self, values: Sequence[Tensor | float]) -> list[list[float]]:
        """Scalars of every rank, in order of ranks."""
        mine = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=self.device) for value in values])
        ranks = [mine]
        if self.world > 1:
            ranks = [torch.empty_like(mine) for _ in range(self.world)]
            dist.all_gather(ranks, mine)
        return [rank.tolist() for rank in ranks]


def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    if source:
        torch._foreach_copy_(target, source)
