"""Building networks from settings, and reading and writing their weights as .safetensors files."""

from __future__ import annotations

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline import storage
from pipeline.settings import UserError, architecture
from pipeline.storage import one_line
from sr_model.networks import NetworkSettings, SuperResolver, from_weights


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
        weights: dict[str, Tensor] = safetensors.torch.load(content)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"cannot read the weights {url}: {error}, expected a .safetensors file") from None
    return weights


def to_safetensors(net: nn.Module, scale: int | None = None) -> bytes:
    """Serialise the state dict of a network; with a scale, as a file that stands alone."""
    metadata = None if scale is None else {"format": "pt", "scale": str(scale)}
    content: bytes = safetensors.torch.save(contiguous(net), metadata)
    return content


def contiguous(net: nn.Module) -> dict[str, Tensor]:
    """The state dict on the CPU in contiguous layout, as safetensors requires."""
    return {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
