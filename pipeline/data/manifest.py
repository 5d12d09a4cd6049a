"""The records of a patch set: its manifest, its shards and the outcome for every source image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from pipeline.data.rejection import Rejection
from pipeline.settings import Preprocess

FORMAT = 3
"""Version of shards, and part of the name of every patch set and shard.

Increase it for every incompatible change, including one of the preprocessing settings.
"""
MANIFEST_FORMAT = 4
"""Version of the manifest. Format 3 had all shards and images in the manifest itself, and is still read."""


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
    """One Parquet file of the set, with its images."""

    file: Name
    """Name in the set's folder."""
    row_groups: list[Positive]
    """Rows in each row group; all but the last one have the same number."""
    bytes: Count
    sha256: str
    images: list[ImageRecord]


@dataclass(frozen=True)
class TableFile:
    """A Parquet file with records of shards or images."""

    file: Annotated[str, Field(pattern=r"^(index|images)/(train|holdout|rejected)-[0-9]{5,9}\.parquet$")]
    """Path in the set's folder."""
    rows: Count
    bytes: Count
    sha256: str


@dataclass(frozen=True)
class Totals:
    """Counts over a patch set."""

    images: Count
    """All source images."""
    trained: Count
    """Images with tiles."""
    held_out: Count
    rejected: Count
    tiles: Count
    shards: Count
    """Training and held-out shards."""
    bytes: Count
    """Size of all shards."""


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json."""

    name: Name
    scale: Positive
    tile: Positive
    """Side of a tile in HR pixels."""
    settings: Preprocess
    """The settings with which the set was made."""
    totals: Totals
    files: list[TableFile]
    """The tables of shards and images, in order."""
    format: int = MANIFEST_FORMAT


@dataclass(frozen=True)
class ManifestOfFormat3:
    """The content of a manifest.json of format 3."""

    name: Name
    scale: Positive
    tile: Positive
    settings: Preprocess
    shards: list[Shard]
    """Training shards."""
    holdout: list[Shard]
    """Shards of held-out images."""
    rejected: list[ImageRecord] = field(default_factory=list)
    """Images that were rejected before they reached a shard."""
    format: int = 3


@dataclass(frozen=True)
class FormatOnly:
    """The part of a manifest that every format has."""

    format: int
