"""Look into a patch set."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from pipeline import storage
from pipeline.data.patchset import FORMAT, HOLDOUT_SCHEMA, TILE_SCHEMA, PatchSet, Shard


def summary(patch_set: PatchSet) -> str:
    """All that a person may want to know of a patch set, as lines of text."""
    records = patch_set.images
    tiles, flat = sum(patch_set.row_groups), sum(record.flat for record in records)
    reasons = Counter(_kind(record.rejected) for record in records if record.rejected)
    sizes = [shard.bytes / 1e6 for shard in patch_set.all_shards]
    groups = patch_set.row_groups
    degradation = ", ".join(f"{key} {value}" for key, value in patch_set.settings["degradation"].items() if value)
    lines = {
        "patch set": patch_set.url,
        "scale": f"x{patch_set.scale}, LR made by {degradation}",
        "images": f"{len(records)}: {sum(bool(r.tiles) for r in records)} to train on, "
        f"{len(patch_set.holdout_names)} held out, {sum(reasons.values())} left out",
        **{f"  left out, {reason}": f"{count}" for reason, count in reasons.most_common()},
        "tiles": f"{tiles} of {patch_set.tile}x{patch_set.tile}, in row groups of {max(groups, default=0)}; "
        f"{flat} ({flat / max(tiles + flat, 1):.1%}) dropped as flat",
        "files": f"{len(sizes)} shards, {sum(sizes):.1f} MB, {min(sizes):.1f} to {max(sizes):.1f} MB each",
    }
    width = max(map(len, lines))
    return "\n".join(f"{key:{width}}  {value}" for key, value in lines.items())


def _kind(reason: str) -> str:
    """A reason without the numbers and names that are the image's own."""
    for kind in ("same content", "too small", "more than", "known format", "cannot be decoded", "cannot be read"):
        if kind in reason:
            return kind
    return reason


def contact_sheet(patch_set: PatchSet, pairs: int, seed: int) -> Image.Image:
    """Random tiles, each HR beside its LR enlarged to the same size without interpolation."""
    chosen = random.Random(seed).sample(range(sum(patch_set.row_groups)), min(pairs, sum(patch_set.row_groups)))  # noqa: S311
    first = np.cumsum([0, *patch_set.row_groups])
    side, gap, columns = patch_set.tile, 8, min(4, max(len(chosen), 1))
    rows = -(-len(chosen) // columns)
    sheet = Image.new("RGB", (columns * (2 * side + gap) + gap, rows * (side + gap) + gap), "white")
    for place, tile in enumerate(sorted(chosen)):
        group = int(np.searchsorted(first, tile, side="right")) - 1
        hr, lr = (tiles[tile - first[group]] for tiles in patch_set.read_group(group))
        x, y = gap + place % columns * (2 * side + gap), gap + place // columns * (side + gap)
        sheet.paste(Image.fromarray(hr), (x, y))
        sheet.paste(Image.fromarray(lr).resize((side, side), Image.Resampling.NEAREST), (x + side, y))
    return sheet


def find_faults(patch_set: PatchSet, shard: Shard) -> Iterator[str]:
    """What is wrong with a shard: its bytes, its rows, or what the manifest says of them."""
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


def _row_faults(patch_set: PatchSet, shard: Shard, file: Path) -> Iterator[str]:
    held_out = shard in patch_set.holdout
    parquet = pq.ParquetFile(file)
    if not parquet.schema_arrow.equals(HOLDOUT_SCHEMA if held_out else TILE_SCHEMA):
        yield f"has the columns {parquet.schema_arrow.names}, expected those of format {FORMAT}"
        return
    found: Counter[str] = Counter()
    rows = []
    for group in range(parquet.num_row_groups):
        table = parquet.read_row_group(group)
        rows.append(table.num_rows)
        found.update(table["image_id"].to_pylist())
        for row in table.to_pylist():
            height, width = (row["height"], row["width"]) if held_out else (patch_set.tile, patch_set.tile)
            if (len(row["hr"]), len(row["lr"]) * patch_set.scale**2) != (height * width * 3, height * width * 3):
                yield f"row of {row['image_id']} has {len(row['hr'])} and {len(row['lr'])} bytes"
    if rows != shard.row_groups:
        yield f"has row groups of {rows}, the manifest says {shard.row_groups}"
    expected = {r.name: 1 if held_out else r.tiles for r in shard.images if not r.rejected and (held_out or r.tiles)}
    if found != expected:
        yield f"has rows of {dict(found)}, the manifest says {expected}"


def unknown_files(patch_set: PatchSet) -> list[str]:
    """Names of files in the folder that the manifest does not name, sorted."""
    known = {shard.file for shard in patch_set.all_shards} | {"manifest.json"}
    return sorted(set(storage.names(patch_set.url)) - known)
