"""The models that come with the package, so that images can be upscaled without a training or a download."""

from __future__ import annotations

from pathlib import Path

from pipeline.settings import UserError

_FOLDER = Path(__file__).resolve().parent / "models"

DEFAULT = "srresnet-x4"
"""The model that is used unless another one is named."""


def names() -> list[str]:
    """Names of the bundled models, sorted."""
    return sorted(path.parent.name for path in _FOLDER.glob("*/model.safetensors"))


def weights(name: str) -> str:
    """Path of a bundled model's weights.

    Raises:
        UserError: if there is no such model.
    """
    known = names()
    if name not in known:
        raise UserError(f"there is no bundled model {name}, expected {', '.join(known)} or a .safetensors file")
    return str(_FOLDER / name / "model.safetensors")
