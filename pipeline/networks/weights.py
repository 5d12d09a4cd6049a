"""Building networks from settings, and reading and writing their weights as .safetensors files."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline import storage
from pipeline.settings import UserError, architecture
from pipeline.storage import one_line
from sr_model.networks import NetworkSettings, from_weights
from sr_model.networks.super_resolver import SuperResolver


def build_network(scale: int, model: NetworkSettings, seed: int) -> SuperResolver:
    """Build a network with its initial weights, which depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return architecture(model).build(scale, model)


def count_parameters(scale: int, model: NetworkSettings) -> int:
    """Count the trainable parameters of a network without allocating them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in architecture(model).build(scale, model).parameters())


def load_network(url: str) -> SuperResolver:
    """Recognise and load the network of a .safetensors file, in eval mode, float32, on the CPU.

    Raises:
        UserError: if the file cannot be read, or no network has such weights.
    """
    try:
        return from_weights(read_weights(url))
    except ValueError as error:
        raise UserError(f"{url} cannot be used: {error}") from None


def load_weights(net: nn.Module, url: str) -> None:
    """Load a .safetensors file into a network.

    Raises:
        UserError: if the file cannot be read or belongs to another network.
    """
    weights = read_weights(url)
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"the weights {url} belong to another network than scale and model describe: {one_line(error, 200)}"
        ) from None


def read_weights(url: str) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file at a path or fsspec URL.

    Raises:
        UserError: if the file cannot be read.
    """
    try:
        content = storage.read(url)
        if content is None:
            raise FileNotFoundError("there is no such file")
        return parse_weights(content)
    except (OSError, ValueError) as error:
        reason = one_line(error)
        raise UserError(f"cannot read the weights {url}: {reason}; expected a .safetensors file") from None


def parse_weights(content: bytes) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file. They take no more memory than the file.

    Raises:
        ValueError: if it is damaged, or has a type of numbers that PyTorch lacks.
    """
    try:
        weights: dict[str, Tensor] = safetensors.torch.load(content)
    except KeyError as error:
        raise ValueError(f"PyTorch has no numbers of the type {error}") from None
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise ValueError(one_line(error)) from None
    return weights


def read_about(url: str) -> dict[str, str] | None:
    """Read the metadata of a .safetensors file at a path or fsspec URL; None if there is no such file.

    Raises:
        UserError: if the file is damaged.
    """
    content = storage.read(url)
    if content is None:
        return None
    try:
        parse_weights(content)
    except ValueError as error:
        raise UserError(f"cannot read the weights {url}: {error}; expected a .safetensors file") from None
    (length,) = struct.unpack_from("<Q", content)
    about: dict[str, str] = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return about


def to_safetensors(net: nn.Module, scale: int | None = None, about: Mapping[str, str] | None = None) -> bytes:
    """Serialise the state dict of a network; with a scale, as a file that stands alone and may have more metadata."""
    return serialise(contiguous(net), scale, about)


def serialise(weights: Mapping[str, Tensor], scale: int | None = None, about: Mapping[str, str] | None = None) -> bytes:
    """Serialise tensors as a .safetensors file. The same arguments give the same bytes, because names hash them.

    Args:
        weights: contiguous tensors on the CPU.
        scale: the network's scale, which makes the file stand alone.
        about: further metadata of a file with a scale.
    """
    content: bytes = safetensors.torch.save(dict(weights))
    if scale is None:
        return content
    # safetensors writes metadata in a random order, so it is added here. The header is JSON behind its length, which
    # is a multiple of 8 (https://github.com/huggingface/safetensors#format).
    (length,) = struct.unpack_from("<Q", content)
    metadata = {"format": "pt", "scale": str(scale), **(about or {})}
    header = {"__metadata__": metadata, **json.loads(content[8 : 8 + length])}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def contiguous(net: nn.Module) -> dict[str, Tensor]:
    """The state dict on the CPU in contiguous layout, as safetensors requires."""
    return {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
