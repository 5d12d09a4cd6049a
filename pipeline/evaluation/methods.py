"""The ways of enlarging images that an evaluation compares: bicubic interpolation and networks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from pipeline import storage
from pipeline.networks.loading import load_upscaler
from pipeline.networks.sources import BICUBIC, ModelKind, ModelSource
from pipeline.networks.upscalers import Consistent, NetworkUpscaler, SelfEnsemble
from pipeline.networks.weights import build_network, load_weights
from pipeline.settings import Config, UserError
from sr_model.degrade import upscale_bicubic
from sr_model.networks import NetworkSettings
from sr_model.networks.sampling import Sampling


@dataclass(frozen=True)
class ConfiguredNetwork:
    """A network that a configuration describes."""

    model: NetworkSettings
    seed: int
    weights: str = ""
    """Path or URL of trained weights; "" for the initial weights, which the seed determines."""


@dataclass(frozen=True)
class Method:
    """A way of enlarging images."""

    name: str
    """Its name among the scores."""
    scale: int
    source: ConfiguredNetwork | ModelSource
    content: str
    """Identifies what it computes, wherever its weights lie. So a worker notices other weights at the same place."""
    self_ensemble: bool = False
    """True if the image is enlarged in eight orientations, and the mean is taken."""
    sampling: Sampling | None = None
    """How a network that draws images in steps does so; None for its own number of steps."""
    consistent: bool = False
    """True if images are corrected so that, reduced, they are nearly the LR image."""

    def identity(self) -> list[object]:
        """Return what tells it apart from other methods; it does not depend on where weights lie."""
        drawn = [[self.sampling.steps, self.sampling.seed, self.sampling.solver]] if self.sampling else []
        return [self.name, self.content, self.self_ensemble, *drawn, *(["consistent"] if self.consistent else [])]


def bicubic(scale: int) -> Method:
    """Return the method of MATLAB's bicubic interpolation."""
    return Method(BICUBIC, scale, ModelSource(BICUBIC, ModelKind.BICUBIC, ""), BICUBIC)


def configured(name: str, config: Config, weights: str = "") -> Method:
    """Return the method of the network that a configuration describes.

    Args:
        name: the method's name.
        config: describes the network.
        weights: path or URL of trained weights; "" for the initial weights.

    Raises:
        UserError: if there are no such weights.
    """
    network = ConfiguredNetwork(config.model, config.train.seed, weights)
    content = sha256(weights) if weights else storage.fingerprint([config.model.model_dump(mode="json"), network.seed])
    return Method(name, config.scale, network, content)


def sha256(weights: str) -> str:
    """Return the checksum of a file of weights.

    Raises:
        UserError: if there is no such file.
    """
    content = storage.read(weights)
    if content is None:
        raise UserError(f"there are no weights at {weights}, expected a .safetensors file")
    return hashlib.sha256(content).hexdigest()


@lru_cache(maxsize=1)
def load_all(methods: tuple[Method, ...], device: torch.device) -> dict[str, Callable[[Tensor], Tensor]]:
    """Load the networks of all methods of an evaluation. A worker process keeps them for its next images.

    Args:
        methods: the methods.
        device: the device of the images, which is `best_device()` or the CPU.

    Returns:
        Functions by the names of the methods. Each enlarges an image (C, h, w) uint8 on the device, networks in fp32.

    Raises:
        UserError: if weights cannot be read or belong to another network.
    """
    return {method.name: _load(method, device) for method in methods}


def _load(method: Method, device: torch.device) -> Callable[[Tensor], Tensor]:
    source = method.source
    if isinstance(source, ModelSource):
        if source.kind is ModelKind.BICUBIC:
            return partial(upscale_bicubic, scale=method.scale)  # rounds halves up, as in the published scores
        # None means the GPU, too, but lets ONNX models compute on the CPU if onnxruntime cannot use the GPU.
        where = None if device.type == "cuda" else device.type
        upscaler = load_upscaler(source, method.scale, where, precision="fp32", sampling=method.sampling)
    else:
        net = build_network(method.scale, source.model, source.seed).eval()
        if source.weights:
            load_weights(net, source.weights)
        upscaler = NetworkUpscaler(net.to(device), precision="fp32")
    if method.self_ensemble:
        upscaler = SelfEnsemble(upscaler)
    return (Consistent(upscaler) if method.consistent else upscaler).enlarge
