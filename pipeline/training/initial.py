"""The weights that a training starts from: any text that names a model finds them, and they are checked at once."""

from __future__ import annotations

import hashlib

from pipeline import storage
from pipeline.networks.sources import ModelKind, find_model
from pipeline.networks.weights import build_network, load_weights
from pipeline.settings import Config, UserError

FILE = "initial.safetensors"
"""Name of the copy in a training's folder, which every worker can read."""


def find_initial(config: Config) -> str | None:
    """Return the path or URL of the weights that `train.init_from` names; None for a training from random weights.

    Raises:
        UserError: if it names no model, or one that has no weights of this project.
    """
    text = config.train.init_from
    if text is None:
        return None
    try:
        source = find_model(text, config)
    except UserError as error:
        raise UserError(f"train.init_from is {storage.redact(text)}: {error}") from None
    if source.kind is not ModelKind.SAFETENSORS:
        raise UserError(f"train.init_from is {storage.redact(text)}, expected a model with weights of this project")
    return source.weights


def check_initial(config: Config) -> None:
    """Check that the initial weights exist and fit the network, which takes a second.

    Raises:
        UserError: if they do not.
    """
    weights = find_initial(config)
    if weights:
        load_weights(build_network(config.scale, config.model, config.train.seed).started(), weights)


def identify_initial(config: Config) -> str | None:
    """Return the SHA-256 of the file of initial weights; None for a training from random weights.

    Raises:
        UserError: if there is no such file.
    """
    weights = find_initial(config)
    return None if weights is None else hashlib.sha256(_read(config, weights)).hexdigest()


def locate_initial(config: Config) -> Config:
    """Return the configuration with the path or URL of the initial weights instead of another name of the model.

    So all parts of a command use the same weights, although an alias in MLflow may move meanwhile.
    """
    return _with_initial(config, find_initial(config))


def store_initial(config: Config, folder: str) -> Config:
    """Copy the initial weights into the folder of a training, and name the copy in the configuration.

    Args:
        config: the configuration.
        folder: path or URL of the training.
    """
    weights = find_initial(config)
    if weights is None:
        return config
    url = f"{folder}/{FILE}"
    storage.write(url, _read(config, weights))
    return _with_initial(config, url)


def _with_initial(config: Config, weights: str | None) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update={"init_from": weights})})


def _read(config: Config, weights: str) -> bytes:
    content = storage.read(weights)
    if content is None:
        raise UserError(
            f"train.init_from is {storage.redact(config.train.init_from or '')}, expected an existing .safetensors file"
        )
    return content
