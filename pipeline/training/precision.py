"""The precision in which a device computes the forward and backward pass, and the loss scale that fp16 needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from pipeline.networks.devices import has_bf16
from pipeline.training.checkpoints import LossScale

Precision = Literal["fp32", "tf32", "bf16", "fp16"]

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}

_FIRST_SCALE = 2.0**12
"""First loss scale per sample of the global batch: the loss is a mean over the batch, so its gradient shrinks with the
batch. fp16 rounds gradients below 6e-8 to 0, which the scale prevents."""

_LARGEST_SCALE = 2.0**24
"""Largest loss scale per sample of the global batch."""

_GOOD_STEPS = 2000
"""Finite steps in a row after which the loss scale doubles, as in Micikevicius et al. 2018 (arXiv:1710.03740)."""


def choose_precision(wanted: str, device: torch.device) -> Precision:
    """Resolve the setting `train.precision` for a device.

    Args:
        wanted: a `Precision`; or "auto" for bf16 where the hardware has it (a CPU that emulates it takes 12x as long),
            fp16 on older GPUs with tensor cores (compute capability 7.x, such as a T4), and fp32 on all others.
        device: the device of the training.
    """
    if wanted != "auto":
        chosen: Precision = wanted  # type: ignore[assignment]  # the settings allow no other values
        return chosen
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return "bf16" if major >= 8 else "fp16" if major == 7 else "fp32"
    return "bf16" if has_bf16(device) else "fp32"


def common_precision(chosen: Sequence[Precision]) -> Precision:
    """Return the precision for ranks on different devices: the one that all of them compute fast or have to use."""
    return min(chosen, key=("fp32", "tf32", "fp16", "bf16").index)


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Context of the forward pass."""
    return torch.autocast(device.type, _HALF.get(precision, torch.bfloat16), enabled=precision in _HALF)


class LossScaler:
    """The dynamic loss scale of a training in fp16, kept on the device so that no step waits for it.

    The scale halves after a step that is not finite and doubles after many finite ones. It calibrates at the start and
    after each doubling, until the next finite step: a step that is skipped meanwhile says nothing about the training.

    Args:
        device: the device of the training.
        global_batch: samples of a step.
    """

    def __init__(self, device: torch.device, global_batch: int) -> None:
        self.value = torch.tensor(_FIRST_SCALE * global_batch, device=device)
        """The scale, 0-dimensional, float32; a power of two times the global batch."""
        self._least, self._most = float(global_batch), _LARGEST_SCALE * global_batch
        self._good_steps = torch.zeros((), device=device)
        self._calibrating = torch.ones((), dtype=torch.bool, device=device)

    def update(self, finite: Tensor) -> Tensor:
        """Adapt the scale to a step.

        Args:
            finite: 0-dimensional bool, whether loss and gradient were finite.

        Returns:
            0-dimensional bool: True if the step was skipped and this counts as a fault of the training.
        """
        counts = ~finite & (~self._calibrating | (self.value <= self._least))
        good = torch.where(finite, self._good_steps + 1, 0.0)
        grows = (good >= _GOOD_STEPS) & (self.value < self._most)
        factor = torch.where(finite, torch.where(grows, 2.0, 1.0), 0.5)
        self.value.mul_(factor).clamp_(self._least, self._most)
        self._good_steps.copy_(torch.where(grows, 0.0, good))
        self._calibrating.copy_(torch.where(finite, grows, self._calibrating))
        return counts

    def state(self) -> LossScale:
        """The state for a checkpoint; this waits for the device."""
        return LossScale(self.value.item(), int(self._good_steps.item()), bool(self._calibrating.item()))

    def load(self, state: LossScale) -> None:
        """Restore what `state` returned."""
        self.value.fill_(state.value)
        self._good_steps.fill_(state.good_steps)
        self._calibrating.fill_(state.calibrating)
