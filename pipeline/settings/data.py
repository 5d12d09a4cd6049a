"""Settings for preprocessing and for reading training data."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from pipeline.settings.fields import STRICT


class Degradation(BaseModel):
    """How the LR image is computed from the HR image; the steps are applied to whole images, in this order."""

    model_config = STRICT

    blur: float = Field(0, ge=0, le=20)
    """Standard deviation of a Gaussian blur, in HR pixels; 0 turns it off."""
    bicubic: Literal["matlab", "legacy"] = "matlab"
    """Variant of the bicubic reduction: "matlab" is that of current MATLAB versions, "legacy" is the 8-bit variant that
    made the published benchmark files."""
    noise: float = Field(0, ge=0, le=100)
    """Standard deviation of Gaussian noise on the LR image, in grey levels of 255; 0 turns it off."""
    jpeg: int | None = Field(None, ge=1, le=100)
    """Quality of a JPEG compression of the LR image; no compression by default."""
    seed: int = 0
    """Noise seed, combined with each image's hash."""


class Preprocess(BaseModel):
    """How images become a patch set."""

    model_config = STRICT

    holdout: list[str] = []
    """Glob patterns for the held-out images, which are used for validation and never trained on. A pattern is matched
    against an image's path in its source and against its name without extension."""
    holdout_count: int = Field(1, ge=1)
    """Number of held-out images if `holdout` is empty; they are chosen by their hashes."""
    degradation: Degradation = Degradation()
    """How the LR image is computed from the HR image."""
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
    """Tiles in a Parquet row group, the unit that is read at once and assigned to a lane."""
    shard_mb: float = Field(128, gt=0)
    """Target size of a shard in MB."""
    max_pixels: int = Field(200_000_000, ge=1)
    """Pixels in the largest accepted image; larger images are rejected, as a protection against decompression bombs."""
    max_reject_share: float = Field(0.05, ge=0, le=1)
    """Share of rejected images above which preprocessing fails."""


class Data(BaseModel):
    """How a patch set becomes training samples. Together with `train.seed`, these settings define the sample order."""

    model_config = STRICT

    crop: int = Field(96, ge=16)
    """Side of a training patch in HR pixels."""
    crops_per_tile: int | None = Field(None, ge=1)
    """Random crops of each tile in an epoch; the default is (tile / crop)^2, which covers each pixel about once."""
    lanes: int = Field(8, ge=1)
    """Independent shuffled streams of row groups. Worker r of N reads the lanes r, r + N, r + 2N, ..., so the samples
    of a step do not depend on N. There must be at least N lanes; a multiple of N is best."""
    window: int = Field(256, ge=1)
    """Tiles of a lane that are shuffled together; this bounds the memory that a lane takes."""
    order: Literal["dealt", "permuted"] = "dealt"
    """How the row groups of an epoch come to the lanes. "dealt" deals them in a random order, so that all lanes have
    the same number of tiles; it takes time and memory for each row group: a million take a second and 80 MB a worker.
    "permuted" computes where each row group comes, in a time and memory that do not depend on their number; where the
    last row group of a shard is smaller than the others, its tiles come more often."""
    augment: bool = True
    """Apply random flips and quarter turns."""
    hold: Literal["auto", "device", "map", "stream"] = "auto"
    """Where tiles are held: "device" copies all of them into the memory of each worker's GPU (without GPUs, into the
    memory of each worker) and cuts patches there; "map" copies the shards of a patch set in an object store to a disk
    of each node, while training reads them; "stream" makes no copies. "auto" uses the GPU if the tiles take at most 40%
    of its free memory or of `train.memory_mb`, and otherwise copies the shards that fit `hold_mb` and half of the free
    disk space. Shards in a local folder are mapped into memory and never copied to a disk. The batches are the same in
    all cases."""
    hold_mb: float = Field(8000, ge=0)
    """MB of shards that "auto" copies to a disk of each node."""
    scratch: str | None = None
    """Folder for copied shards on each node; the default is in the system's temporary folder."""
