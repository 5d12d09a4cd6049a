"""Weights of the networks that compare images: found or downloaded by the driver, loaded by workers."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable
from functools import lru_cache

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pipeline import storage
from pipeline.settings import Config, Perceptual, UserError
from pipeline.storage import download, fingerprint, one_line
from sr_model.perceptual import PerceptualLoss, SqueezeNetDistance, trunk

Weights = dict[str, Tensor]

PUBLISHED = {
    "vgg16": ("https://download.pytorch.org/models/vgg16-397923af.pth", "397923af"),
    "vgg19": ("https://download.pytorch.org/models/vgg19-dcbb9e9d.pth", "dcbb9e9d"),
    "squeezenet1_1": ("https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth", "b8a52dc0"),
}
"""torchvision's files, and the first digits of their SHA-256, which its file names hold."""

_TRAINED, _JUDGE = "train.perceptual.weights", "evaluate.squeezenet"


def prepare(config: Config) -> Config:
    """Put what the configured layers need of the weights into the home of outputs, and name it in the configuration.

    Called once by the driver; workers download nothing.

    Raises:
        UserError: if the weights cannot be had, or don't hold the layers.
    """
    settings = config.train.perceptual
    if "perceptual" not in config.train.loss:
        return config
    name = f"{settings.network}-{fingerprint([identity(settings), settings.network, sorted(settings.layers)])}"

    def needed(whole: Weights) -> Weights:
        part = trunk(whole, settings.network, settings.layers)
        _build(settings, part)
        return part

    url = _kept(config, _TRAINED, settings.weights, settings.network, name, needed)
    chosen = settings.model_copy(update={"weights": url})
    return config.model_copy(update={"train": config.train.model_copy(update={"perceptual": chosen})})


def identity(settings: Perceptual) -> str:
    """What the weights of the perceptual loss are, by their content.

    Raises:
        UserError: if a file of one's own isn't there.
    """
    return _identity(_TRAINED, settings.weights, settings.network)


def load(settings: Perceptual, device: torch.device) -> PerceptualLoss:
    """The loss with its weights, on a device.

    Raises:
        UserError: if the weights cannot be read or don't hold the layers.
    """
    loss = _build(settings, _cached(_TRAINED, settings.weights)).to(device, torch.get_default_dtype())
    return loss.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def prepare_distance(config: Config) -> str:
    """Put the weights of the judging network into the home of outputs; their URL there, or "" if none is configured.

    Raises:
        UserError: if the weights cannot be had, or are of another network.
    """
    source = config.evaluate.squeezenet
    if source is None:
        return ""

    def needed(whole: Weights) -> Weights:
        try:
            SqueezeNetDistance(whole)
        except (ValueError, RuntimeError) as error:
            raise _unfit(_JUDGE, source, error) from None
        return {name: value for name, value in whole.items() if name.startswith("features.")}

    name = f"squeezenet1_1-{fingerprint(_identity(_JUDGE, source, 'squeezenet1_1'))}"
    return _kept(config, _JUDGE, source, "squeezenet1_1", name, needed)


@lru_cache(maxsize=1)
def load_distance(url: str) -> SqueezeNetDistance:
    """The judging network, from what `prepare_distance` returned."""
    return SqueezeNetDistance(_cached(_JUDGE, url))


def _kept(config: Config, key: str, source: str, network: str, name: str, needed: Callable[[Weights], Weights]) -> str:
    """URL of what is needed of a network's weights, in the home of outputs."""
    url = f"{config.outputs}/features/{name}.safetensors"
    if not storage.exists(url):
        whole = _load(key, _published(config, key, network) if source == "torchvision" else source)
        part = {name: value.float().contiguous() for name, value in needed(whole).items()}
        storage.write(url, safetensors.torch.save(part))
    return url


def _build(settings: Perceptual, weights: Weights) -> PerceptualLoss:
    try:
        return PerceptualLoss(settings.layers, weights, settings.network, settings.distance, settings.scale)
    except (ValueError, RuntimeError) as error:
        raise _unfit(_TRAINED, settings.weights, error) from None


def _unfit(key: str, source: str, error: Exception) -> UserError:
    return UserError(f"{key} is {source}: {one_line(error, 200)}")


@lru_cache(maxsize=8)
def _identity(key: str, source: str, network: str) -> str:
    return PUBLISHED[network][1] if source == "torchvision" else hashlib.sha256(_read(key, source)).hexdigest()


def _published(config: Config, key: str, network: str) -> str:
    url, digits = PUBLISHED[network]
    try:
        file = download.fetch(url, config.downloads)
    except OSError as error:
        raise UserError(
            f"{error}; the weights of {network} are needed: expected {key} to name a .safetensors or .pth file with "
            "torchvision's names, or a network to download them from"
        ) from None
    found = storage.read_json(f"{file}.json")["sha256"]
    if not found.startswith(digits):
        storage.remove(file)  # so that the next run tries again
        raise UserError(f"{url} has the SHA-256 {found}, expected one that begins with {digits}")
    return file


@lru_cache(maxsize=2)
def _cached(key: str, url: str) -> Weights:
    return _load(key, url)


def _load(key: str, url: str) -> Weights:
    content = _read(key, url)
    try:
        if url.endswith(".safetensors"):
            weights: Weights = safetensors.torch.load(content)
            return weights
        weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, EOFError, AttributeError):
        raise UserError(
            f"{key} is {url}, expected a .safetensors file, or a .pth file that holds tensors alone"
        ) from None


def _read(key: str, url: str) -> bytes:
    content = storage.read(url)
    if content is None:
        raise UserError(f"{key} is {url}, expected an existing .safetensors or .pth file")
    return content
