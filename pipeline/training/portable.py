"""The files of a checkpoint in a form that a record can keep: small, the same everywhere, and without pickle.

The moments of the optimizers become `optimizer.safetensors`, and their other values `optimizer.json`. All other files
stay as they are.
"""

from __future__ import annotations

import io
import json
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor

from pipeline import storage
from pipeline.networks.weights import parse_weights, serialise
from pipeline.settings.grid import Moments
from pipeline.training.checkpoints import OPTIMIZERS, Files

_MOMENTS, _PLAIN = "optimizer.safetensors", "optimizer.json"
_CHANNELS_LAST = "channels_last"
"""Last part of the names of moments whose memory has the channels of a pixel side by side, as their weights have."""

_Groups = dict[str, list[list[dict[str, JsonValue]]]]
"""Groups of parameters of each optimizer, by the name of the module."""


def pack(files: Files, moments: Moments) -> Files:
    """Turn the files of a checkpoint into those of a record.

    Args:
        files: what `Learner.save` returned.
        moments: "fp32" keeps the moments as they are, so that a training resumes exactly; "bf16" halves them.
    """
    states = torch.load(io.BytesIO(files[OPTIMIZERS]), map_location="cpu", weights_only=True)
    tensors: dict[str, Tensor] = {}
    groups: dict[str, list[Any]] = {name: [state["param_groups"] for state in of] for name, of in states.items()}
    for module, optimizers in states.items():
        for number, state in enumerate(optimizers):
            for parameter, values in state["state"].items():
                for key, value in values.items():
                    last = value.dim() == 4 and not value.is_contiguous()
                    name = f"{module}/{number}/{parameter}/{key}" + (f"/{_CHANNELS_LAST}" if last else "")
                    plain = value.permute(0, 2, 3, 1) if last else value
                    short = moments == "bf16" and value.dim() > 0
                    tensors[name] = (plain.to(torch.bfloat16) if short else plain).contiguous()
    kept = {name: content for name, content in files.items() if name != OPTIMIZERS}
    return {**kept, _MOMENTS: serialise(tensors), _PLAIN: json.dumps(groups).encode()}


def unpack(files: Files) -> Files:
    """Turn the files of a record back into those of a checkpoint, for `Learner.load`.

    Raises:
        DamagedFileError: if they are not those of a record.
    """
    try:
        groups = storage.parse_document(files[_PLAIN], _Groups, _PLAIN, "")
        states: dict[str, list[dict[str, Any]]] = {
            module: [{"state": {}, "param_groups": [_with_tuples(group) for group in own]} for own in optimizers]
            for module, optimizers in groups.items()
        }
        for name, value in parse_weights(files[_MOMENTS]).items():
            module, number, parameter, key, *layout = name.split("/")
            value = value.float() if value.dtype == torch.bfloat16 else value
            value = value.permute(0, 3, 1, 2) if layout == [_CHANNELS_LAST] else value
            states[module][int(number)]["state"].setdefault(int(parameter), {})[key] = value
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        raise storage.DamagedFileError(
            f"the state of a training in a record cannot be used: {storage.one_line(error)}"
        ) from None
    sink = io.BytesIO()
    torch.save(states, sink)
    kept = {name: content for name, content in files.items() if name not in (_MOMENTS, _PLAIN)}
    return {**kept, OPTIMIZERS: sink.getvalue()}


def _with_tuples(group: dict[str, JsonValue]) -> dict[str, Any]:
    """Return a group of parameters as an optimizer writes it; JSON has no tuples."""
    return {key: tuple(value) if isinstance(value, list) and key != "params" else value for key, value in group.items()}
