"""The patch set: a folder of Parquet shards, tables of shards and images, and a manifest.

The manifest is written last, so a folder without one is not a finished patch set.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import NamedTuple

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.data import parquet, record_tables
from pipeline.data.lanes import RowGroupTable
from pipeline.data.manifest import (
    FORMAT,
    MANIFEST_FORMAT,
    FormatOnly,
    ImageRecord,
    Manifest,
    ManifestOfFormat3,
    Shard,
    TableFile,
)
from pipeline.data.record_tables import INDEX_SCHEMA, PARTS, Part, ShardFile, Shards, Tables
from pipeline.settings import Preprocess, UserError
from sr_model.pixels import Pixels

_LOCAL_READERS, _STORE_READERS = 4, 48
_RESIDENT_SHARE = 0.25
"""Share of a machine's memory that shards may take for the system to keep them once they were read."""
_REMEDY = "delete it and rerun pipeline.preprocess, which keeps the undamaged shards"
_IN_MEMORY = [name for name in INDEX_SCHEMA.names if name != "sha256"]


@dataclass(frozen=True)
class PatchSet:
    """A finished patch set; `load` opens one. Training reads the index alone."""

    url: str
    """Path or URL of the folder."""
    manifest: Manifest
    shards: Shards = field(repr=False, compare=False)
    """Training shards."""
    holdout: Shards = field(repr=False, compare=False)
    """Shards of held-out images."""
    parts: dict[Part, Tables] | None = field(default=None, repr=False, compare=False)
    """All tables, if they are in memory instead of in files."""

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
    def row_groups(self) -> RowGroupTable:
        """The sizes of all row groups of training shards, in order."""
        return self.shards.row_groups

    @property
    def tiles(self) -> int:
        """Number of tiles in training shards."""
        return self.row_groups.tiles

    @property
    def held_out(self) -> int:
        """Number of held-out images."""
        return self.holdout.groups

    @property
    def all_shards(self) -> Iterator[ShardFile]:
        """Training shards, then held-out shards."""
        return chain(self.shards, self.holdout)

    def at(self, url: str) -> PatchSet:
        """Return the same patch set in another folder."""
        return replace(self, url=url)

    def images(self) -> Iterator[ImageRecord]:
        """Read the records of all source images: those of training shards, of held-out ones, then rejected ones.

        Raises:
            DamagedFileError: if a table is missing or damaged.
        """
        for part in PARTS:
            for table in self._images(part):
                yield from record_tables.records(table)

    def rejected(self) -> list[ImageRecord]:
        """Read the records of all rejected images, sorted by name; errors are those of `images`."""
        rejected: list[ImageRecord] = []
        for part in PARTS:
            for table in self._images(part):
                rejected += record_tables.records(table.filter(table["kind"].is_valid()))
        return sorted(rejected, key=lambda record: record.name)

    def read_shards(self) -> Iterator[Shard]:
        """Read all shards with checksums and images, in the order of `all_shards`; errors are those of `images`."""
        for part, shards in zip(PARTS, (self.shards, self.holdout), strict=False):
            digests = iter(chain.from_iterable(table["sha256"].to_pylist() for table in self._index(part, ["sha256"])))
            done = 0
            for table in self._images(part):
                found, first = np.unique(table["shard"].to_numpy(), return_index=True)
                ends = np.append(first, len(table))[1:]
                for number, start, end in zip(found.tolist(), first.tolist(), ends.tolist(), strict=True):
                    if not done <= number < len(shards):
                        where = manifest_url(self.url)
                        raise storage.DamagedFileError(f"{where} is damaged: its tables differ; {_REMEDY}")
                    for shard in shards[done:number]:  # they have no images
                        yield _whole(shard, next(digests), [])
                    yield _whole(shards[number], next(digests), record_tables.records(table.slice(start, end - start)))
                    done = number + 1
            for shard in shards[done:]:
                yield _whole(shard, next(digests), [])

    def _images(self, part: Part) -> Iterator[pa.Table]:
        if self.parts:
            yield from self.parts[part].images
        else:
            yield from (record_tables.read(self.url, file, _REMEDY) for file in self._files(f"images/{part}-"))

    def _index(self, part: Part, columns: list[str]) -> Iterator[pa.Table]:
        if self.parts:
            yield self.parts[part].index.select(columns)
        else:
            yield from (record_tables.read(self.url, file, _REMEDY, columns) for file in self._files(f"index/{part}-"))

    def _files(self, prefix: str) -> list[TableFile]:
        return [file for file in self.manifest.files if file.file.startswith(prefix)]

    def shard_of(self, number: int) -> ShardFile:
        """Return the shard that contains a row group, by the row group's number over all training shards."""
        return self.shards.locate(number)[0]

    @cached_property
    def readers(self) -> int:
        """Number of threads that should read row groups at once; in an object store, requests wait for each other."""
        return _LOCAL_READERS if storage.is_local(storage.locate(self.url)[0]) else _STORE_READERS

    def read_group(self, number: int) -> tuple[Pixels, Pixels]:
        """Read the tiles of a row group.

        Args:
            number: number of the row group over all training shards.

        Returns:
            HR (n, tile, tile, 3) and LR (n, tile/scale, tile/scale, 3), uint8 and read-only. They may be views of the
            shard's file.

        Raises:
            DamagedShardError: if the shard is missing or damaged.
            OSError: if the shard cannot be read.
        """
        shard, group = self.shards.locate(number)
        return parquet.read_tiles(f"{self.url}/{shard.file}", shard.bytes, group, shard.rows_of(group), self._sides)

    def at_hand(self, number: int) -> tuple[Pixels, Pixels] | None:
        """Return a row group as `read_group` does if it is mapped and its checksums were compared, otherwise None."""
        shard, group = self.shards.locate(number)
        return parquet.tiles_at_hand(f"{self.url}/{shard.file}", group, shard.rows_of(group), self._sides)

    def prefetch(self, numbers: Sequence[int]) -> None:
        """Ask the system to read row groups into memory that `at_hand` has returned, without waiting for them.

        Nothing is done if memory has room for all shards, because it then still has what was read before.
        """
        if self._fits_memory:
            return
        for shard, group in map(self.shards.locate, numbers):
            parquet.prefetch(f"{self.url}/{shard.file}", group)

    @cached_property
    def _fits_memory(self) -> bool:
        return int(self.shards.bytes.sum()) < _RESIDENT_SHARE * psutil.virtual_memory().total

    @property
    def _sides(self) -> tuple[int, int]:
        return self.tile, self.tile // self.scale

    @cached_property
    def holdout_names(self) -> list[str]:
        """Names of the held-out images, as `read_holdout` numbers them; errors are those of `images`."""
        kept = (table.filter(table["kind"].is_null()) for table in self._images("holdout"))
        return [name for table in kept for name in table["name"].to_pylist()]

    def read_holdout(self, number: int) -> HeldOutImage:
        """Read a held-out image.

        Args:
            number: number of the image, less than `held_out`.

        Raises:
            DamagedShardError: if the shard is missing or damaged.
            OSError: if the shard cannot be read.
        """
        shard, group = self.holdout.locate(number)  # each held-out image is a row group of its own
        return HeldOutImage(*parquet.read_image(f"{self.url}/{shard.file}", group, self.scale))

    def find_missing(self) -> list[str]:
        """Return the names of the files that are missing or have another size than the manifest says.

        Raises:
            OSError: if the folder cannot be listed.
        """
        found = storage.sizes(self.url)
        for folder in {file.file.split("/")[0] for file in self.manifest.files}:
            found.update({f"{folder}/{name}": size for name, size in storage.sizes(f"{self.url}/{folder}").items()})
        expected = ((file.file, file.bytes) for files in (self.all_shards, self.manifest.files) for file in files)
        return [file for file, size in expected if found.get(file) != size]

    def require_shards(self) -> None:
        """Check that all shards are there; their content is checked when it is read.

        Raises:
            DamagedShardError: if one is missing or has another size than the manifest says.
            OSError: if the folder cannot be listed.
        """
        for file in (file for file in self.find_missing() if "/" not in file):  # training reads no other table
            raise parquet.DamagedShardError(f"{self.url}/{file}", "is missing or incomplete")

    def save(self) -> PatchSet:
        """Write the tables and then the manifest, which makes the folder a finished patch set.

        Returns:
            The patch set with its tables in files.

        Raises:
            OSError: if it cannot be stored.
        """
        assert self.parts, "it is saved already"
        for shard in self.all_shards:
            storage.flush(f"{self.url}/{shard.file}")
        manifest = replace(self.manifest, files=record_tables.write(self.url, self.parts))
        storage.write_document(manifest_url(self.url), manifest)
        return replace(self, manifest=manifest, parts=None)


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


