"""Check that a patch set's files still agree with its manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.data import record_tables
from pipeline.data.manifest import FORMAT, Shard
from pipeline.data.parquet import HOLDOUT_SCHEMA, TILE_SCHEMA
from pipeline.data.patchset import PatchSet, manifest_url
from pipeline.data.reuse import ETAGS


def find_table_faults(patch_set: PatchSet) -> Iterator[str]:
    """Compare the tables of shards and images with the manifest, and yield a sentence for each fault."""
    for file in patch_set.manifest.files:
        try:
            record_tables.read(patch_set.url, file, "its records cannot be used")
        except storage.DamagedFileError as error:
            yield str(error)


def find_faults(patch_set: PatchSet, shard: Shard) -> Iterator[str]:
    """Compare a shard's bytes and rows with the manifest.

    Args:
        patch_set: the shard's patch set.
        shard: one of `patch_set.read_shards()`.

    Yields:
        A description of each fault, to follow the shard's name.
    """
    try:
        with storage.local_copy(f"{patch_set.url}/{shard.file}") as file:
            size = file.stat().st_size
            if size != shard.bytes:
                yield f"has {size} bytes, the manifest says {shard.bytes}"
            elif storage.sha256(file) != shard.sha256:
                yield "has another checksum than the manifest says"
            else:
                yield from _row_faults(patch_set, shard, file)
    except FileNotFoundError:
        yield "is missing"
    except (pa.ArrowException, ArithmeticError, LookupError, OSError, TypeError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # it is the file system's, not pyarrow's
            raise
        yield f"cannot be read ({storage.one_line(error)})"


def _row_faults(patch_set: PatchSet, shard: Shard, file: Path) -> Iterator[str]:
    held_out = any(image.held_out for image in shard.images)
    parquet = pq.ParquetFile(file)
    if not parquet.schema_arrow.equals(HOLDOUT_SCHEMA if held_out else TILE_SCHEMA):
        yield f"has the columns {parquet.schema_arrow.names}, expected those of format {FORMAT}"
        return
    found: Counter[str] = Counter()
    rows = []
    scale = patch_set.scale
    for group in range(parquet.num_row_groups):
        table = parquet.read_row_group(group)
        rows.append(table.num_rows)
        found.update(table["image_id"].to_pylist())
        for row in table.to_pylist():
            height, width = (row["height"], row["width"]) if held_out else (patch_set.tile, patch_set.tile)
            expected_bytes = height * width * 3, (height // scale) * (width // scale) * 3
            if (len(row["hr"]), len(row["lr"])) != expected_bytes:
                yield f"has a row of {row['image_id']} with {len(row['hr'])} and {len(row['lr'])} bytes"
    if rows != shard.row_groups:
        yield f"has row groups of {rows}, the manifest says {shard.row_groups}"
    expected = {r.name: 1 if held_out else r.tiles for r in shard.images if not r.rejected and (held_out or r.tiles)}
    if found != expected:
        yield f"has rows of {dict(found)}, the manifest says {expected}"


def unknown_files(patch_set: PatchSet) -> list[str]:
    """Return the sorted names of files in the folder that the manifest does not name."""
    manifest_name = manifest_url(patch_set.url).rsplit("/", 1)[-1]
    known = {manifest_name, ETAGS, *(shard.file for shard in patch_set.all_shards)}
    known |= {file.file for file in patch_set.manifest.files}
    folders = {file.file.split("/")[0] for file in patch_set.manifest.files}
    inside = [f"{folder}/{name}" for folder in folders for name in storage.names(f"{patch_set.url}/{folder}")]
    return sorted({*storage.names(patch_set.url), *inside} - known - folders)
