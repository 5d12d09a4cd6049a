"""Adversarial training (SRGAN): a discriminator learns to tell enlarged from true images, and the network to please it.

Ledig et al. 2017 (arXiv:1609.04802). The terms of `train.loss` keep the network close to the truth. The network takes
its step first; then the discriminator learns from the same images, so the network enlarges each patch once.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from pipeline.networks import features
from pipeline.settings import UserError
from pipeline.training.methods.gan_checks import DISCRIMINATOR, gan_settings
from pipeline.training.methods.method import AVERAGE, Loss, Modules, Phase, Sample, Setup, Trainee
from pipeline.training.methods.supervised import NETWORK, initial_network, make_optimizers
from pipeline.training.precision import autocast
from pipeline.training.schedule import learning_rate
from sr_model import terms
from sr_model.adversarial import compare, generator_loss, gradient_penalty
from sr_model.artefacts import artefact_loss
from sr_model.discriminators import DISCRIMINATORS
from sr_model.discriminators.spectral import update_norms
from sr_model.terms import Term


class AdversarialTraining:
    """A network and a discriminator, with a phase for each; in the first steps, the discriminator trains alone."""

    shipped = NETWORK

    def __init__(self, setup: Setup) -> None:
        settings = setup.config.train
        self._setup, self._settings = setup, gan_settings(setup.config)
        net = initial_network(setup.config, setup.device)
        self._discriminator = _build_discriminator(setup)
        self._has_statistics = _has_statistics(self._discriminator)
        own = settings.model_copy(update={"lr": self._settings.lr})
        alone = self._settings.warmup_steps
        adam = torch.optim.Adam(self._discriminator.parameters(), betas=self._settings.betas, fused=True)
        self.trainees: Mapping[str, Trainee] = {
            NETWORK: Trainee(
                net,
                make_optimizers(net, settings),
                lambda step: learning_rate(max(step - alone, 0), max(setup.steps - alone, 1), settings),
            ),
            DISCRIMINATOR: Trainee(
                self._discriminator,
                [adam],
                lambda step: learning_rate(step, setup.steps, own),
                compilable=False,  # torch.compile has no second derivative, which the penalties need
            ),
        }
        self._terms = features.load_terms(settings, setup.device)

    def phases(self, step: int) -> Sequence[Phase]:
        """The phase of the network, unless the discriminator trains alone, and that of the discriminator."""
        settings = self._settings
        penalised = (settings.r1 > 0 or settings.r2 > 0) and step % settings.penalty_every == 0
        made: deque[Tensor] = deque()
        teach = Phase(DISCRIMINATOR, partial(self._teach, made, itertools.count(), penalised), DISCRIMINATOR)
        if step < settings.warmup_steps:
            return [teach]
        active = [term for term in self._terms if term.active(step, self._setup.steps)]
        return [Phase(NETWORK, partial(self._please, active, made)), teach]

    def _please(self, active: Sequence[Term], made: deque[Tensor], modules: Modules, sample: Sample) -> Loss:
        """The network's loss of a micro-batch; what it makes is kept for the discriminator."""
        settings, judge = self._settings, modules[DISCRIMINATOR]
        sr = self._enlarge(modules[NETWORK], sample)
        made.append(sr.detach().clone())  # a CUDA graph writes its next output to the same memory
        total, values = terms.objective(active, sr, sample.hr, sample.position)
        with self._autocast():
            with torch.no_grad():
                true = judge(sample.hr)
            adversarial = generator_loss(settings.adversarial, true, judge(sr))
        total = total + settings.weight * adversarial
        values["adversarial"] = adversarial.detach()
        if settings.artefacts:
            with torch.no_grad():
                averaged = self._enlarge(modules[AVERAGE], sample)
            artefacts = artefact_loss(sr, averaged, sample.hr)
            total = total + settings.artefacts * artefacts
            values["artefacts"] = artefacts.detach()
        return Loss(total, values)

    def _teach(
        self, made: deque[Tensor], number: Iterator[int], penalised: bool, modules: Modules, sample: Sample
    ) -> Loss:
        """The discriminator's loss of a micro-batch."""
        settings, judge = self._settings, modules[DISCRIMINATOR]
        if next(number) == 0:  # once a step, so that it does not depend on the number of micro-batches
            update_norms(self._discriminator)
        if made:
            sr = made.popleft()
        else:  # before the network's first step, its average equals it, and no statistics change
            with torch.no_grad():
                sr = self._enlarge(modules[AVERAGE], sample)
        sr.requires_grad_(penalised and settings.r2 > 0)
        hr = sample.hr.requires_grad_(penalised and settings.r1 > 0)
        with self._autocast(enabled=not penalised):
            true, enlarged = (judge(hr), judge(sr)) if self._has_statistics else judge(torch.cat([hr, sr])).chunk(2)
        found = compare(settings.adversarial, true, enlarged)
        total = found.discriminator_loss()
        values = {
            "accuracy": found.accuracy(),
            "true_logit": true.detach().float().mean(1),
            "enlarged_logit": enlarged.detach().float().mean(1),
        }
        for name, weight, logits, images in (("r1", settings.r1, true, hr), ("r2", settings.r2, enlarged, sr)):
            if penalised and weight:
                penalty = gradient_penalty(logits, images)
                total = total + settings.penalty_every * weight * penalty
                values[name] = penalty.detach()
        return Loss(total, values)

    def _enlarge(self, network: nn.Module, sample: Sample) -> Tensor:
        """Enlarge the samples, to (B, 3, H, W) in the type of the ground truth."""
        with self._autocast():
            sr: Tensor = network(sample.lr)
        return sr.to(sample.hr.dtype)

    def _autocast(self, enabled: bool = True) -> torch.autocast:
        return autocast(self._setup.precision if enabled else "fp32", self._setup.device)


def _build_discriminator(setup: Setup) -> nn.Module:
    """Build the discriminator on the device, with initial weights that depend on the seed alone.

    Raises:
        UserError: if it has BatchNorm and there are several workers.
    """
    config, settings = setup.config, gan_settings(setup.config)
    kind = DISCRIMINATORS[settings.discriminator]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        net = kind.build(settings.discriminator_settings(), config.data.crop)
    if setup.world_size > 1 and _has_statistics(net):
        raise UserError(
            f"train.gan.{settings.discriminator} has BatchNorm, whose statistics would be those of each of the "
            f"{setup.world_size} workers: expected one worker or train.gan.{settings.discriminator}.batch_norm=false"
        )
    layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
    return net.to(setup.device, torch.get_default_dtype(), memory_format=layout)  # type: ignore[call-overload,no-any-return]


def _has_statistics(net: nn.Module) -> bool:
    """Tell whether a module's output for a sample depends on the others of its micro-batch."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules())
