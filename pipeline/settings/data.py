"""Settings of preprocessing and of the training data."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from pipeline.settings.fields import STRICT


class Degradation(BaseModel):
    """What makes the LR image of an HR one, in this order; computed on whole images."""

    model_config = STRICT

    blur: float = Field(0, ge=0, le=20)
    """HR pixels, standard deviation of a Gaussian blur; 0 for none."""
    bicubic: Literal["matlab", "legacy"] = "matlab"
    """Form of the reduction: today's MATLAB, or the 8-bit form of the published benchmark files."""
    noise: float = Field(0, ge=0, le=100)
    """Grey levels of 255, standard deviation of Gaussian noise on the LR image; 0 for none."""
    jpeg: int | None = Field(None, ge=1, le=100)
    """Quality of a JPEG compression of the LR image; none where not given."""
    seed: int = 0
    """Of the noise, together with the image's content."""


class Preprocess(BaseModel):
    """From images to a patch set."""

    model_config = STRICT

    holdout: list[str] = []
    """Glob patterns, on an image's path in its source or its name without extension, of images kept for validation,
    never trained on."""
    holdout_count: int = Field(1, ge=1)
    """Images kept for validation where `holdout` is empty, chosen by their content."""
    degradation: Degradation = Degradation()
    """What makes the LR image of an HR one."""
    max_side: int | None = Field(None, ge=64)
    """Pixels; an image with a longer side is first reduced to it, which also removes JPEG and sensor noise."""
    tile: int = Field(192, ge=32)
    """HR pixels, side of a stored tile; larger than the training crop, so that crops stay random."""
    stride: int | None = Field(None, ge=8)
    """HR pixels between tiles; the tile's side where not given. The remainder at the far borders is always covered."""
    min_detail: float = Field(0, ge=0, le=128)
    """Grey levels; tiles whose mean of R, G and B has a smaller standard deviation (sky, walls) are dropped."""
    row_group: int = Field(8, ge=1)
    """Tiles in a Parquet row group, the unit of reading and of dealing to lanes."""
    shard_mb: float = Field(128, gt=0)
    """MB, target size of a shard."""
    max_pixels: int = Field(200_000_000, ge=1)
    """Pixels; a larger image is rejected (decompression bombs)."""
    max_reject_share: float = Field(0.05, ge=0, le=1)
    """Share of rejected images above which preprocessing fails."""


class Data(BaseModel):
    """From a patch set to training samples. These settings define the sample order, together with `train.seed`."""

    model_config = STRICT

    crop: int = Field(96, ge=16)
    """HR pixels, side of a training patch."""
    crops_per_tile: int | None = Field(None, ge=1)
    """Random crops of each tile in an epoch; (tile / crop)^2 where not given, which covers about every pixel once."""
    lanes: int = Field(8, ge=1)
    """Independent shuffled streams that row groups are dealt to; worker r of N reads lanes r, r + N and so on, so
    that the samples of a step don't depend on N. At least N, at best a multiple."""
    window: int = Field(256, ge=1)
    """Tiles of a lane that are shuffled together; bounds the memory of a lane."""
    augment: bool = True
    """Random flips and quarter turns."""
    hold: Literal["auto", "map", "stream"] = "auto"
    """Where tiles are read from: "map" makes an unpacked copy on each node, which its workers map into memory; "stream"
    reads the patch set where it lies; "auto" maps if the copy fits `hold_mb` and half of the free disk. The batches are
    the same."""
    hold_mb: float = Field(8000, ge=0)
    """MB of unpacked tiles up to which "auto" maps."""
    scratch: str | None = None
    """Folder on each node for unpacked tiles; one in the system's temporary folder where not given."""
