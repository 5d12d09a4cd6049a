"""Models between two others: interpolation of weights (Wang et al. 2019, arXiv:1811.10515).

Between a network that was trained for PSNR and one that was trained further with a discriminator, each share of the
second gives another balance of fidelity and texture, without a training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline import storage
from pipeline.networks.sources import ModelKind, ModelSource
from pipeline.networks.weights import contiguous, read_weights, serialise
from pipeline.settings import UserError
from sr_model.networks import recognise

_COUNTER = "num_batches_tracked"
"""Name of BatchNorm's counter, which evaluation does not use."""


@dataclass(frozen=True)
class Mixture:
    """A model between two others."""

    alpha: float
    """Share of the second model."""
    file: str
    """Path or URL of its weights."""

    @property
    def label(self) -> str:
        """Such as "alpha 0.2"."""
        return f"alpha {self.alpha:g}"


@dataclass(frozen=True)
class Interpolation:
    """The models between two others, by ascending alpha."""

    mixtures: list[Mixture]
    remark: str
    """A sentence about what does not follow the weights exactly; "" if there is nothing to say."""


def interpolate(first: ModelSource, second: ModelSource, alphas: Sequence[float], out: str) -> Interpolation:
    """Write the models with the weights (1 - alpha) * first + alpha * second, float32.

    Tensors of integers, which only count, are those of the first model. The metadata of a file names alpha and the
    SHA-256 of both models.

    Args:
        first: a model with weights of this project.
        second: another one of the same network and scale.
        alphas: shares of the second model, from 0 to 1.
        out: path or URL of a .safetensors file for one alpha, otherwise of a folder, which gets a file for each.

    Raises:
        UserError: if a model cannot be read, both are of different networks, or a file would replace one of both.
    """
    contents = [_load(first), _load(second)]
    (title, scale, a), (other_title, other_scale, b) = contents
    if (title, scale) != (other_title, other_scale):
        raise UserError(
            f"{first.text} is a {title} x{scale} and {second.text} a {other_title} x{other_scale}: expected two models "
            "of one network"
        )
    if difference := _difference(a, b):
        raise UserError(
            f"{first.text} and {second.text} are both {title}, but {difference}: expected two models of one size"
        )
    about = {f"model_{name}_sha256": _sha256(source) for name, source in (("a", first), ("b", second))}
    mixtures = [Mixture(alpha, _place(out, alpha)) for alpha in sorted(set(alphas))]
    inputs = {storage.real_name(first.weights), storage.real_name(second.weights)}
    for mixture in mixtures:
        if storage.real_name(mixture.file) in inputs:
            raise UserError(f"{mixture.file} is one of both models, expected another name for the result")
    for mixture in mixtures:
        content = serialise(mix(a, b, mixture.alpha), scale, {**about, "alpha": f"{mixture.alpha:g}"})
        storage.write(mixture.file, content)
    return Interpolation(mixtures, _remark(a))


def mix(first: Mapping[str, Tensor], second: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Return (1 - alpha) * first + alpha * second for tensors of one shape, float32; integers are those of `first`."""
    return {
        name: (value.double().lerp(second[name].double(), alpha)).float() if value.is_floating_point() else value
        for name, value in first.items()
    }


def _load(source: ModelSource) -> tuple[str, int, dict[str, Tensor]]:
    """Return the name, the scale and the weights of a model's network."""
    if source.kind is not ModelKind.SAFETENSORS:
        raise UserError(f"{source.text} has no weights of this project, expected a model that was trained with it")
    try:
        architecture, net = recognise(read_weights(source.weights))
    except ValueError as error:
        raise UserError(f"{source.weights} cannot be used: {error}") from None
    return architecture.title, net.scale, contiguous(net)


def _difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> str:
    """Return the first difference between the shapes of two networks of one kind; "" if there is none."""
    for name in dict.fromkeys([*a, *b]):
        if name not in a or name not in b:
            return f"only one has {name}"
        if a[name].shape != b[name].shape:
            shapes = [" x ".join(map(str, some[name].shape)) for some in (a, b)]
            return f"{name} is {shapes[0]} and {shapes[1]}"
        if not (a[name].is_floating_point() or name.endswith(_COUNTER) or torch.equal(a[name], b[name])):
            return f"their {name} differs"
    return ""


def _remark(weights: Mapping[str, Tensor]) -> str:
    if not any(name.endswith("running_var") for name in weights):
        return ""
    return (
        "BatchNorm's statistics are interpolated like the weights, although those of the mixed network would differ, "
        "and its counters of batches are those of the first model: networks without BatchNorm mix better"
    )


def _sha256(source: ModelSource) -> str:
    return hashlib.sha256(storage.read(source.weights) or b"").hexdigest()


def _place(out: str, alpha: float) -> str:
    return out if out.endswith(".safetensors") else f"{out.rstrip('/')}/alpha-{alpha:g}.safetensors"
