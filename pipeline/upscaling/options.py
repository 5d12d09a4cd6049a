"""The choices of a user for an enlargement. This module imports neither torch nor Ray."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline import storage
from pipeline.networks.sources import ModelSource
from sr_model.networks.sampling import Sampling

if TYPE_CHECKING:
    from pipeline.networks.engine import Precision


@dataclass(frozen=True)
class Model:
    """A model and how it computes."""

    source: ModelSource
    scale: int
    """Factor of bicubic interpolation; networks have their own."""
    device: str | None
    """ "cpu" or "cuda"; None for the GPU if there is one."""
    precision: Precision
    tile: int | None
    """Side of a tile in LR pixels; None to choose it from the memory."""
    sampling: Sampling | None = None
    """How a network that draws images in steps does so; None for its own number of steps."""
    consistent: bool = False
    """Correct images so that, reduced, they are nearly the LR image."""

    def identity(self) -> str:
        """Return what results depend on: the content of the weights, and the precision."""
        weights = (storage.read(self.source.weights) or b"") if self.source.weights else b""
        parts: list[object] = [hashlib.sha256(weights).hexdigest(), self.source.kind.value, self.scale, self.precision]
        parts += [self.sampling] if self.sampling else []
        parts += ["consistent"] if self.consistent else []
        return " ".join(map(str, parts))


@dataclass(frozen=True)
class Enlargement:
    """How images are enlarged, apart from the model."""

    outscale: float | None = None
    """Factor of the result, to which the model's result is resized; None for the model's own."""
    quality: int | None = None
    """Quality of JPEG, WebP and AVIF files, 1 to 100; None for 95, lossless and 90."""
    keep_profile: bool = False
    """Leave values and profile as they are, instead of converting colours to sRGB."""
    max_megapixels: float = 400.0
    """Size above which a result is refused; that of all frames of an animation together."""

    def identity(self) -> list[float | bool | None]:
        """Return what the content of a result depends on."""
        return [self.outscale, self.quality, self.keep_profile]

    def max_pixels(self, scale: int) -> int:
        """Return the most pixels that an image may have before it is enlarged by a model of this scale."""
        factor = max(scale, self.outscale or 0)
        return int(self.max_megapixels * 1e6 / factor**2)
