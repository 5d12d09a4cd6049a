"""Settings for preprocessing and for reading training data."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator

from pipeline.settings.fields import STRICT

Blur = Annotated[float, Field(ge=0, le=20)]
Noise = Annotated[float, Field(ge=0, le=100)]
Quality = Annotated[int, Field(ge=1, le=100)]


class Degradation(BaseModel):
    """Steps that compute the LR image from the HR image, in this order.

    They are applied to the whole image, but noise and JPEG to each tile with its surroundings if one of the two has a
    range or `clean` is set.

    In place of a single value, blur, noise and JPEG take a range, such as [40, 95], from which values are drawn
    uniformly: blur for each image, noise and JPEG for each tile. Held-out images have draws of their own. All draws
    depend on the seed, the content of the image and, for a tile, its place.
    """

    model_config = STRICT

    blur: Blur | tuple[Blur, Blur] = 0.0
    """Standard deviation of a Gaussian blur, in HR pixels, or its range; 0 turns it off."""
    bicubic: Literal["matlab", "legacy"] = "matlab"
    """Variant of the bicubic reduction: "matlab" is that of current MATLAB versions, and "legacy" is the 8-bit variant
    that made the published benchmark files."""
    noise: Noise | tuple[Noise, Noise] = 0.0
    """Standard deviation of Gaussian noise on the LR image, in grey levels of 255, or its range; 0 turns it off."""
    jpeg: Quality | tuple[Quality, Quality] | None = None
    """Quality of a JPEG compression of the LR image, or its range; no compression by default."""
    seed: int = 0
    """Seed of noise and draws, combined with each image's hash."""
    clean: float = Field(0.0, ge=0, lt=1, exclude_if=lambda value: value == 0)  # so that older names stay
    """Share of the tiles and of the held-out images that are only reduced, without blur, noise and JPEG."""

    @property
    def varies_by_tile(self) -> bool:
        """True if tiles of an image differ in noise or JPEG, or some of them stay clean."""
        return isinstance(self.noise, tuple) or isinstance(self.jpeg, tuple) or self.clean > 0

    @property
    def words(self) -> list[str]:
        """The degradations beside the reduction, in words such as ["noise 5", "JPEG quality 40 to 95"]."""
        said = {"blur": "blur {}", "noise": "noise {}", "jpeg": "JPEG quality {}", "clean": "a share of {} left clean"}
        return [said[key].format(value) for key, value in self._chosen.items()]

    @property
    def _chosen(self) -> dict[str, str]:
        """The values and ranges that change images, such as {"jpeg": "40 to 95"}."""
        values = {key: getattr(self, key) for key in ("blur", "noise", "jpeg", "clean")}
        ranges = {key: value if isinstance(value, tuple) else (value,) for key, value in values.items() if value}
        return {key: " to ".join(f"{value:g}" for value in ends) for key, ends in ranges.items()}

    @property
    def label(self) -> str:
        """All of this as a part of a set's name, such as "-noise5-jpeg40to95"; "" for MATLAB's reduction alone."""
        parts = [
            *(["legacy"] if self.bicubic == "legacy" else []),
            *(key + value for key, value in self._chosen.items()),
        ]
        return "".join(f"-{part.replace(' ', '')}" for part in parts)

    def cleaned(self) -> Degradation:
        """Return the reduction alone."""
        return Degradation(bicubic=self.bicubic, seed=self.seed)

    def drawn(self, key: str) -> Degradation:
        """Return single values in place of ranges.

        Args:
            key: names what the values are for, such as an image by the hash of its content.
        """

        def draw(name: str) -> float:
            digest = hashlib.sha256(f"{self.seed} {key} {name}".encode()).digest()
            return int.from_bytes(digest[:8], "big") / 2**64

        if self.clean and draw("clean") < self.clean:
            return self.cleaned()
        values: dict[str, Any] = {"clean": 0.0}
        for name in ("blur", "noise"):
            if isinstance(bounds := getattr(self, name), tuple):
                values[name] = bounds[0] + draw(name) * (bounds[1] - bounds[0])
        if isinstance(self.jpeg, tuple):
            values["jpeg"] = self.jpeg[0] + int(draw("jpeg") * (self.jpeg[1] - self.jpeg[0] + 1))
        return self.model_copy(update=values)

    @field_validator("blur", "noise", "jpeg", mode="before")
    @classmethod
    def _single_of_list(cls, value: Any) -> Any:
        """Take the value of a list of one, as which the command line reads a setting that may be a list."""
        if isinstance(value, str):  # a list that is no JSON, such as [nan]
            return value.removeprefix("[").removesuffix("]") if "," not in value else value
        if any(isinstance(end, bool) for end in (value if isinstance(value, list | tuple) else [value])):
            raise ValueError("a number, or the two ends of a range")  # otherwise true would be 1
        return value[0] if isinstance(value, list) and len(value) == 1 else value

    @field_validator("blur", "noise", "jpeg")
    @classmethod
    def _ascending(cls, value: Any) -> Any:
        if isinstance(value, tuple) and value[0] > value[1]:
            raise ValueError("a single value, or the lower and the upper end of a range, such as [40, 95]")
        return value


