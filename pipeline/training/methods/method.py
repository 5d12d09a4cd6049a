"""A way of training, so that a new one is a single file; `pipeline.training.learner` runs any of them.

A method names the modules that it trains and the phases of a step. Supervised training has one module and one phase;
a GAN has a generator and a discriminator, and a phase for each. `pipeline.settings.methods` registers the methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from pipeline.settings import Config

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from pipeline.training.precision import Precision
    from sr_model.networks.super_resolver import SuperResolver

Modules: TypeAlias = "Mapping[str, nn.Module]"
"""The trained modules by name, as a phase calls them: the module that it updates may be wrapped by DDP. `AVERAGE` names
the moving average of the shipped network."""

AVERAGE = "ema"
"""Name of the moving average of the shipped network among the modules, and of its file in a checkpoint."""

RATE_FACTOR = "rate_factor"
"""Key of an optimizer's group of parameters whose learning rate is the schedule's times this value."""


@dataclass(frozen=True)
class Setup:
    """Arguments of a method's constructor; they are the same on all ranks, except for the device."""

    config: Config
    steps: int
    """Optimizer steps of the training."""
    device: torch.device
    precision: Precision
    world_size: int = 1


@dataclass(frozen=True)
class Trainee:
    """A module that is trained, checkpointed and resumed, with the optimizers of its parameters."""

    module: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    learning_rate: Callable[[int], float] | None = None
    """Learning rate of a step (from 0); by default the one that `train.lr` and its schedule give."""
    compilable: bool = True
    """False for a module that torch.compile has to leave as it is, such as one that is differentiated twice."""


@dataclass(frozen=True)
class Sample:
    """A micro-batch on the device, float32 in [0, 1]."""

    lr: Tensor
    """(B, 3, h, w)"""
    hr: Tensor
    """(B, 3, s*h, s*w)"""
    position: Tensor
    """(B,) int64, position in the order of samples of the whole training. It names a sample whatever the split over
    ranks and micro-batches, so random numbers of a method are functions of it."""


@dataclass(frozen=True)
class Loss:
    """The loss of a micro-batch, image by image."""

    total: Tensor
    """(B,), which is minimised."""
    terms: dict[str, Tensor] = field(default_factory=dict)
    """Further values to record, (B,) each, detached."""


@dataclass(frozen=True)
class Phase:
    """A part of a step that updates one module, from the same samples as the step's other phases."""

    trainee: str
    """Name of the module that is updated; the others are frozen meanwhile."""
    loss: Callable[[Modules, Sample], Loss]
    name: str = ""
    """Prefix of its recorded values; empty for the phase that trains the shipped network."""


class Method(Protocol):
    """The modules and the phases of a way of training."""

    @property
    def trainees(self) -> Mapping[str, Trainee]:
        """The trained modules by name; names become file names of checkpoints."""
        ...

    @property
    def shipped(self) -> str:
        """Name of the trained network whose moving average is validated and shipped."""
        ...

    def phases(self, step: int) -> Sequence[Phase]:
        """Phases of step number `step` (from 0), in order."""
        ...


def shipped_network(method: Method) -> SuperResolver:
    """The network whose moving average is validated and shipped."""
    from sr_model.networks.super_resolver import SuperResolver  # imports torch

    module = method.trainees[method.shipped].module
    assert isinstance(module, SuperResolver)
    return module
