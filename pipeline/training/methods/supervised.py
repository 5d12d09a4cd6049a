"""Supervised training: one network minimises the weighted terms of `train.loss`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch

from pipeline.networks import features
from pipeline.networks.weights import build_network, load_weights
from pipeline.settings import Config, Train
from pipeline.training.methods.method import RATE_FACTOR, Loss, Modules, Phase, Sample, Setup, Trainee
from pipeline.training.precision import autocast
from sr_model import terms
from sr_model.muon import Muon
from sr_model.networks.super_resolver import SuperResolver
from sr_model.terms import Term

NETWORK = "model"
"""Name of the trained network, and of its file in a checkpoint."""


class Supervised:
    """One network, one phase. Terms of the objective may join after a share of the steps."""

    shipped = NETWORK

    def __init__(self, setup: Setup) -> None:
        settings = setup.config.train
        net = initial_network(setup.config, setup.device)
        self.trainees: Mapping[str, Trainee] = {NETWORK: Trainee(net, make_optimizers(net, settings))}
        self._terms = features.load_terms(settings, setup.device)
        self._setup = setup

    def phases(self, step: int) -> Sequence[Phase]:
        """The one phase, with the terms that take part in this step."""
        active = [term for term in self._terms if term.active(step, self._setup.steps)]
        return [Phase(NETWORK, partial(self._loss, active))]

    def _loss(self, active: Sequence[Term], modules: Modules, sample: Sample) -> Loss:
        with autocast(self._setup.precision, self._setup.device):
            sr = modules[NETWORK](sample.lr)
        return Loss(*terms.objective(active, sr.to(sample.hr.dtype), sample.hr, sample.position))


def initial_network(config: Config, device: torch.device) -> SuperResolver:
    """Build the network of a configuration on a device, with its initial weights or those of `train.init_from`."""
    settings = config.train
    net = build_network(config.scale, config.model, settings.seed)
    if settings.init_from:
        load_weights(net.started(), settings.init_from)
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    net.to(device, memory_format=layout)  # type: ignore[call-overload]
    net.recompute = settings.recompute
    return net


def make_optimizers(net: SuperResolver, settings: Train) -> list[torch.optim.Optimizer]:
    """Adam for all weights, or Muon for those that the network names and Adam for the rest.

    Weights for which the network names a factor of the learning rate are a group of Adam's own, with `RATE_FACTOR`.
    """
    hidden = net.muon_weights() if settings.optimizer == "muon" else []
    chosen, factors = set(hidden), net.rate_factors()
    groups: dict[float, list[torch.nn.Parameter]] = {}
    for parameter in net.parameters():
        if parameter not in chosen and parameter.requires_grad:
            groups.setdefault(factors.get(parameter, 1.0), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda group: group[0] != 1)  # the first group has the full learning rate
    rest = [{"params": group, **({RATE_FACTOR: factor} if factor != 1 else {})} for factor, group in ordered]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(rest, betas=settings.betas, fused=True)]
    if hidden:
        optimizers.append(Muon(hidden))
    return optimizers
