"""Networks and their weights."""

from __future__ import annotations

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline import storage
from pipeline.settings import Model, UserError
from pipeline.storage import one_line
from sr_model.srresnet import SRResNet


def build_network(scale: int, model: Model, seed: int) -> SRResNet:
    """The network as it is before training: a function of the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SRResNet(scale, model.channels, model.blocks, model.batch_norm, model.init)


def load_weights(net: nn.Module, url: str) -> None:
    """Load a .safetensors file from a path or fsspec URL.

    Raises:
        UserError: if it cannot be read or belongs to another network.
    """
    weights = read_weights(url)
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        first = one_line(error, 200)
        raise UserError(f"the weights {url} are of another network than scale and model describe: {first}") from None


def read_weights(url: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors file at a path or fsspec URL.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        content = storage.read(url)
        if content is None:
            raise FileNotFoundError("there is no such file")
        weights: dict[str, Tensor] = safetensors.torch.load(content)
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"cannot read the weights {url}: {error}, expected a .safetensors file") from None
    return weights


def contiguous(net: nn.Module) -> dict[str, Tensor]:
    """The state dict on CPU in plain layout, as safetensors wants it."""
    return {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
