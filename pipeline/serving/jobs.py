"""The messages between the server and its replicas."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Method(StrEnum):
    """How an image is enlarged."""

    MODEL = "model"
    BICUBIC = "bicubic"


class Format(StrEnum):
    """File format of an answer."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"
    AVIF = "avif"
    TIFF = "tiff"

    @property
    def media_type(self) -> str:
        """Media type of a file of this format, for HTTP."""
        return f"image/{self.value}"


@dataclass(frozen=True)
class Job:
    """An image file to upscale."""

    content: bytes
    """The file."""
    method: Method
    format: Format
    quality: int | None
    """Quality of JPEG, WebP or AVIF from 1 to 100; None for the default of the format."""


@dataclass(frozen=True)
class Upscaled:
    """An upscaled image."""

    content: bytes
    """A file of the format that the job asks for."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""


@dataclass(frozen=True)
class Refusal:
    """The reason for which a job was not done."""

    status: int
    """Status code of HTTP."""
    reason: str
    """A sentence."""
    retry_after_s: int | None = None
    """Seconds after which the same request may succeed."""


@dataclass(frozen=True)
class ModelFacts:
    """The facts that a replica knows about its model."""

    scale: int
    """Factor by which height and width grow; 0 if the model cannot be loaded."""
    device: str
    """"cpu" or "cuda"."""
    fault: str = ""
    """The sentence that says why the model cannot be loaded."""
