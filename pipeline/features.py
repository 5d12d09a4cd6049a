"""Weights of the networks that perceptual losses look through: found or downloaded by the driver, loaded by workers."""

from __future__ import annotations

import hashlib
import io
import pickle
from functools import lru_cache

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from pipeline import download, storage
from pipeline.config import Config, Perceptual, UserError, fingerprint
from sr_model.perceptual import PerceptualLoss, trunk

PUBLISHED = {
    "vgg16": ("https://download.pytorch.org/models/vgg16-397923af.pth", "397923af"),
    "vgg19": ("https://download.pytorch.org/models/vgg19-dcbb9e9d.pth", "dcbb9e9d"),
}
"""torchvision's files, and the first digits of their SHA-256, which its file names hold."""


def identity(settings: Perceptual) -> str:
    """What the weights are, by their content.

    Raises:
        UserError: if a file of one's own isn't there.
    """
    if settings.weights == "torchvision":
        return PUBLISHED[settings.network][1]
    return hashlib.sha256(_read(settings.weights)).hexdigest()


def prepare(config: Config) -> Config:
    """Put what the configured layers need of the weights into the home of outputs, and name it in the configuration.

    Called once by the driver; workers download nothing.

    Raises:
        UserError: if the weights cannot be had, or don't hold the layers.
    """
    settings = config.train.perceptual
    if "perceptual" not in config.train.loss:
        return config
    name = fingerprint([identity(settings), settings.network, sorted(settings.layers)])
    url = f"{config.outputs}/features/{settings.network}-{name}.safetensors"
    if not storage.exists(url):
        whole = _load(_published(config) if settings.weights == "torchvision" else settings.weights)
        part = {
            key: value.float().contiguous() for key, value in trunk(whole, settings.network, settings.layers).items()
        }
        _build(settings, part)
        storage.write(url, safetensors.torch.save(part))
    chosen = settings.model_copy(update={"weights": url})
    return config.model_copy(update={"train": config.train.model_copy(update={"perceptual": chosen})})


def load(settings: Perceptual, device: torch.device) -> PerceptualLoss:
    """The loss with its weights, on a device.

    Raises:
        UserError: if the weights cannot be read or don't hold the layers.
    """
    loss = _build(settings, _cached(settings.weights)).to(device, torch.get_default_dtype())
    return loss.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _build(settings: Perceptual, weights: dict[str, Tensor]) -> PerceptualLoss:
    try:
        return PerceptualLoss(settings.layers, weights, settings.network, settings.distance, settings.scale)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"train.perceptual.weights is {settings.weights}: {reason}") from None


@lru_cache(maxsize=2)
def _cached(url: str) -> dict[str, Tensor]:
    return _load(url)


def _published(config: Config) -> str:
    url, digits = PUBLISHED[config.train.perceptual.network]
    try:
        file = download.fetch(url, config.downloads)
    except UserError as error:
        raise UserError(
            f"{error}; a perceptual loss needs the weights of {config.train.perceptual.network}: expected "
            "train.perceptual.weights to name a .safetensors or .pth file with torchvision's names, or a network to "
            "download them from"
        ) from None
    found = storage.read_json(f"{file}.json")["sha256"]
    if not found.startswith(digits):
        raise UserError(f"{url} has the SHA-256 {found}, expected one that begins with {digits}")
    return file


def _load(url: str) -> dict[str, Tensor]:
    content = _read(url)
    try:
        if url.endswith(".safetensors"):
            weights: dict[str, Tensor] = safetensors.torch.load(content)
            return weights
        weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, EOFError, AttributeError):
        raise UserError(
            f"train.perceptual.weights is {url}, expected a .safetensors file, or a .pth file that holds tensors alone"
        ) from None


def _read(url: str) -> bytes:
    content = storage.read(url)
    if content is None:
        raise UserError(f"train.perceptual.weights is {url}, expected an existing .safetensors or .pth file")
    return content
