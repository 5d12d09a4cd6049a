"""The processes of repeated refinement: how noise becomes an image in steps, and what a network learns for it.

Both processes are differential equations of a state x, which a network f solves step by step:

    dx/dtau = slope * x + f(input_scale * x, level)

The state belongs to an anchor, an image that is known from the start: image = anchor + unit * x. `Flow` goes from an
anchor that a regression network has made to one of the images that it is the mean of. `Denoising` goes from pure noise,
with a grey anchor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Nodes(NamedTuple):
    """Points of the way from noise to image; each field has the same shape."""

    tau: Tensor
    """The variable of the equation."""
    level: Tensor
    """The number in [0, 1] that tells the network how far it is."""
    input_scale: Tensor
    """Factor of the state at the network's input, where it has about unit variance."""
    slope: Tensor
    """The part of the derivative that needs no network: it would be right if everything were Gaussian."""


class Example(NamedTuple):
    """A point of the way, and what the network should return there."""

    state: Tensor
    """(B, N, h, w), with the input scale."""
    level: Tensor
    """(B,)"""
    target: Tensor
    """(B, N, h, w)"""


class Process(ABC):
    """A way from noise to an image."""

    @property
    @abstractmethod
    def unit(self) -> float:
        """Size of the state in the units of an image in [0, 1]."""

    @abstractmethod
    def nodes(self, done: Tensor) -> Nodes:
        """Return the points at which a share of the way, in [0, 1], is done; float64 tensors of any shape."""

    @abstractmethod
    def example(self, done: Tensor, truth: Tensor, noise: Tensor) -> Example:
        """Return an example for the training.

        Args:
            done: (B,) share of the way, uniform in (0, 1).
            truth: (B, N, h, w), the state that belongs to the true image.
            noise: (B, N, h, w), standard normal.
        """

    @property
    @abstractmethod
    def start(self) -> float:
        """Standard deviation of the state at the start, which is noise alone."""

    def steps(self, count: int) -> Nodes:
        """Return the ends of so many steps, (count + 1,) float64."""
        return self.nodes(torch.arange(count + 1, dtype=torch.float64) / count)


@dataclass(frozen=True)
class Flow(Process):
    """Rectified flow from the output of a regression network plus a little noise to the truth.

    The form is that of PMRF (Ohayon, Michaeli and Elad, ICLR 2025, arXiv:2410.00418), section 4: with the state x_1 of
    the truth and noise z of deviation s, x_t = t x_1 + (1 - t) z, and the velocity x_1 - z is learnt. The state is the
    residual to the regression network's output. `slope` is the best velocity for a residual of unit variance without
    structure, so that one step of an untrained network returns the output of the regression network.
    """

    noise: float
    """Standard deviation of the noise that is added to the regression network's output, in [0, 1] units."""
    unit: float = 0.05
    """About the root of the mean squared error of good x4 networks on photographs."""

    @property
    def start(self) -> float:
        """The noise, in the units of the state."""
        return self.noise / self.unit

    def nodes(self, done: Tensor) -> Nodes:
        """Time runs from 0 to 1; see `Process.nodes`."""
        rest, variance = 1 - done, done**2 + (1 - done) ** 2 * self.start**2
        return Nodes(done, done, variance.rsqrt(), (done - rest * self.start**2) / variance)

    def example(self, done: Tensor, truth: Tensor, noise: Tensor) -> Example:
        """See `Process.example`."""
        at = self.nodes(done)
        t, scale, slope = (value.view(-1, 1, 1, 1) for value in (at.tau, at.input_scale, at.slope))
        first = noise * self.start
        state = torch.lerp(first, truth, t)
        return Example(state * scale, at.level, truth - first - slope * state)


@dataclass(frozen=True)
class Denoising(Process):
    """SR3 (Saharia et al. 2021, arXiv:2104.07636): an image is drawn from pure noise, on the condition of the LR image.

    The noise level is continuous, and its schedule is SR3's: 2000 steps of a variance that grows linearly from 1e-6 to
    1e-2. The network predicts the noise. It is told the place in the schedule, because the level itself hardly changes
    over the first fifth of it. Unlike in the paper, the steps are deterministic, as those of DDIM (Song,
    Meng and Ermon 2021, arXiv:2010.02502), whose equation is Euler's method in tau, the ratio of noise to image.
    """

    unit: float = 0.5

    @property
    def start(self) -> float:
        """The largest ratio of noise to image."""
        return float(self.nodes(torch.zeros((), dtype=torch.float64)).tau)

    def nodes(self, done: Tensor) -> Nodes:
        """The ratio of noise to image falls to 0; see `Process.nodes`."""
        rest = 1 - done
        # The sum of the variances of the steps, by the formula of its integral
        kept = torch.exp(-(2e-3 * rest + (10 - 1e-3) * rest**2))
        return Nodes((1 / kept - 1).sqrt(), done, kept.sqrt(), torch.zeros_like(done))

    def example(self, done: Tensor, truth: Tensor, noise: Tensor) -> Example:
        """See `Process.example`."""
        at = self.nodes(done)
        image, ratio = (value.view(-1, 1, 1, 1) for value in (at.input_scale, at.tau))
        return Example(image * (truth + ratio * noise), at.level, noise)
