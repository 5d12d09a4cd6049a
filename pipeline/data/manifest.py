"""The records in a patch set's manifest: its settings, its shards and the outcome for every source image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from pipeline.data.rejection import Rejection
from pipeline.settings import Preprocess

FORMAT = 3
"""Version of shards and manifest, and part of the name of every patch set and shard.

Increase it for every incompatible change, including one of the preprocessing settings.
"""


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]
"""A name that is safe as the last part of a path."""
Count = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(ge=1, lt=2**31)]


@dataclass(frozen=True)
class ImageRecord:
    """The outcome for one source image."""

    name: str
    sha256: str
    """Hash of the file; empty if it could not be read."""
    width: Count
    height: Count
    tiles: Count
    """Tiles in the training shards; 0 if the image is held out or rejected."""
    held_out: bool
    rejected: Rejection | None = None
    """The reason for which the image is not in the set; None if it is."""
    flat: Count = 0
    """Tiles that were dropped for lack of detail."""


@dataclass(frozen=True)
class Shard:
    """One Parquet file of the set."""

    file: Name
    """Name in the set's folder."""
    row_groups: list[Positive]
    """Rows in each row group."""
    bytes: Count
    sha256: str
    images: list[ImageRecord]


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json."""

    name: Name
    scale: Positive
    tile: Positive
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
