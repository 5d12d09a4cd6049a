"""Repeated refinement: a network learns to go in steps from noise, or from a frozen network's output, to an image.

The process of the network (`sr_model.refinement`) says what it learns. The terms of `train.loss` compare its output
with that, in the units of the process: mse for a rectified flow, l1 for SR3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.networks import features
from pipeline.training.methods.method import Loss, Modules, Phase, Sample, Setup, Trainee
from pipeline.training.methods.supervised import NETWORK, initial_network, make_optimizers
from pipeline.training.precision import autocast
from sr_model import terms
from sr_model.networks.refiner import Refiner
from sr_model.noise import hashed, noise_of_samples, uniform
from sr_model.refinement import Example
from sr_model.terms import Term

_STRATUM, _PLACE, _NOISE = range(3)
"""Numbers that are hashed with the seed, so that each use draws other random numbers."""


class Refinement:
    """A network that draws images in steps, with one phase; what it starts from stays frozen."""

    shipped = NETWORK

    def __init__(self, setup: Setup) -> None:
        settings = setup.config.train
        net = initial_network(setup.config, setup.device)
        assert isinstance(net, Refiner)
        self._net, self._setup = net, setup
        self.trainees: Mapping[str, Trainee] = {NETWORK: Trainee(net, make_optimizers(net, settings))}
        self._terms = features.load_terms(settings, setup.device)

    def phases(self, step: int) -> Sequence[Phase]:
        """The one phase, with the terms that take part in this step."""
        active = [term for term in self._terms if term.active(step, self._setup.steps)]
        return [Phase(NETWORK, partial(self._loss, active, step))]

    def _loss(self, active: Sequence[Term], step: int, modules: Modules, sample: Sample) -> Loss:
        with autocast(self._setup.precision, self._setup.device):
            # The frozen network computes its part here, because storing it would fix the crops and their orientations.
            condition, anchor = self._net.condition(sample.lr)
        example = self._example(step, sample, anchor)
        with autocast(self._setup.precision, self._setup.device):
            told = modules[NETWORK](condition, example.state, example.level)
        return Loss(*terms.objective(active, told.to(example.target.dtype), example.target, sample.position))

    @torch.no_grad()
    def _example(self, step: int, sample: Sample, anchor: Tensor) -> Example:
        """Draw a point of the way to the true image for each sample; it depends on seed, step and sample alone."""
        seed, batch = self._setup.config.train.seed, self._setup.config.train.global_batch
        position, process = sample.position, self._net.process
        truth = F.pixel_unshuffle(sample.hr, self._net.scale)
        truth = (truth - anchor.to(truth.dtype)) / process.unit
        noise = noise_of_samples(_folded(seed, _NOISE), position, truth.shape).to(truth.dtype)
        # The samples of a step lie in equal parts of the way, one in each. Which one it is changes from step to step,
        # because neighbouring positions come from the same lanes.
        first = hashed(seed, _STRATUM, step, device=position.device) % batch
        stratum = (position + first) % batch
        done = (stratum + uniform(hashed(seed, _PLACE, position, device=position.device))) / batch
        return process.example(done.to(truth.dtype), truth, noise)


def _folded(seed: int, purpose: int) -> int:
    return int(hashed(seed, purpose))
