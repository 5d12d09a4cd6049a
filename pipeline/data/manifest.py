"""The records in a patch set's manifest: its settings, its shards and the outcome for every source image."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.data.rejection import Rejection
from pipeline.settings import Preprocess

FORMAT = 3
"""Version of shards and manifest, and part of the name of every patch set and shard.

Increase it for every incompatible change, including one of the preprocessing settings.
"""


@dataclass(frozen=True)
class ImageRecord:
    """The outcome for one source image."""

    name: str
    sha256: str
    """Hash of the file; empty if it could not be read."""
    width: int
    height: int
    tiles: int
    """Tiles in the training shards; 0 if the image is held out or rejected."""
    held_out: bool
    rejected: Rejection | None = None
    """The reason for which the image is not in the set; None if it is."""
    flat: int = 0
    """Tiles that were dropped for lack of detail."""


@dataclass(frozen=True)
class Shard:
    """One Parquet file of the set."""

    file: str
    """Name in the set's folder."""
    row_groups: list[int]
    """Rows in each row group."""
    bytes: int
    sha256: str
    images: list[ImageRecord]


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json."""

    name: str
    scale: int
    tile: int
    """Side of a tile in HR pixels."""
    settings: Preprocess
    """The settings with which the set was made."""
    shards: list[Shard]
    """Training shards."""
    holdout: list[Shard]
    """Shards of held-out images."""
    rejected: list[ImageRecord] = field(default_factory=list)
    """Images that were rejected before they reached a shard."""
    format: int = FORMAT


@dataclass(frozen=True)
class FormatOnly:
    """The part of a manifest that every format has."""

    format: int
