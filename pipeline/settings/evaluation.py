"""Settings of the evaluation."""

from __future__ import annotations

import os
import re

from pydantic import BaseModel, Field, field_validator

from pipeline.settings.data import Degradation
from pipeline.settings.fields import STRICT, absolute_path, absolute_source


def is_set_name(text: str) -> bool:
    """Tell whether a text can name a set of images, which becomes a part of file names and of MLflow's metrics."""
    return bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._-]*", text)) and text != "held-out"


def split_name(text: str) -> tuple[str, str]:
    """Split NAME=MODEL into a name and a model; the name is "" if there is none, or if a file has the whole name."""
    name, equals, rest = text.partition("=")
    named = bool(equals and rest) and is_set_name(name) and not os.path.lexists(text)
    return (name, rest) if named else ("", text)


class Evaluate(BaseModel):
    """Settings for scoring a trained network."""

    model_config = STRICT

    benchmarks: dict[str, str] = Field({}, examples=["Set5=data/Set5"])
    """Benchmark sets as NAME=FOLDER. A folder holds HR images, with or without the published LR files; the data guide
    describes the layouts."""
    degradation: Degradation = Degradation()
    """Degradation of the LR images of benchmark sets before they are enlarged, such as JPEG compression. With blur, the
    LR images are made from the HR images, and published LR files are not used. The names of the sets state the
    degradation, as in Set5-jpeg60. Held-out images have the degradation of the patch set."""
    images: int = Field(6, ge=0)
    """Number of images of each set that the report shows."""
    squeezenet: str | None = None
    """Weights of SqueezeNet 1.1, for a perceptual distance between features that no training uses: the path or URL
    of a .safetensors or .pth file with torchvision's parameter names, or "torchvision" to download the published file
    (5 MB). By default this distance is not measured."""
    st_lpips: bool = True
    """Measure ST-LPIPS, a perceptual distance that was fitted to human judgements; its weights come with the package.
    On a CPU, scoring an image takes about as long as enlarging it with the full-size network."""
    while_training: bool = False
    """Also score the benchmark sets at each validation. These scores are only displayed; they never select a model."""

    @field_validator("benchmarks")
    @classmethod
    def _absolute_folders(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not is_set_name(name):
                raise ValueError(
                    f"another name than {name!r}: letters, digits, spaces, dots and dashes, and not held-out"
                )
        return {name: absolute_source(source) for name, source in value.items()}

    @field_validator("squeezenet")
    @classmethod
    def _absolute_weights(cls, value: str | None) -> str | None:
        return value if value in (None, "torchvision") else absolute_path(value)