class Preprocess(BaseModel):
    """Settings that turn images into a patch set."""

    model_config = STRICT

    holdout: list[str] = []
    """Glob patterns for the held-out images, which are used for validation and never trained on. A pattern is matched
    against an image's path in its source and against its name without extension."""
    holdout_count: int = Field(1, ge=1)
    """Number of held-out images if `holdout` is empty; they are chosen by their hashes."""
    degradation: Degradation = Degradation()
    """Steps that compute the LR image from the HR image."""
    max_side: int | None = Field(None, ge=64)
    """Longest side in pixels; larger images are first reduced to it, which also removes JPEG artefacts and sensor
    noise."""
    tile: int = Field(192, ge=32)
    """Side of a stored tile in HR pixels. It should be larger than the training crop, so that crops can be random."""
    stride: int | None = Field(None, ge=8)
    """Distance between tiles in HR pixels; the default is the tile's side. The remainder at the right and bottom
    borders is always covered."""
    min_detail: float = Field(0, ge=0, le=128)
    """Minimum standard deviation of a tile's grey levels (mean of R, G and B); flatter tiles, such as sky or walls, are
    dropped."""
    row_group: int = Field(8, ge=1)
    """Number of tiles in a Parquet row group, the unit that is read at once and assigned to a lane."""
    shard_mb: float = Field(128, gt=0)
    """Target size of a shard in MB."""
    grouping: Literal["name", "hash"] = Field("name", exclude_if=lambda value: value == "name")
    """Rule that assigns images to shards: "name" takes them in the order of their names, and "hash" by the first bits
    of the hash of their content. With "hash", a changed image changes only the shard that it leaves and the one that it
    joins, and images from one folder are spread over all shards. It suits datasets of a million images and more."""
    max_pixels: int = Field(200_000_000, ge=1)
    """Number of pixels in the largest accepted image. Larger images are rejected, as a protection against decompression
    bombs."""
    max_reject_share: float = Field(0.05, ge=0, le=1)
    """Share of rejected images above which preprocessing fails."""


class Data(BaseModel):
    """Settings that turn a patch set into training samples. With `train.seed`, they define the order of the samples."""

    model_config = STRICT

    crop: int = Field(96, ge=16)
    """Side of a training patch in HR pixels."""
    crops_per_tile: int | None = Field(None, ge=1)
    """Number of random crops per tile and epoch; the default is (tile / crop)^2, which covers each pixel about once."""
    lanes: int = Field(8, ge=1)
    """Number of independent shuffled streams of row groups. Worker r of N reads the lanes r, r + N, r + 2N, ..., so the
    samples of a step do not depend on N. There must be at least N lanes; a multiple of N is best."""
    window: int = Field(256, ge=1)
    """Number of tiles of a lane that are shuffled together; it bounds the memory that a lane takes."""
    order: Literal["dealt", "permuted"] = "dealt"
    """Rule that assigns an epoch's row groups to lanes: "dealt" deals them in a random order, so that all lanes have
    the same number of tiles. It takes time and memory for each row group: a second and 80 MB per worker for a million.
    "permuted" computes the place of each row group, in time and memory that do not depend on their number. If the last
    row group of a shard is smaller than the others, its tiles are drawn more often."""
    augment: bool = True
    """Apply random flips and quarter turns."""
    hold: Literal["auto", "device", "map", "stream"] = "auto"
    """Location of the tiles during training: "device" copies all of them into the memory of each worker's GPU (without
    GPUs, into the memory of each worker) and cuts patches there; "map" copies the shards of a patch set in an object
    store to a disk of each node, while training reads them, and leaves at least a tenth of that disk and 1 GB free;
    "stream" makes no copies. "auto" uses the GPU if the tiles take at most 40% of its free memory or of
    `train.memory_mb`, and otherwise copies the shards that fit `hold_mb` and half of the free disk space. Shards in a
    local folder are mapped into memory and never copied to a disk. The batches are the same in all cases."""
    hold_mb: float = Field(8000, ge=0)
    """Limit in MB for the shards that "auto" copies to a disk of each node."""
    scratch: str | None = None
    """Folder for copied shards on each node; the default is in the system's temporary folder."""