def assemble(
    url: str,
    name: str,
    scale: int,
    settings: Preprocess,
    shards: Iterable[tuple[int, Shard]],
    trained: int,
    rejected: Iterable[ImageRecord] = (),
) -> PatchSet:
    """Make a patch set of shards; `PatchSet.save` finishes it.

    Args:
        url: path or URL of the folder with the shards.
        name: name of the patch set.
        scale: upscaling factor.
        settings: the settings with which the shards were made.
        shards: each with its number; they are turned into columns as they arrive, in any order.
        trained: number of training shards. Their numbers begin at 0, and those of held-out shards follow.
        rejected: images that reached no shard.

    Raises:
        ValueError: if a shard cannot be part of a patch set.
    """
    parts = record_tables.collect(shards, trained, rejected)
    manifest = Manifest(name, scale, settings.tile, settings, record_tables.count(parts), [])
    columns = (Shards(parts["train"].index, False), Shards(parts["holdout"].index, True))
    return PatchSet(url, manifest, *columns, parts)


def load(url: str) -> PatchSet:
    """Open a patch set.

    Raises:
        UserError: if there is no manifest, or it has another format.
        DamagedFileError: if the manifest or the index is damaged.
        OSError: if a file cannot be read.
    """
    file = manifest_url(url)
    content, version = _read_manifest(url)
    patch_set = _open(url, content) if version == MANIFEST_FORMAT else _convert(url, content)
    manifest = patch_set.manifest
    if manifest.tile % manifest.scale:
        raise storage.DamagedFileError(
            f"{file} is damaged: tile is {manifest.tile}, no multiple of the scale {manifest.scale}; {_REMEDY}"
        )
    totals, shards = manifest.totals, len(patch_set.shards) + len(patch_set.holdout)
    for what, stated, found in (
        ("held-out images", totals.held_out, patch_set.held_out),
        ("tiles", totals.tiles, patch_set.tiles),
        ("shards", totals.shards, shards),
    ):
        if stated != found:
            raise storage.DamagedFileError(
                f"{file} is damaged: it states {stated} {what}, but its shards have {found}; {_REMEDY}"
            )
    return patch_set


