"""The patch set: a folder of Parquet shards and a manifest.

The manifest is written last, so a folder without one is not a finished patch set.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from pipeline import storage
from pipeline.data import parquet
from pipeline.data.manifest import FORMAT, FormatOnly, ImageRecord, Manifest, Shard
from pipeline.settings import UserError
from sr_model.pixels import Pixels

_LOCAL_READERS, _STORE_READERS = 4, 48
_REMEDY = "delete it and rerun pipeline.preprocess, which keeps the undamaged shards"


@dataclass(frozen=True)
class PatchSet:
    """A finished patch set; `load` opens one."""

    url: str
    """Path or URL of the folder."""
    manifest: Manifest

    @property
    def name(self) -> str:
        """Name of the folder, made from the content."""
        return self.manifest.name

    @property
    def scale(self) -> int:
        """Upscaling factor."""
        return self.manifest.scale

    @property
    def tile(self) -> int:
        """Side of a tile in HR pixels."""
        return self.manifest.tile

    @property
    def shards(self) -> list[Shard]:
        """Training shards."""
        return self.manifest.shards

    @property
    def holdout(self) -> list[Shard]:
        """Shards of held-out images."""
        return self.manifest.holdout

    @property
    def all_shards(self) -> list[Shard]:
        """Training shards, then held-out shards."""
        return [*self.shards, *self.holdout]

    @property
    def images(self) -> list[ImageRecord]:
        """All source images, including rejected ones, sorted by name."""
        records = [record for shard in self.all_shards for record in shard.images]
        return sorted(records + self.manifest.rejected, key=lambda record: record.name)

    @cached_property
    def row_groups(self) -> tuple[int, ...]:
        """Rows in each row group, over all training shards in order."""
        return tuple(rows for shard in self.shards for rows in shard.row_groups)

    @cached_property
    def _group_locations(self) -> list[tuple[Shard, int]]:
        return _group_locations(self.shards)

    @cached_property
    def _holdout_locations(self) -> list[tuple[Shard, int]]:
        return _group_locations(self.holdout)

    def shard_of(self, number: int) -> Shard:
        """Return the shard that contains a row group, by the row group's index into `row_groups`."""
        return self._group_locations[number][0]

    @cached_property
    def readers(self) -> int:
        """Number of threads that should read row groups at once; in an object store, requests wait for each other."""
        return _LOCAL_READERS if storage.is_local(storage.locate(self.url)[0]) else _STORE_READERS

    def read_group(self, number: int) -> tuple[Pixels, Pixels]:
        """Read the tiles of a row group.

        Args:
            number: index into `row_groups`.

        Returns:
            HR (n, tile, tile, 3) and LR (n, tile/scale, tile/scale, 3), uint8 and read-only. They may be views of the
            shard's file.

        Raises:
            DamagedShardError: if the shard is missing or damaged.
            OSError: if the shard cannot be read.
        """
        shard, group = self._group_locations[number]
        rows = self.row_groups[number]
        sides = self.tile, self.tile // self.scale
        return parquet.read_tiles(f"{self.url}/{shard.file}", shard.bytes, group, rows, sides)

    @cached_property
    def holdout_names(self) -> list[str]:
        """Names of the held-out images, in the order in which `read_holdout` numbers them."""
        return [record.name for shard in self.holdout for record in shard.images if not record.rejected]

    def read_holdout(self, number: int) -> HeldOutImage:
        """Read a held-out image.

        Args:
            number: index into `holdout_names`.

        Raises:
            DamagedShardError: if the shard is missing or damaged.
            OSError: if the shard cannot be read.
        """
        shard, group = self._holdout_locations[number]  # each held-out image is a row group of its own
        return HeldOutImage(*parquet.read_image(f"{self.url}/{shard.file}", group, self.scale))

    def find_missing(self) -> list[str]:
        """Return the names of the shards that are missing or have another size than the manifest says.

        Raises:
            OSError: if the folder cannot be listed.
        """
        found = storage.sizes(self.url)
        return [shard.file for shard in self.all_shards if found.get(shard.file) != shard.bytes]

    def require_shards(self) -> None:
        """Check that all shards are there; their content is checked when it is read.

        Raises:
            DamagedShardError: if one is missing or has another size than the manifest says.
            OSError: if the folder cannot be listed.
        """
        for file in self.find_missing():
            raise parquet.DamagedShardError(f"{self.url}/{file}", "is missing or incomplete")

    def save(self) -> None:
        """Write the manifest, which makes the folder a finished patch set.

        Raises:
            OSError: if it cannot be stored.
        """
        for shard in self.all_shards:
            storage.flush(f"{self.url}/{shard.file}")
        storage.write_document(manifest_url(self.url), self.manifest)


class HeldOutImage(NamedTuple):
    """A whole image that is kept for validation."""

    name: str
    hr: Pixels
    """(H, W, 3) uint8."""
    lr: Pixels
    """(H/scale, W/scale, 3) uint8."""


def manifest_url(url: str) -> str:
    """Return the location of the manifest of the patch set at `url`."""
    return f"{url}/manifest.json"


def load(url: str) -> PatchSet:
    """Open a patch set.

    Raises:
        UserError: if there is no manifest, or it has another format.
        DamagedFileError: if the manifest is damaged.
        OSError: if the manifest cannot be read.
    """
    file = manifest_url(url)
    content = storage.read(file)
    if content is None:
        raise UserError(f"{url} has no manifest.json, so it is no finished patch set: run pipeline.preprocess")
    found = storage.parse_document(content, FormatOnly, file, _REMEDY).format
    if found > FORMAT:
        raise UserError(f"{url} has the format {found}, expected {FORMAT}: a newer version made it, so update this one")
    if found < FORMAT:
        raise UserError(f"{url} has the format {found}, expected {FORMAT}: make it again with pipeline.preprocess")
    manifest = storage.parse_document(content, Manifest, file, _REMEDY)
    if manifest.tile % manifest.scale:
        raise storage.DamagedFileError(
            f"{file} is damaged: tile is {manifest.tile}, no multiple of the scale {manifest.scale}; {_REMEDY}"
        )
    patch_set = PatchSet(url, manifest)
    groups, held_out = sum(len(shard.row_groups) for shard in manifest.holdout), len(patch_set.holdout_names)
    if groups != held_out:
        raise storage.DamagedFileError(
            f"{file} is damaged: it names {held_out} held-out images in {groups} row groups; {_REMEDY}"
        )
    return patch_set


def describe(patch_set: PatchSet) -> str:
    """Return the numbers of images, tiles and megabytes in one line."""
    records = patch_set.images
    held_out = sum(record.held_out and not record.rejected for record in records)
    rejected = sum(record.rejected is not None for record in records)
    megabytes = sum(shard.bytes for shard in patch_set.all_shards) / 1e6
    return (
        f"{len(records)} images ({held_out} held out, {rejected} rejected), "
        f"{sum(patch_set.row_groups)} tiles of {patch_set.tile}, {megabytes:.0f} MB"
    )


def _group_locations(shards: list[Shard]) -> list[tuple[Shard, int]]:
    """Return the shard and the number within it of every row group."""
    return [(shard, i) for shard in shards for i in range(len(shard.row_groups))]
