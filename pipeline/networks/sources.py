"""The models that a person can name, and where their weights are. This module imports no torch, so it costs no time."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from pipeline import storage
from pipeline.networks import bundled
from pipeline.settings import Config, UserError, resolve

BICUBIC = "bicubic"
"""Name of MATLAB's bicubic interpolation, which needs no weights."""

EXPECTED = (
    "a bundled model, a .safetensors or .onnx file, the folder of a training or of a workflow, models:/NAME@ALIAS or "
    "runs:/ID of MLflow, or `bicubic`"
)
"""The texts that name a model, for messages."""


class ModelKind(Enum):
    """How the weights of a model are stored."""

    BICUBIC = "bicubic"
    SAFETENSORS = "safetensors"
    ONNX = "onnx"


_KINDS = {".safetensors": ModelKind.SAFETENSORS, ".onnx": ModelKind.ONNX}
"""Kinds of files with weights, by the ends of their names."""


@dataclass(frozen=True)
class ModelSource:
    """A model that was found, and is not loaded yet."""

    text: str
    """The model as the user named it."""
    kind: ModelKind
    weights: str
    """Path or URL of the file with the weights; "" for bicubic interpolation."""


def find_model(text: str, config: Config | None = None) -> ModelSource:
    """Find the model that a text names.

    Args:
        text: the name of a bundled model, the path or URL of a .safetensors or .onnx file, the path or URL of a folder
            that holds model.safetensors (such as a training's, or one for the Hugging Face Hub), the folder of a
            workflow, a model of MLflow (models:/NAME/VERSION, models:/NAME@ALIAS, runs:/ID or runs:/ID/PATH), or
            "bicubic".
        config: resolved settings, which name MLflow's server or database and the cache; by default those that the
            environment variables name.

    Raises:
        UserError: if there is no such model.
    """
    if text == BICUBIC:
        return ModelSource(text, ModelKind.BICUBIC, "")
    if text.startswith(("models:/", "runs:/")):
        return ModelSource(text, ModelKind.SAFETENSORS, _fetch_from_mlflow(text, config))
    is_url = storage.is_url(text)
    if is_url:
        _check_url(text)
    place = text if is_url else str(Path(text).absolute())  # worker processes may have another current folder
    for ending, kind in _KINDS.items():
        if text.endswith(ending):
            if not is_url and not Path(text).is_file():
                raise UserError(
                    f"cannot read the weights {text}: there is no such file; expected an existing {ending} file"
                )
            return ModelSource(text, kind, place)
    if text in bundled.names():
        return ModelSource(text, ModelKind.SAFETENSORS, bundled.weights(text))
    if is_url or Path(text).is_dir():
        return ModelSource(text, ModelKind.SAFETENSORS, _weights_below(place.rstrip("/")))
    known = ", ".join(bundled.names())
    raise UserError(f"there is no model {text}: expected {EXPECTED}; the bundled models are {known}")


def _check_url(url: str) -> None:
    try:
        storage.locate(url)
    except (ValueError, ImportError, OSError) as error:
        raise UserError(
            f"cannot read the model {storage.redact(url)}: {storage.one_line(error).rstrip('.')}; expected the URL of "
            "a file system whose package is installed, such as s3://"
        ) from None


def _fetch_from_mlflow(text: str, config: Config | None) -> str:
    """Copy a model's weights to the cache unless they are there, and return their place."""
    from pipeline import tracking  # here, because other models need neither requests nor MLflow

    return tracking.fetch_weights(config or resolve(Config()), text)


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
