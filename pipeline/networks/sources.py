"""The models that a person can name, and where their weights are. This module imports no torch, so it costs no time."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from pipeline import storage
from pipeline.networks import bundled
from pipeline.settings import UserError

BICUBIC = "bicubic"
"""Name of MATLAB's bicubic interpolation, which needs no weights."""

EXPECTED = "a bundled model, a .safetensors file, the folder of a training or of a workflow, or `bicubic`"
"""What may stand for a model, for messages."""


class ModelKind(Enum):
    """How the weights of a model are stored."""

    BICUBIC = "bicubic"
    SAFETENSORS = "safetensors"


@dataclass(frozen=True)
class ModelSource:
    """A model that was found, and is not loaded yet."""

    text: str
    """The model as the user named it."""
    kind: ModelKind
    weights: str
    """Path or URL of the file with the weights; "" for bicubic interpolation."""


def find_model(text: str) -> ModelSource:
    """Find the model that a text names.

    Args:
        text: the name of a bundled model, the path or URL of a .safetensors file, the path or URL of a folder that
            holds model.safetensors (such as a training's), the folder of a workflow, or "bicubic".

    Raises:
        UserError: if there is no such model.
    """
    if text == BICUBIC:
        return ModelSource(text, ModelKind.BICUBIC, "")
    if text.endswith(".safetensors"):
        if not storage.is_url(text) and not Path(text).is_file():
            raise UserError(f"cannot read the weights {text}: there is no such file; expected a .safetensors file")
        return ModelSource(text, ModelKind.SAFETENSORS, text)
    if text in bundled.names():
        return ModelSource(text, ModelKind.SAFETENSORS, bundled.weights(text))
    if storage.is_url(text) or Path(text).is_dir():
        return ModelSource(text, ModelKind.SAFETENSORS, _weights_below(text.rstrip("/")))
    known = ", ".join(bundled.names())
    raise UserError(f"there is no model {text}: expected {EXPECTED}; the bundled models are {known}")


def _weights_below(folder: str) -> str:
    """Return the weights in a training's folder, or those of the training that a workflow's folder belongs to."""
    parent, _, name = folder.rpartition("/")
    candidates = [f"{folder}/model.safetensors"]
    if parent.rpartition("/")[2] == "workflows":
        candidates.append(f"{parent.removesuffix('workflows')}trainings/{name}/model.safetensors")
    for weights in candidates:
        if storage.exists(weights):
            return weights
    raise UserError(
        f"{folder} has no model.safetensors: expected the folder of a finished training, of its workflow, or another "
        "one with that file"
    )
