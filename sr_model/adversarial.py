"""Adversarial losses: how the logits of true and enlarged images are compared.

All losses are computed image by image, from the logits of that image and of its own counterpart. So they do not depend
on how a batch is divided into micro-batches and between workers. Where Jolicoeur-Martineau 2018 takes a mean over the
batch, this module takes it over the parts of the counterpart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Form = Literal["relativistic", "pairing", "vanilla"]


@dataclass(frozen=True)
class Comparison:
    """Evidence, (B, N) each: positive where an image looks true, negative where it looks enlarged."""

    true: Tensor
    enlarged: Tensor

    def discriminator_loss(self) -> Tensor:
        """Loss of the discriminator for each image, (B,): a cross entropy, which is ln 2 if it cannot tell."""
        return (F.softplus(-self.true) + F.softplus(self.enlarged)).mean(1) / 2

    def accuracy(self) -> Tensor:
        """Share of the parts of each image and its counterpart that are told apart, (B,); guessing gives 0.5."""
        return ((self.true > 0).float() + (self.enlarged < 0).float()).mean(1) / 2


def compare(form: Form, true: Tensor, enlarged: Tensor) -> Comparison:
    """Turn logits into evidence.

    Args:
        form: "vanilla" (Goodfellow et al. 2014, arXiv:1406.2661) compares logits with 0, "relativistic"
            (Jolicoeur-Martineau 2018, arXiv:1807.00734) with the mean logit of the counterpart, and "pairing" (Huang et
            al. 2025, arXiv:2501.05441) with the logit of the same part of the counterpart.
        true: logits of true images, (B, N).
        enlarged: logits of their enlarged versions, (B, N).
    """
    true, enlarged = true.float(), enlarged.float()
    if form == "vanilla":
        return Comparison(true, enlarged)
    if form == "pairing":
        return Comparison(true - enlarged, enlarged - true)
    return Comparison(true - enlarged.mean(1, keepdim=True), enlarged - true.mean(1, keepdim=True))


def generator_loss(form: Form, true: Tensor, enlarged: Tensor) -> Tensor:
    """Loss of the network that enlarges, for each image, (B,).

    It is the discriminator's loss with true and enlarged images exchanged. In the vanilla form the true images have no
    part in it: it is -log of the probability that an enlarged image is true, which does not saturate.

    Args:
        form: see `compare`.
        true: logits of true images, (B, N); the gradient does not flow into them.
        enlarged: logits of their enlarged versions, (B, N).
    """
    found = compare(form, true.detach(), enlarged)
    if form == "vanilla":
        return F.softplus(-found.enlarged).mean(1)
    return (F.softplus(found.true) + F.softplus(-found.enlarged)).mean(1) / 2


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Half the squared norm of the gradient of the logits of each image, as a mean over its parts, (B,).

    At true images this is R1, at enlarged ones R2 (Mescheder et al. 2018, arXiv:1801.04406, equation 9). The gradient
    is that of the sum of logits, and its square is divided by their number, so that the value hardly depends on how
    many parts an image has. It can be differentiated.

    Args:
        logits: (B, N), computed from `images`.
        images: (B, 3, H, W), which require gradients.
    """
    (gradient,) = torch.autograd.grad(logits.float().sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(1) / (2 * logits.shape[1])