def find_shards(url: str, wanted: Collection[str]) -> Iterator[tuple[str, int, str]]:
    """Yield file, bytes and checksum of those shards of a patch set that have some names.

    One table of the index is in memory at a time. The arguments are the set's folder and the names, and the errors are
    those of `load`.
    """
    content, version = _read_manifest(url)
    columns = ["file", "bytes", "sha256"]
    if version == MANIFEST_FORMAT:
        files = storage.parse_document(content, Manifest, manifest_url(url), _REMEDY).files
        index = (record_tables.read(url, file, _REMEDY, columns) for file in files if file.file.startswith("index/"))
    else:
        index = (tables.index for tables in (_convert(url, content).parts or {}).values())
    names = pa.array(wanted, pa.string())
    for table in index:
        found = table.filter(pc.is_in(table["file"], value_set=names))
        digests = map(record_tables.hex_digest, found["sha256"].to_pylist())
        yield from zip(found["file"].to_pylist(), found["bytes"].to_pylist(), digests, strict=True)


def _read_manifest(url: str) -> tuple[bytes, int]:
    """Read a manifest and the version of its format; errors are those of `load`."""
    file = manifest_url(url)
    content = storage.read(file)
    if content is None:
        raise UserError(f"{url} has no manifest.json, so it is no finished patch set: run pipeline.preprocess")
    version = storage.parse_document(content, FormatOnly, file, _REMEDY).format
    if version > MANIFEST_FORMAT:
        raise UserError(
            f"{url} has the format {version}, expected {MANIFEST_FORMAT}: a newer version made it, so update this one"
        )
    if version < FORMAT:
        raise UserError(
            f"{url} has the format {version}, expected {MANIFEST_FORMAT}: make it again with pipeline.preprocess"
        )
    return content, version


def _open(url: str, content: bytes) -> PatchSet:
    manifest = storage.parse_document(content, Manifest, manifest_url(url), _REMEDY)

    def shards(part: Part) -> Shards:
        files = [file for file in manifest.files if file.file.startswith(f"index/{part}-")]
        read = [record_tables.read(url, file, _REMEDY, _IN_MEMORY) for file in files]
        return Shards(pa.concat_tables(read) if read else INDEX_SCHEMA.empty_table(), part == "holdout")

    try:
        patch_set = PatchSet(url, manifest, shards("train"), shards("holdout"))
    except ValueError as error:
        raise storage.DamagedFileError(f"the index of {url} is damaged: {error}; {_REMEDY}") from None
    pa.default_memory_pool().release_unused()  # what was read takes more memory than what is kept of it
    return patch_set


def _convert(url: str, content: bytes) -> PatchSet:
    """Open a patch set of format 3, whose manifest has everything."""
    old = storage.parse_document(content, ManifestOfFormat3, manifest_url(url), _REMEDY)
    shards = enumerate([*old.shards, *old.holdout])
    try:
        made = assemble(url, old.name, old.scale, old.settings, shards, len(old.shards), old.rejected)
    except (ValueError, OverflowError) as error:
        raise storage.DamagedFileError(f"{manifest_url(url)} is damaged: {error}; {_REMEDY}") from None
    return replace(made, manifest=replace(made.manifest, tile=old.tile))


def describe(patch_set: PatchSet) -> str:
    """Return the numbers of images, tiles and megabytes in one line."""
    totals = patch_set.manifest.totals
    return (
        f"{totals.images} images ({totals.held_out} held out, {totals.rejected} rejected), "
        f"{totals.tiles} tiles of {patch_set.tile}, {totals.bytes / 1e6:.0f} MB"
    )


def _whole(shard: ShardFile, digest: bytes | None, records: Iterable[ImageRecord]) -> Shard:
    return Shard(shard.file, shard.row_groups, shard.bytes, record_tables.hex_digest(digest), list(records))
