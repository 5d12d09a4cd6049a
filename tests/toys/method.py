"""A method of training in one file: a critic learns to tell the network's images from true ones, and the network to
please it."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.networks import features
from pipeline.settings.methods import MethodKind
from pipeline.training.methods import Loss, Modules, Phase, Sample, Setup, Trainee
from pipeline.training.methods.supervised import initial_network, make_optimizers
from sr_model import terms
from sr_model.terms import Term


class WithCritic:
    shipped = "model"

    def __init__(self, setup: Setup) -> None:
        settings = setup.config.train
        net = initial_network(setup.config, setup.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            critic = nn.Sequential(
                nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.LeakyReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
            )
            critic.append(nn.Linear(4, 1))
        self.trainees: Mapping[str, Trainee] = {
            "model": Trainee(net, make_optimizers(net, settings)),
            "critic": Trainee(critic, [torch.optim.Adam(critic.parameters())]),
        }
        self._terms = features.load_terms(settings, setup.device)
        self._steps = setup.steps

    def phases(self, step: int) -> Sequence[Phase]:
        active = [term for term in self._terms if term.active(step, self._steps)]
        return [Phase("critic", self._teach_critic, "critic"), Phase("model", partial(self._please_critic, active))]

    def _teach_critic(self, modules: Modules, sample: Sample) -> Loss:
        with torch.no_grad():
            sr = modules["model"](sample.lr)
        critic = modules["critic"]
        return Loss((F.softplus(-critic(sample.hr)) + F.softplus(critic(sr))).flatten())

    def _please_critic(self, active: Sequence[Term], modules: Modules, sample: Sample) -> Loss:
        sr = modules["model"](sample.lr)
        total, values = terms.objective(active, sr, sample.hr, sample.position)
        pleasing = F.softplus(-modules["critic"](sr)).flatten()
        return Loss(total + 0.01 * pleasing, {**values, "pleasing": pleasing.detach()})


KIND = MethodKind("with_critic", WithCritic)
