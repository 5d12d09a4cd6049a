"""Settings of the evaluation."""

from __future__ import annotations

import re

from pydantic import BaseModel, Field, field_validator

from pipeline.settings.fields import STRICT, absolute_path, absolute_source


class Evaluate(BaseModel):
    """Settings for scoring a trained network."""

    model_config = STRICT

    benchmarks: dict[str, str] = Field({}, examples=["Set5=data/Set5"])
    """Benchmark sets as NAME=FOLDER. A folder holds HR images, with or without the published LR files; the data guide
    describes the layouts."""
    images: int = Field(6, ge=0)
    """Number of images of each set that the report shows."""
    squeezenet: str | None = None
    """Weights of SqueezeNet 1.1, to measure a perceptual distance with features that no training uses: the path or URL
    of a .safetensors or .pth file with torchvision's parameter names, or "torchvision" to download the published file
    (5 MB). By default this distance is not measured."""
    while_training: bool = False
    """Also score the benchmark sets at each validation. These scores are only displayed; they never select a model."""

    @field_validator("benchmarks")
    @classmethod
    def _absolute_folders(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._-]*", name) or name == "held-out":
                raise ValueError(
                    f"another name than {name!r}: letters, digits, spaces, dots and dashes, and not held-out"
                )
        return {name: absolute_source(source) for name, source in value.items()}

    @field_validator("squeezenet")
    @classmethod
    def _absolute_weights(cls, value: str | None) -> str | None:
        return value if value in (None, "torchvision") else absolute_path(value)
