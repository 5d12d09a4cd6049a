"""Settings of the evaluation."""

from __future__ import annotations

import re

from pydantic import BaseModel, Field, field_validator

from pipeline.settings.fields import STRICT, absolute_path, absolute_source


class Evaluate(BaseModel):
    """Measuring a trained network."""

    model_config = STRICT

    benchmarks: dict[str, str] = {}
    """Benchmark sets, name=folder, in a layout of docs/data.md: with the set's LR files, or HR images alone."""
    images: int = Field(6, ge=0)
    """Images shown in the report, per set."""
    squeezenet: str | None = None
    """Weights of SqueezeNet 1.1 for a perceptual distance that nothing was trained on: path or URL of a .safetensors or
    .pth file with torchvision's names, or "torchvision" to download the published file, 5 MB; where not given, that
    distance isn't measured."""
    while_training: bool = False
    """Also score the benchmark sets at each validation: for display only, they choose nothing."""

    @field_validator("benchmarks")
    @classmethod
    def _absolute_folders(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._-]*", name) or name == "held-out":
                raise ValueError(f"another name than {name!r}: letters, digits, spaces, dots and dashes; not held-out")
        return {name: absolute_source(source) for name, source in value.items()}

    @field_validator("squeezenet")
    @classmethod
    def _absolute(cls, value: str | None) -> str | None:
        return value if value in (None, "torchvision") else absolute_path(value)
